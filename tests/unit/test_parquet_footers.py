"""Footers of Parquet files are gone with the reader that needed them."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchline.data import parquet_files
from batchline.data.local_place import LocalPlace


@contextmanager
def _no_collector() -> Generator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _footers() -> int:
    return sum(isinstance(o, pq.FileMetaData) for o in gc.get_objects())


def test_no_footer_waits_for_a_full_collection(tmp_path: Path) -> None:
    """A file of thousands of row groups has a footer of many MiB: slices that have been read leave none behind each."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": range(100), "x": [0.5] * 100}), path, row_group_size=10)
    file = LocalPlace((str(tmp_path),), hidden=None).open(path.as_uri())
    with _no_collector():
        before = _footers()
        for group in range(10):
            batches = parquet_files.read(file, (group, group + 1, 0, 10), 10, ["x"], 4)
            assert sum(rows.batch.num_rows for rows in batches) == 10
        left = _footers() - before
    file.close()
    assert left <= 1


def test_a_large_footer_is_decoded_once_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice of a file would decode it anew; of another version it is read again."""
    path, decoded, read = tmp_path / "rows.parquet", list[int](), pq.read_metadata

    def counted(file: pa.NativeFile) -> pq.FileMetaData:
        decoded.append(1)
        return read(file)

    monkeypatch.setattr(parquet_files, "_LARGE_BYTES", 1)
    monkeypatch.setattr(pq, "read_metadata", counted)
    place = LocalPlace((str(tmp_path),), hidden=None)
    for rows in (20, 30):
        pq.write_table(pa.table({"x": [0.5] * rows}), path, row_group_size=10)
        file = place.open(path.as_uri())
        for group in range(rows // 10):
            batches = parquet_files.read(file, (group, group + 1, 0, 10), 10, ["x"], 4)
            assert sum(batch.batch.num_rows for batch in batches) == 10
        file.close()
    assert len(decoded) == 2
