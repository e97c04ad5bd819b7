"""One suite for the blob store on file:// and s3://."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store

from batchline.batch import Input
from batchline.data import open_source, places_of
from batchline.data.blobs import Blobs
from batchline.data.contract import Places
from batchline.errors import SettingsError, SourceError, TooLargeError
from batchline.settings import Settings


@pytest.fixture(scope="module")
def s3() -> Generator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(params=["file", "s3"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    if request.param == "file":
        return Places(f"file://{tmp_path}/blobs")
    store: ObjectStore = request.getfixturevalue("s3")
    return Places(f"s3://{store.bucket()}/blobs", s3_endpoint_url=store.endpoint)


@pytest.fixture
def blobs(places: Places) -> Blobs:
    return Blobs(places)


def test_a_blob_is_read_as_it_was_written(blobs: Blobs) -> None:
    """Whole and by ranges, with size and sha256 told."""
    data = bytes(range(256)) * 50_000
    stored = blobs.put("input/file-1", (data[at : at + 70_000] for at in range(0, len(data), 70_000)))
    assert (stored.bytes, stored.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    with blobs.open("input/file-1") as blob:
        assert blob.size == len(data)
        assert blob.uri == "blob:input/file-1"
        assert b"".join(blob.chunks()) == data
        assert max(len(chunk) for chunk in blob.chunks(0, 5000, chunk_bytes=1000)) == 1000
        assert blob.read(1000, 300_000) == data[1000:300_000]
        assert blob.read(len(data) - 3, len(data) + 10) == data[-3:]


def test_an_empty_blob_is_one(blobs: Blobs) -> None:
    """A file of no bytes can be stored and read."""
    assert blobs.put("empty", []).bytes == 0
    with blobs.open("empty") as blob:
        assert blob.read() == b""


def test_nothing_is_left_of_what_was_not_finished(blobs: Blobs) -> None:
    """Too large, aborted, broken off by its own source: no blob and no leavings."""
    with pytest.raises(TooLargeError):
        blobs.put("large", [b"x" * 60, b"x" * 60], limit_bytes=100)
    upload = blobs.create("aborted")
    upload.write(b"x")
    upload.abort()
    upload.abort()

    def breaking() -> Iterator[bytes]:
        yield b"x"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        blobs.put("broken", breaking())
    for key in ("large", "aborted", "broken"):
        with pytest.raises(SourceError, match=rf"The file {key} is gone"):
            blobs.open(key)
    assert list(blobs.garbage(older_s=-60)) == []


def test_a_blob_is_replaced_whole_and_deleted_repeatably(blobs: Blobs) -> None:
    """The same key again replaces it; deleting twice is well."""
    blobs.put("a", [b"one"])
    blobs.put("a", [b"two, longer"])
    with blobs.open("a") as blob:
        assert blob.read() == b"two, longer"
    blobs.delete("a")
    blobs.delete("a")
    with pytest.raises(SourceError):
        blobs.open("a")


def test_old_blobs_are_listed(blobs: Blobs) -> None:
    """For the sweep: keys by age."""
    blobs.put("x/a", [b"1"])
    blobs.put("b", [b"1"])
    assert sorted(blobs.garbage(older_s=-60)) == ["b", "x/a"]
    assert list(blobs.garbage(older_s=3600)) == []


@pytest.mark.parametrize("key", ["", "../a", "a/../b", "/a", "a//b", ".a", "a/.b", "a\0", "ä", "x" * 501])
def test_keys_are_plain_names(blobs: Blobs, key: str) -> None:
    """A key cannot leave the store, whoever made it."""
    with pytest.raises(ValueError, match="no key"):
        blobs.open(key)


def test_a_blob_is_a_data_set(places: Places, blobs: Blobs) -> None:
    """Uploaded and inline rows: pieces name the key; the place of the store is told to nobody."""
    blobs.put("rows/1", [b'{"a":1}\n', b'{"a":2}\n'])
    source = open_source(Input(file="rows/1"), places)
    (piece,) = source.pieces(10)
    assert (piece.uri, piece.rows) == ("blob:rows/1", 2)
    (rows,) = source.read(piece, ["a"], batch_rows=10)
    assert rows.batch.column("a").to_pylist() == [1, 2]
    blobs.put("rows/1", [b'{"a":1}\n', b'{"a":20}\n'])
    with pytest.raises(SourceError, match="the uploaded file has changed"):
        list(source.read(piece, None, batch_rows=10))
    blobs.delete("rows/1")
    with pytest.raises(SourceError, match="submit it again"):
        list(source.read(piece, None, batch_rows=10))


def test_the_settings_name_the_places() -> None:
    """Roots, databases, store; what cannot be meant so is refused, without the DSN in the message."""
    places = places_of(Settings(data_roots="/a:/b", databases="main=postgresql://u:p@h/d other=postgresql://x/y"))
    assert places.data_roots == ("/a", "/b")
    assert places.databases == {"main": "postgresql://u:p@h/d", "other": "postgresql://x/y"}
    for wrong in (Settings(data_roots="a"), Settings(databases="postgresql://u:secret@h/d"), Settings(blobs="/tmp/x")):
        with pytest.raises(SettingsError) as told:
            places_of(wrong)
        assert "secret" not in told.value.detail
