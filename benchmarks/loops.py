"""What a batch is compared with: the loops that one writes by hand, each in a process of its own.

`python -m benchmarks.loops` reads one Loop as JSON from stdin and prints one sample as JSON. One thread of ONNX
Runtime, as the worker has; pyarrow's threads as it sets them itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.harness import Sample
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.table import COLUMNS

FEATURES = [f"f{i}" for i in range(COLUMNS)]


class Loop(msgspec.Struct):
    """One run of one loop: `parquet` (file to file), `s3` (objects to an object), `sql` (table to table), `copy` (rows
    into a table)."""

    kind: str
    model: str
    source: str
    target: str
    batch_rows: int
    database_url: str = ""
    endpoint: str = ""
    """host:port of an S3."""


def run(loop: Loop, *, within_s: float = 900.0) -> Sample:
    """Run one loop in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loops"], input=msgspec.json.encode(loop), capture_output=True, cwd=ROOT,
        timeout=within_s, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"the loop {loop.kind} failed: {done.stderr.decode()[-1500:]}")
    return msgspec.json.decode(done.stdout)


def _session(path: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["label", "probabilities"], {"features": x})


def _lists(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def parquet(loop: Loop) -> int:
    """iter_batches -> ONNX Runtime -> ParquetWriter; rows done."""
    import pyarrow.parquet as pq

    return _scored(loop, [pq.ParquetFile(loop.source)], loop.target)


def s3(loop: Loop) -> int:
    """The same over pyarrow's own S3, column chunks fetched ahead; rows done."""
    import pyarrow.fs
    import pyarrow.parquet as pq

    place = pyarrow.fs.S3FileSystem(
        endpoint_override=loop.endpoint, scheme="http", access_key="bench", secret_key="bench", region="us-east-1"
    )
    found = place.get_file_info(pyarrow.fs.FileSelector(loop.source))
    files = (pq.ParquetFile(place.open_input_file(at.path), pre_buffer=True) for at in sorted(found, key=_path))
    with place.open_output_stream(loop.target) as target:
        return _scored(loop, files, target)


def _path(found: Any) -> str:
    return found.path


def _scored(loop: Loop, files: Iterable[Any], target: Any) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    predict = _session(loop.model)
    schema = pa.schema([("id", pa.int64()), ("label", pa.int64()), ("probabilities", pa.list_(pa.float32(), 2))])
    done = 0
    with pq.ParquetWriter(target, schema) as writer:
        for batch in (batch for file in files for batch in file.iter_batches(loop.batch_rows)):
            x = np.column_stack([batch.column(name).to_numpy() for name in FEATURES])
            label, probabilities = predict(x)
            columns = [batch.column("id"), pa.array(label), _lists(probabilities)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            done += batch.num_rows
    return done


def _fetched(connection: Any, table: str, batch_rows: int) -> Iterator[list[tuple[Any, ...]]]:
    with connection.cursor(name="rows") as cursor:
        cursor.itersize = batch_rows
        cursor.execute(f"SELECT id, {', '.join(FEATURES)} FROM {table}")
        while rows := cursor.fetchmany(batch_rows):
            yield rows


def sql(loop: Loop) -> int:
    """Server-side cursor -> ONNX Runtime -> COPY to a temporary table -> upsert; rows done."""
    import io

    import psycopg2

    predict = _session(loop.model)
    done = 0
    reading, writing = psycopg2.connect(loop.database_url), psycopg2.connect(loop.database_url)
    with writing.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE fresh (LIKE {loop.target})")
        for rows in _fetched(reading, loop.source, loop.batch_rows):
            values = np.array(rows, np.float64)
            label, probabilities = predict(values[:, 1:].astype(np.float32))
            lines = [
                f"{int(key)}\t{n}\t{{{p[0]},{p[1]}}}\n"
                for key, n, p in zip(values[:, 0].tolist(), label.tolist(), probabilities.tolist(), strict=True)
            ]
            cursor.execute("TRUNCATE fresh")
            cursor.copy_expert("COPY fresh FROM STDIN", io.StringIO("".join(lines)))
            cursor.execute(
                f"INSERT INTO {loop.target} SELECT * FROM fresh ON CONFLICT (id) DO UPDATE"
                " SET label = excluded.label, probabilities = excluded.probabilities"
            )
            writing.commit()
            done += len(rows)
    return done


def copy(loop: Loop) -> int:
    """The result rows of a finished Parquet run into a table by COPY, and nothing else; rows done."""
    import io

    import psycopg2
    import pyarrow.parquet as pq

    done = 0
    connection = psycopg2.connect(loop.database_url)
    with connection.cursor() as cursor:
        for batch in pq.ParquetFile(loop.source).iter_batches(loop.batch_rows):
            keys, labels = batch.column("id").to_pylist(), batch.column("label").to_pylist()
            lists = batch.column("probabilities").to_pylist()
            lines = [f"{k}\t{n}\t{{{p[0]},{p[1]}}}\n" for k, n, p in zip(keys, labels, lists, strict=True)]
            cursor.copy_expert(f"COPY {loop.target} FROM STDIN", io.StringIO("".join(lines)))
            connection.commit()
            done += batch.num_rows
    return done


def main() -> None:
    loop = msgspec.json.decode(sys.stdin.buffer.read(), type=Loop)
    Path(loop.target).unlink(missing_ok=True)
    start = time.perf_counter()
    rows = {"parquet": parquet, "s3": s3, "sql": sql, "copy": copy}[loop.kind](loop)
    spent_s = time.perf_counter() - start
    sys.stdout.buffer.write(msgspec.json.encode({"rows_per_s": rows / spent_s, "seconds": spent_s, "rows": rows}))


if __name__ == "__main__":
    main()
