"""One suite for every sink in files: three formats on file:// and s3://."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from object_store import FaultProxy, ObjectStore, object_store
from sink_rows import SCHEMA, faults, rows

from batchline.batch import Input, Output, Staged
from batchline.data import open_sink, open_source, s3_client, s3_folder
from batchline.data.contract import Manifest, Places, Sink, SinkContext
from batchline.errors import SinkError, SinkUnavailableError

FORMATS = ["parquet", "csv", "jsonl"]


@pytest.fixture(scope="module")
def s3() -> Generator[ObjectStore]:
    with object_store() as store:
        yield store


@dataclass
class Here:
    """A folder, and what is in it: visible files, and what stands unpublished."""

    places: Places
    uri: str
    files: Callable[[], dict[str, bytes]]
    hidden: Callable[[], Sequence[str]]

    def sink(self, kind: str | None, batch: uuid.UUID | None = None) -> Sink:
        return open_sink(Output(uri=self.uri, format=kind), self.places, SinkContext(batch or uuid.uuid4(), "id"))


@pytest.fixture(params=["file", "s3"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Here:
    if request.param == "file":
        return _local(tmp_path)
    store: ObjectStore = request.getfixturevalue("s3")
    bucket = store.bucket()

    def files() -> dict[str, bytes]:
        found = {}
        for key in store.keys(bucket):
            found[key.removeprefix("out/")] = store.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return found

    places = Places("file:///nowhere/blobs", (), {}, store.endpoint)
    return Here(places, f"s3://{bucket}/out/", files, lambda: store.uploads(bucket))


@pytest.fixture
def local(tmp_path: Path) -> Here:
    return _local(tmp_path)


def _local(tmp_path: Path) -> Here:
    out = tmp_path / "data" / "out"

    def listed() -> list[Path]:
        return list(out.iterdir()) if out.exists() else []

    (tmp_path / "data").mkdir()
    return Here(
        Places(f"file://{tmp_path}/blobs", (str(tmp_path / "data"),)),
        f"file://{out}",
        lambda: {p.name: p.read_bytes() for p in listed() if not p.name.startswith(".")},
        lambda: [p.name for p in listed() if p.name.startswith(".")],
    )


def staged(sink: Sink, number: int, *batches: pa.RecordBatch, bad: pa.RecordBatch | None = None) -> Staged:
    part = sink.open(number, 1, SCHEMA)
    for batch in batches:
        part.write(batch)
    if bad is not None:
        part.write_errors(bad)
    return part.stage()


def read_back(name: str, data: bytes) -> pa.Table:
    if name.endswith("parquet"):
        return pq.read_table(pa.BufferReader(data))
    if name.endswith("csv"):
        table = pacsv.read_csv(pa.BufferReader(data), parse_options=pacsv.ParseOptions(newlines_in_values=True))
        if "scores" not in table.schema.names:
            return table
        lists = pa.array([json.loads(text) for text in table.column("scores").to_pylist()], SCHEMA.field("scores").type)
        return table.set_column(table.schema.get_field_index("scores"), "scores", lists)
    return pa.Table.from_pylist([json.loads(line) for line in data.splitlines()])


def same(got: pa.Table, want: pa.RecordBatch) -> None:
    assert got.schema.names == want.schema.names
    for name in want.schema.names:
        assert got.column(name).cast(want.schema.field(name).type).to_pylist() == want.column(name).to_pylist()


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_seen_before_it_is_published_whole(here: Here, kind: str) -> None:
    """A staged part is invisible; published it is whole, readable, and named by slice and batch."""
    batch = uuid.uuid4()
    sink = here.sink(kind, batch)
    sink.check(SCHEMA)
    assert here.files() == {}
    done = staged(sink, 3, rows(400), rows(600, 400), bad=faults(5, 9))
    assert here.files() == {}
    sink.publish(3, done)
    short = batch.hex[-12:]
    assert set(here.files()) == {f"part-00003-{short}.{kind}", f"errors-00003-{short}.{kind}"}
    assert (done.rows, done.errors) == (1000, 2)
    assert done.bytes == sum(len(data) for data in here.files().values())
    same(read_back(f".{kind}", here.files()[f"part-00003-{short}.{kind}"]), rows(1000))
    same(read_back(f".{kind}", here.files()[f"errors-00003-{short}.{kind}"]), faults(5, 9))
    assert not here.hidden()


@pytest.mark.parametrize("kind", FORMATS)
def test_publishing_again_changes_nothing(here: Here, kind: str) -> None:
    """Whoever repeats a publication, from any machine, finds it done; a discard afterwards removes nothing."""
    batch = uuid.uuid4()
    done = staged(here.sink(kind, batch), 0, rows(10), bad=faults(1))
    for _ in range(3):
        here.sink(kind, batch).publish(0, done)
    before = here.files()
    here.sink(kind, batch).discard(0, done)
    assert here.files() == before


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_discarded_or_aborted_leaves_nothing(here: Here, kind: str) -> None:
    """Of an attempt that lost, of one that broke off, nothing remains; both are repeatable."""
    sink = here.sink(kind)
    lost = staged(sink, 0, rows(10), bad=faults(1))
    sink.discard(0, lost)
    sink.discard(0, lost)
    broken = sink.open(1, 1, SCHEMA)
    broken.write(rows(10))
    broken.write_errors(faults(3))
    broken.abort()
    broken.abort()
    after = sink.open(2, 1, SCHEMA)
    after.write(rows(1))
    after.stage()
    after.abort()
    sink.open(3, 1, SCHEMA).abort()
    assert here.files() == {}
    assert not here.hidden()


@pytest.mark.parametrize("kind", FORMATS)
def test_two_attempts_do_not_meet(here: Here, kind: str) -> None:
    """Both write at once; only what is published counts, and the other goes."""
    sink = here.sink(kind)
    one, two = sink.open(0, 1, SCHEMA), sink.open(0, 2, SCHEMA)
    one.write(rows(5))
    two.write(rows(7))
    first, second = one.stage(), two.stage()
    sink.publish(0, second)
    sink.discard(0, first)
    ((name, data),) = here.files().items()
    same(read_back(name, data), rows(7))
    assert not here.hidden()


def test_the_sweep_takes_what_this_batch_has_left(here: Here) -> None:
    """Leavings of killed attempts go; another batch's work in the same folder stays."""
    mine, other = here.sink("jsonl"), here.sink("jsonl")
    published = staged(mine, 0, rows(3))
    mine.publish(0, published)
    staged(mine, 1, rows(3))
    kept = staged(other, 0, rows(3))
    mine.sweep()
    assert len(here.hidden()) == 1
    other.publish(0, kept)
    assert len(here.files()) == 2


