"""Workers with an empty disk: they fetch what the catalogue names from the blob store, and use nothing else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models
from object_store import CREDENTIALS, FaultProxy, ObjectStore, object_store
from worker_process import Worker, a_worker, until
from worker_rig import Rig

from batchline.data.blobs import Blobs
from batchline.data.contract import Places
from batchline.data.model_blobs import ModelBlobs
from batchline.errors import ModelError, SourceUnavailableError
from batchline.model import MODEL_FILE, ModelSpec
from batchline.registry import import_model
from batchline.store import Store
from workers.idle import Newcomers
from workers.model_files import Cache, ModelFiles
from workers.models import Models
from workers.runtimes.onnx_runtime import opener


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as server:
        yield server


@pytest.fixture
def urls(database_url: str, redis_url: str) -> tuple[str, str]:
    return database_url, redis_url


@pytest.fixture
def blobs(tmp_path: Path) -> ModelBlobs:
    return blobs_at(f"file://{tmp_path / 'blobs'}")


def blobs_at(uri: str, endpoint: str = "") -> ModelBlobs:
    return ModelBlobs(Blobs(Places(uri, s3_endpoint_url=endpoint)))


def words(folder: Path) -> Path:
    """A folder with a text model: its tokenizer is a file that a worker needs too."""
    small_models.token_sum(folder)
    (folder / "model.toml").write_text("[text]\n")
    return folder


def imported(store: Store, tmp_path: Path, blobs: ModelBlobs, name: str, source: Path) -> ModelSpec:
    """Imported into a folder that no worker of the test has."""
    return import_model(tmp_path / "imported", name, source, store.catalogue.register_model, publish=blobs.publish)


def files_of(blobs: ModelBlobs | None, disk: Path, limit_bytes: int = 2**30) -> ModelFiles:
    return ModelFiles(disk / "models", blobs, Cache(disk / "cache", limit_bytes))


@pytest.mark.parametrize("place", ["file", "s3"])
def test_a_worker_with_an_empty_disk_serves_what_was_imported_elsewhere(
    store: Store, urls: tuple[str, str], tmp_path: Path, s3: ObjectStore, place: str
) -> None:
    """A real worker process, a model of rows and one of texts; a second life of it asks the blob store for nothing."""
    bucket, endpoint = (s3.bucket(), s3.endpoint) if place == "s3" else ("", "")
    uri = f"s3://{bucket}/b" if bucket else f"file://{tmp_path / 'blobs'}"
    blobs = blobs_at(uri, endpoint)
    imported(store, tmp_path, blobs, "double", small_models.double(tmp_path / "double.onnx"))
    imported(store, tmp_path, blobs, "words", words(tmp_path / "words"))
    rig = Rig(store, urls[1], tmp_path / "unused")
    ids = {r.spec.name: r.id for r in store.catalogue.models()}
    disk = tmp_path / "spot"
    env = CREDENTIALS | {"BATCHLINE_BLOBS": uri, "BATCHLINE_S3_ENDPOINT_URL": endpoint}
    with a_worker(*urls, disk / "models", tmp_path / "worker.log", **env) as worker:
        worker.start()
        served(rig, worker, ids)
        assert worker.log().count("model file fetched") == 3
        assert worker.end(signal.SIGTERM) == 0
        assert len(list((disk / "models" / ".cache").iterdir())) == 3
        worker.start(BATCHLINE_BLOBS=f"file://{tmp_path / 'nothing'}")
        served(rig, worker, ids)
        assert worker.log().count("model file fetched") == 3
        assert worker.end(signal.SIGTERM) == 0


def served(rig: Rig, worker: Worker, ids: dict[str, int]) -> None:
    jobs = [rig.pixels(ids["double"], [1, 2]), rig.submit(ids["words"], {"text": ["a b c", "c"]})]
    until(lambda: rig.statuses(jobs) == ["succeeded"] * 2, worker)
    assert [rig.outputs(job) for job in jobs] == [[{"y": [2.0, 4.0]}], [{"y": 6}, {"y": 3}]]


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


SPOILT: dict[str, Callable[[bytes], bytes | None]] = {
    "another byte": flipped,
    "cut": lambda data: data[:-1],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"\0" * 1000,
    "gone": lambda _: None,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_blob_is_never_served_and_the_job_says_why(
    store: Store, redis_url: str, tmp_path: Path, blobs: ModelBlobs, how: str
) -> None:
    """The job is tried while its budget lasts, here twice, and fails with the reason; nothing is kept of the blob."""
    spec = imported(store, tmp_path, blobs, "double", small_models.double(tmp_path / "double.onnx"))
    spoil(tmp_path, spec, SPOILT[how])
    rig = Rig(store, redis_url, tmp_path / "disk" / "models")
    rig.models = Models(files_of(blobs, tmp_path / "disk"), store.catalogue, opener("cpu", 1), limit_bytes=2**30)
    rig.engine = rig.an_engine(store.claims)
    model = store.catalogue.models()[0].id
    job = rig.pixels(model, [1, 2])
    deadline = threading.Event()
    for _ in range(100):
        rig.engine.run(job.lane)
        store.chores.release()
        if rig.statuses([job]) == ["failed"]:
            break
        deadline.wait(0.1)
    view = rig.view(job)
    assert (str(view.status), view.code, view.attempt) == ("failed", "model_error", 2)
    assert "double@1 is not in this worker's model repository" in str(view.errors)
    assert not [p for p in (tmp_path / "disk").rglob("*") if p.is_file()]


def spoil(tmp_path: Path, spec: ModelSpec, how: Callable[[bytes], bytes | None]) -> None:
    path = tmp_path / "blobs" / "models" / spec.digest
    data = how(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)


def test_importing_again_mends_a_spoilt_blob(store: Store, tmp_path: Path, blobs: ModelBlobs) -> None:
    """Same bytes, next version: both versions are served from the one blob."""
    source = small_models.double(tmp_path / "double.onnx")
    first = imported(store, tmp_path, blobs, "double", source)
    spoil(tmp_path, first, flipped)
    second = imported(store, tmp_path, blobs, "double", source)
    assert (second.version, second.digest) == ("2", first.digest)
    for spec in (first, second):
        assert files_of(blobs, tmp_path / "disk").read(spec, MODEL_FILE) == source.read_bytes()


def test_a_cached_file_that_was_tampered_with_is_fetched_anew(store: Store, tmp_path: Path, blobs: ModelBlobs) -> None:
    """It is checked at every load, not only when it came."""
    source = small_models.double(tmp_path / "double.onnx")
    spec = imported(store, tmp_path, blobs, "double", source)
    files = files_of(blobs, tmp_path / "disk")
    files.read(spec, MODEL_FILE)
    (cached,) = (tmp_path / "disk" / "cache").iterdir()
    cached.write_bytes(flipped(cached.read_bytes()))
    assert files.read(spec, MODEL_FILE) == source.read_bytes()
    assert cached.read_bytes() == source.read_bytes()


def test_many_workers_that_fetch_into_one_cache_at_once_all_have_the_right_bytes(
    store: Store, tmp_path: Path, blobs: ModelBlobs
) -> None:
    """Also where there is room for one of two models only, so that each removes the other's."""
    specs = [
        imported(store, tmp_path, blobs, name, small_models.double(tmp_path / f"{name}.onnx", width))
        for name, width in (("two", 2), ("three", 3))
    ]
    sources = [(tmp_path / f"{spec.name}.onnx").read_bytes() for spec in specs]
    limit = max(len(s) for s in sources) + 10
    wrong: list[Any] = []

    def read_all() -> None:
        files = files_of(blobs, tmp_path / "disk", limit)
        wrong.extend(n for n in range(40) if files.read(specs[n % 2], MODEL_FILE) != sources[n % 2])

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    left = list((tmp_path / "disk" / "cache").iterdir())
    assert not [p for p in left if p.name.startswith(".")]


