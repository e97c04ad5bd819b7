"""`python -m benchmarks.s3_requests`: what reading a data set asks of S3, by kind of request, and what 30 ms each cost.

A moto server behind a proxy that counts and delays; planned and read as scheduler and worker do, 3 columns of 31.
"""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from batchline.batch import Input, Piece
from batchline.data import open_source
from batchline.data.contract import Places, Source
from benchmarks.batch_s3 import CREDENTIALS, client, moto_server

ROWS, SLICE_ROWS, GROUP_ROWS = 200_000, 20_000, 10_000
COLUMNS = ["f3", "f14", "f27"]
DELAY_S = 0.03


class Proxy:
    """Passes requests on, later by `delay_s`, and counts them."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.kinds: Counter[str] = Counter()
        self.bytes = 0

    def take(self) -> str:
        """What was asked for since the last call."""
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        told = f"{told or 'nothing'}; {self.bytes / 1e6:.2f} MB"
        self.kinds, self.bytes = Counter(), 0
        return told


@contextmanager
def counted(target: str) -> Generator[tuple[Proxy, str]]:
    """A proxy before host:port, and its URL."""
    proxy, own = Proxy(), threading.local()

    class Handler(BaseHTTPRequestHandler):
        protocol_version: ClassVar[str] = "HTTP/1.1"
        wbufsize = -1

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(proxy.delay_s)
            if not hasattr(own, "connection"):
                own.connection = HTTPConnection(target)
            own.connection.request(self.command, self.path, body, dict(self.headers))
            answer = own.connection.getresponse()
            data = answer.read()
            proxy.kinds["LIST" if "list-type=" in self.path else self.command] += 1
            proxy.bytes += len(data)
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(answer.headers.get("Content-Length", len(data))))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815 - http.server asks for these

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def fill(s3: Any) -> dict[str, str]:
    """Put the data sets; name -> key or prefix."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    random = np.random.default_rng(7)
    table = pa.table({"id": np.arange(ROWS), **{f"f{n}": random.random(ROWS, np.float32) for n in range(30)}})

    def parquet(part: Any, group_rows: int) -> bytes:
        out = io.BytesIO()
        pq.write_table(part, out, row_group_size=group_rows)
        return out.getvalue()

    def csv(part: Any) -> bytes:
        out = io.BytesIO()
        pyarrow.csv.write_csv(part, out)
        return out.getvalue()

    text = table.slice(0, ROWS // 4)
    bodies: dict[str, Callable[[], bytes]] = {
        "one.parquet": lambda: parquet(table, GROUP_ROWS),
        "group.parquet": lambda: parquet(table, ROWS),
        "rows.csv": lambda: csv(text),
        "rows.csv.gz": lambda: gzip.compress(csv(text), 1),
        "rows.jsonl": lambda: b"".join(orjson.dumps(row) + b"\n" for row in text.to_pylist()),
    }
    part = ROWS // 50
    bodies |= {f"many/{n:02}.parquet": lambda n=n: parquet(table.slice(n * part, part), 1000) for n in range(50)}
    s3.create_bucket(Bucket="bench")
    for key, body in bodies.items():
        s3.put_object(Bucket="bench", Key=key, Body=body())
    return {
        "Parquet, 20 row groups": "one.parquet", "Parquet, 50 files of 4 row groups": "many/",
        "Parquet, one row group": "group.parquet", "CSV": "rows.csv", "JSONL": "rows.jsonl", "CSV, gzip": "rows.csv.gz",
    }  # fmt: skip


def _source(endpoint: str, key: str) -> Source:
    places = Places("file:///nowhere", (), {}, endpoint)
    return open_source(Input(uri=f"s3://bench/{key}", format="parquet" if key.endswith("/") else None), places)


def plan(endpoint: str, key: str) -> tuple[list[Piece], float]:
    """As the scheduler does; the pieces, and seconds."""
    start = time.perf_counter()
    source = _source(endpoint, key)
    source.schema()
    return list(source.pieces(SLICE_ROWS)), time.perf_counter() - start


def read(endpoint: str, key: str, pieces: list[Piece]) -> float:
    """As one worker does that has all slices; seconds."""
    start = time.perf_counter()
    source = _source(endpoint, key)
    source.schema()
    rows = sum(some.batch.num_rows for piece in pieces for some in source.read(piece, COLUMNS, batch_rows=16384))
    if rows != sum(piece.rows for piece in pieces):
        raise RuntimeError(f"{key}: {rows} rows were read")
    return time.perf_counter() - start


def measure(table: Table, proxy: Proxy, endpoint: str, name: str, key: str) -> None:
    """One line: each step in a process of its own, which knows nothing of the data set yet."""
    seconds: dict[str, list[float]] = {"plan": [], "read": []}
    told = ["", ""]
    for proxy.delay_s in (0.0, DELAY_S):
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as fresh:
            pieces, spent = fresh.submit(plan, endpoint, key).result()
            told[0] = proxy.take()
            seconds["plan"].append(spent)
            seconds["read"].append(fresh.submit(read, endpoint, key, pieces).result())
            told[1] = proxy.take()
    clock = [f"{plain:.2f}, {late:.2f}" for plain, late in seconds.values()]
    table.add_row(name, told[0], clock[0], f"{len(pieces)}", told[1], clock[1])


def main() -> None:
    """Print one table."""
    os.environ.update(CREDENTIALS)
    table = Table("data set", "plan", "s; +30 ms each", "pieces", "read", "s; +30 ms each")
    with tempfile.TemporaryDirectory(prefix="batchline-bench-") as folder, moto_server(Path(folder)) as (_, target):
        sets = fill(client(target))
        with counted(target) as (proxy, endpoint):
            for name, key in sets.items():
                measure(table, proxy, endpoint, name, key)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