def test_a_lost_part_is_told(local: Here) -> None:
    """Published neither now nor before: an error, not silence."""
    sink = local.sink("jsonl")
    done = staged(sink, 0, rows(3))
    sink.discard(0, done)
    with pytest.raises(SinkError, match="gone before it was published"):
        sink.publish(0, done)


def test_the_manifest_tells_what_there_is(here: Here) -> None:
    """manifest.json: counts, schema, model and digest, parts; replaced whole."""
    sink = here.sink("parquet")
    manifest = Manifest("batch_1", "churn@3", "ab" * 32, 10, 9, 1, ["part-00000-x.parquet"], {"y": "float"})
    sink.complete(manifest)
    sink.complete(manifest)
    told = json.loads(here.files()["manifest.json"])
    assert told["rows"] == 10
    assert told["schema"] == {"y": "float"}
    assert told["format"] == "parquet"
    assert set(here.files()) == {"manifest.json"}


def test_a_retry_leaves_the_manifest_of_its_parent_alone(here: Here) -> None:
    """A child has one of its own, which names the parent and is no data."""
    sink = here.sink("jsonl")
    sink.publish(0, staged(sink, 0, rows(3, 0)))
    sink.complete(Manifest("parent", "m", "d", 3, 3, 0, ["a"], {}))
    sink.complete(Manifest("child", "m", "d", 1, 1, 0, ["b"], {}, parent="parent"))
    files = here.files()
    assert json.loads(files["manifest.json"])["batch"] == "parent"
    (own,) = [name for name in files if name.startswith("manifest-")]
    assert json.loads(files[own])["parent"] == "parent"
    source = open_source(Input(uri=here.uri, format="jsonl"), here.places)
    assert sum(piece.rows for piece in source.pieces(10)) == 3


@pytest.mark.parametrize("kind", FORMATS)
def test_output_is_input_again(here: Here, kind: str) -> None:
    """A folder that a batch wrote is a data set: parts in order, without error parts and manifest."""
    sink = here.sink(kind)
    for number in range(3):
        sink.publish(number, staged(sink, number, rows(10, number * 10), bad=faults(number)))
    sink.complete(Manifest("b", "m", "d", 30, 30, 0, [], {}))
    source = open_source(Input(uri=here.uri, format=kind), here.places)
    got = [r.batch for piece in source.pieces(7) for r in source.read(piece, ["id"], batch_rows=100)]
    assert pa.Table.from_batches(got).column("id").to_pylist() == list(range(30))


def test_numbers_that_json_has_no_word_for(here: Here) -> None:
    """NaN and infinities are the strings that /v1/jobs has, in CSV's lists too."""
    odd = rows(3).set_column(
        3,
        "scores",
        pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, np.nan, np.inf, -np.inf, 4, 5, 6], pa.float32()), 3),
    )
    sink = here.sink("jsonl")
    sink.publish(0, staged(sink, 0, odd))
    ((_, data),) = here.files().items()
    assert json.loads(data.splitlines()[1])["scores"] == ["NaN", "Infinity", "-Infinity"]
    assert json.loads(data.splitlines()[2])["scores"] == [4, 5, 6]