def test_the_cache_keeps_what_was_used_last_within_its_bytes(tmp_path: Path) -> None:
    """Three files in room for two; one larger than all of it is not kept."""
    import hashlib

    cache = Cache(tmp_path / "cache", 200)
    files = {hashlib.sha256(data).hexdigest(): data for data in (b"a" * 100, b"b" * 100, b"c" * 100)}
    first, second, third = files
    for at, digest in enumerate((first, second)):
        cache.put(digest, files[digest])
        os.utime(tmp_path / "cache" / digest, (at, at))
    assert cache.get(first) == files[first]
    cache.put(third, files[third])
    assert [cache.get(d) is not None for d in (first, second, third)] == [True, False, True]
    cache.put("0" * 64, b"d" * 201)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    for name in ("somebody's", "another"):
        (tmp_path / "cache" / name).write_bytes(b"e" * 500)
    cache.put(second, files[second])
    assert {p.name for p in (tmp_path / "cache").iterdir()} >= {"somebody's", "another", second}


@pytest.mark.parametrize("digest", ["", "../outside", "/outside", "A" * 64])
def test_a_catalogue_that_names_no_digest_leads_nowhere(tmp_path: Path, blobs: ModelBlobs, digest: str) -> None:
    """Digests become names of files: of those that may be read, and of those that are removed when they are unsound."""
    spec = ModelSpec(name="m", version="1", digest=digest, size_bytes=1, inputs=(), outputs=())
    (outside := tmp_path / "outside").write_bytes(b"kept")
    with pytest.raises(ModelError, match="sha256"):
        ModelFiles(tmp_path / "models", blobs, Cache(tmp_path / "cache", 2**30)).read(spec, MODEL_FILE)
    assert outside.read_bytes() == b"kept"


