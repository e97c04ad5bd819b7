"""Files in a folder or on S3 that a source reads: put there, encoded in any format, read back."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from object_store import ObjectStore

from batchline.batch import Input
from batchline.data import open_source
from batchline.data.contract import Places, Rows, Source

ROWS = 5000


@dataclass
class Here:
    """Where a test's files lie."""

    places: Places
    root: str
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None]

    def source(self, name: str, kind: str | None = None) -> Source:
        return open_source(Input(uri=f"{self.root}/{name}", format=kind), self.places)


def on_s3(store: ObjectStore) -> Here:
    """In a bucket of its own."""
    bucket = store.bucket()
    return Here(
        Places("file:///nowhere/blobs", (), {}, store.endpoint),
        f"s3://{bucket}/in",
        lambda name, data: store.client.put_object(Bucket=bucket, Key=f"in/{name}", Body=data),
        lambda name: store.client.delete_object(Bucket=bucket, Key=f"in/{name}"),
    )


def on_disk(tmp_path: Path) -> Here:
    """In a folder, the only one that may be read."""
    root = tmp_path / "root"
    root.mkdir()

    def put(name: str, data: bytes) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)

    return Here(
        Places(f"file://{tmp_path}/blobs", (str(root),)), f"file://{root}", put, lambda name: (root / name).unlink()
    )


def table(rows: int = ROWS, start: int = 0) -> pa.Table:
    number = np.arange(start, start + rows)
    return pa.table(
        {
            "id": number,
            "f0": np.sin(number),
            "f1": [None if n % 7 == 0 else n / 4 for n in number.tolist()],
            "name": [f'row "{n}",\nof {n}' for n in number.tolist()],
        }
    )


def encoded(data: pa.Table, ending: str, *, group_rows: int = 1300) -> bytes:
    out = io.BytesIO()
    if ending.startswith("parquet"):
        pq.write_table(data, out, row_group_size=group_rows)
    elif ending.startswith("csv"):
        pacsv.write_csv(data, out)
    else:
        out.write(b"".join(json.dumps(row).encode() + b"\n" for row in data.to_pylist()))
    return gzip.compress(out.getvalue()) if ending.endswith(".gz") else out.getvalue()


def read_all(source: Source, slice_rows: int, columns: list[str] | None = None, batch_rows: int = 700) -> list[Rows]:
    return [rows for piece in source.pieces(slice_rows) for rows in source.read(piece, columns, batch_rows=batch_rows)]


def joined(got: list[Rows]) -> pa.Table:
    return pa.Table.from_batches([rows.batch for rows in got])