def test_a_part_of_many_megabytes(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups and multipart pieces are put together in order."""
    monkeypatch.setattr(s3_folder, "PART_BYTES", 5 << 20)
    sink = here.sink("jsonl")
    done = staged(sink, 0, *(rows(30_000, at * 30_000) for at in range(6)))
    sink.publish(0, done)
    ((_, data),) = here.files().items()
    assert len(data) > 10 << 20
    assert [json.loads(line)["id"] for line in data.splitlines()[::1000]] == list(range(0, 180_000, 1000))


class TestRefusals:
    """Places that take nothing."""

    def test_a_file_where_the_folder_should_be(self, local: Here, tmp_path: Path) -> None:
        """Told when the batch is planned, with the URI."""
        (tmp_path / "data" / "out").write_bytes(b"")
        with pytest.raises(SinkError, match="data/out"):
            local.sink("csv").check(SCHEMA)

    @pytest.mark.parametrize("way", ["../out", "link/out", "%2e%2e/out"])
    def test_nothing_is_written_outside_the_roots(self, local: Here, tmp_path: Path, way: str) -> None:
        """Neither by dots nor by links."""
        (tmp_path / "data" / "link").symlink_to(tmp_path)
        with pytest.raises(SinkError, match="not below a folder"):
            open_sink(
                Output(uri=f"file://{tmp_path}/data/{way}", format="csv"), local.places, SinkContext(uuid.uuid4(), None)
            )

    def test_a_link_that_comes_later_is_not_followed(self, local: Here, tmp_path: Path) -> None:
        """A folder that becomes a link between check and write leads nowhere."""
        sink = local.sink("csv")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "data" / "out").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SinkError):
            sink.open(0, 1, SCHEMA).write(rows(1))
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_structures_do_not_fit_csv(self, local: Here) -> None:
        """Told when the batch is planned."""
        with pytest.raises(SinkError, match="structure"):
            local.sink("csv").check(pa.schema([("s", pa.struct([("a", pa.int64())]))]))

    def test_a_bucket_that_is_not_there(self, s3: ObjectStore) -> None:
        """Told when the batch is planned."""
        places = Places("file:///blobs", s3_endpoint_url=s3.endpoint)
        sink = open_sink(Output(uri="s3://nobody-has-this/x", format="csv"), places, SinkContext(uuid.uuid4(), None))
        with pytest.raises(SinkError, match="no such bucket"):
            sink.check(SCHEMA)

    @pytest.mark.parametrize(
        ("fate", "error"), [(403, SinkError), (503, SinkUnavailableError), ("stall", SinkUnavailableError)]
    )
    def test_an_s3_that_refuses_or_is_silent(
        self, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch, fate: int | str, error: type[Exception]
    ) -> None:
        """No permission is final; the rest may be tried again, and what was staged before can still be published."""
        monkeypatch.setattr(s3_client, "SILENCE_S", 1.0 if fate == "stall" else 10.0)
        monkeypatch.setattr(s3_client, "TRIES", 2)
        proxy = FaultProxy(s3.endpoint)
        try:
            bucket = s3.bucket()
            places = Places("file:///blobs", s3_endpoint_url=proxy.endpoint)
            sink = open_sink(Output(uri=f"s3://{bucket}/o", format="csv"), places, SinkContext(uuid.uuid4(), None))
            part = sink.open(0, 1, SCHEMA)
            part.write(rows(5))
            proxy.rule = lambda method, _path: fate if method == "PUT" else None
            with pytest.raises(error) as told:
                part.stage()
            assert type(told.value) is error
            proxy.rule = lambda _method, _path: None
            part.abort()
            done = staged(sink, 0, rows(5))
            proxy.rule = lambda method, _path: fate if method == "POST" else None
            with pytest.raises(error):
                sink.publish(0, done)
            proxy.rule = lambda _method, _path: None
            sink.publish(0, done)
            assert len(s3.keys(bucket)) == 1
            assert not s3.uploads(bucket)
        finally:
            proxy.close()

    @pytest.mark.parametrize("kind", FORMATS)
    def test_a_full_disk_is_told_and_leaves_nothing(self, tmp_path: Path, kind: str) -> None:
        """No room: SinkError saying so, no part visible, nothing left behind after the abort."""
        script = f"""
import resource, signal, sys, uuid
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path[:0] = {sys.path!r}
import sink_rows
import test_data_sinks as t
from batchline.errors import SinkError
from pathlib import Path
here = t._local(Path({str(tmp_path)!r}))
part = here.sink({kind!r}).open(0, 1, sink_rows.SCHEMA)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    for at in range(20):
        part.write(sink_rows.rows(20_000, at * 20_000))
    part.stage()
except SinkError as e:
    part.abort()
    print(e.detail, here.files(), here.hidden())
"""
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parent,
            check=False,
        )
        assert "the disk is full" in done.stdout, done.stderr
        assert done.stdout.strip().endswith("{} []")