def test_a_disk_that_takes_nothing_costs_only_the_next_fetch(store: Store, tmp_path: Path, blobs: ModelBlobs) -> None:
    """The cache's folder cannot be made: the model is served all the same."""
    source = small_models.double(tmp_path / "double.onnx")
    spec = imported(store, tmp_path, blobs, "double", source)
    (tmp_path / "file").write_text("no folder")
    files = ModelFiles(tmp_path / "models", blobs, Cache(tmp_path / "file" / "cache", 2**30))
    assert files.read(spec, MODEL_FILE) == source.read_bytes()


def test_a_blob_store_that_does_not_answer_costs_jobs_nothing(
    store: Store, redis_url: str, tmp_path: Path, s3: ObjectStore
) -> None:
    """They stay queued and uncharged for workers that have the model, and run here when it is back."""
    bucket, proxy = s3.bucket(), FaultProxy(s3.endpoint)
    imported(
        store, tmp_path, blobs_at(f"s3://{bucket}/b", s3.endpoint), "double", small_models.double(tmp_path / "d.onnx")
    )
    rig = Rig(store, redis_url, tmp_path / "disk" / "models")
    files = files_of(blobs_at(f"s3://{bucket}/b", proxy.endpoint), tmp_path / "disk")
    rig.models = Models(files, store.catalogue, opener("cpu", 1), limit_bytes=2**30)
    rig.engine = rig.an_engine(store.claims)
    model = store.catalogue.models()[0].id
    job = rig.pixels(model, [1, 2])
    proxy.rule = lambda _method, _path: 503
    assert rig.engine.run(job.lane) == {"jobs": 0, "rows": 0, "error": "source_unavailable"}
    assert rig.models.busy, "it is left alone for some seconds"
    assert (rig.statuses([job]), rig.view(job).attempt) == (["queued"], 0)
    with pytest.raises(SourceUnavailableError):
        rig.models.load(model)
    proxy.rule = lambda _method, _path: None
    rig.models.load(model)
    rig.work()
    assert rig.statuses([job]) == ["succeeded"]
    proxy.close()


def test_what_lies_in_a_repository_is_shared_once_it_is_known(store: Store, tmp_path: Path, blobs: ModelBlobs) -> None:
    """Put there by hand, imported without a blob store, or registered by a release that kept no tokenizer's digest."""
    repository = tmp_path / "models"
    small_models.double(repository / "double" / "1" / MODEL_FILE)
    spec = import_model(repository, "words", words(tmp_path / "words"), store.catalogue.register_model)
    assert spec.text
    import msgspec

    store.catalogue.register_model(msgspec.structs.replace(spec, text=msgspec.structs.replace(spec.text, digest="")))
    newcomers = Newcomers(repository, store.catalogue, blobs)
    assert newcomers.look() == 1
    assert newcomers.share() == 1
    assert newcomers.share() == 0
    files = files_of(blobs, tmp_path / "disk")
    for record in store.catalogue.models():
        for name in record.spec.files:
            lies = repository / record.spec.name / record.spec.version / name
            assert files.read(record.spec, name) == lies.read_bytes()
    assert {r.spec.ref: len(r.spec.files) for r in store.catalogue.models()} == {"double@1": 1, "words@1": 2}


def test_an_import_without_a_place_for_its_bytes_registers_nothing(store: Store, tmp_path: Path) -> None:
    """The blob store refuses: the catalogue must not name what nobody can fetch."""
    (tmp_path / "blobs").write_text("no folder")
    blobs = blobs_at(f"file://{tmp_path / 'blobs'}")
    with pytest.raises(Exception, match="cannot be written"):
        imported(store, tmp_path, blobs, "double", small_models.double(tmp_path / "double.onnx"))
    assert store.catalogue.models() == []
    assert list((tmp_path / "imported").iterdir()) == []


def test_a_tokenizer_other_than_the_one_registered_is_refused(store: Store, tmp_path: Path, blobs: ModelBlobs) -> None:
    """Also from the repository: other tokens are wrong rows."""
    spec = imported(store, tmp_path, blobs, "words", words(tmp_path / "words"))
    path = tmp_path / "imported" / "words" / "1" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelError, match="other bytes"):
        ModelFiles(tmp_path / "imported", blobs).read(spec, "tokenizer.json")
