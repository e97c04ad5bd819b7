"""Parquet on S3 scored into Parquet on S3, through a moto server, against a loop written by hand on the same server."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from batchline.local.servers import free_port
from benchmarks import loops, table
from benchmarks.harness import Bench, Goal, Report, Sample, durability, interleave
from benchmarks.processes import Process, answers, running, until
from benchmarks.product import Product, product
from benchmarks.scoring import score

SUMMARY = "400,000 rows x 30 columns, Parquet on S3 (moto) -> net -> Parquet on S3: rows/s against a loop by hand"
ROWS = 400_000
LOOP_ROWS = 16384
_BUCKET = "bench"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
_numbers = itertools.count()


@contextlib.contextmanager
def moto_server(folder: Path) -> Generator[tuple[Process, str]]:
    """An S3 in a process of its own, and its host:port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running("moto", command, folder) as process:
        until(lambda: answers(f"http://127.0.0.1:{port}/moto-api/"), process)
        yield process, f"127.0.0.1:{port}"


def client(endpoint: str) -> Any:
    import boto3

    key, secret, region = CREDENTIALS.values()
    return boto3.client(
        "s3", endpoint_url=f"http://{endpoint}", aws_access_key_id=key, aws_secret_access_key=secret, region_name=region
    )


def _fill(s3: Any, rows: Path) -> None:
    """One object for each row group of the file."""
    import pyarrow.parquet as pq

    s3.create_bucket(Bucket=_BUCKET)
    file = pq.ParquetFile(rows)
    for group in range(file.num_row_groups):
        body = io.BytesIO()
        pq.write_table(file.read_row_group(group), body)
        s3.put_object(Bucket=_BUCKET, Key=f"in/rows-{group:03}.parquet", Body=body.getvalue())


def _emptied(s3: Any, prefix: str) -> None:
    for entry in s3.list_objects_v2(Bucket=_BUCKET, Prefix=prefix).get("Contents", []):
        s3.delete_object(Bucket=_BUCKET, Key=entry["Key"])


def _with_moto(turn: Callable[[str], Sample], s3: Any, moto: Process) -> Sample:
    """One turn, and the share of a core that the S3 itself took meanwhile."""
    target, before = f"out-{next(_numbers)}", moto.cpu_s()
    sample = turn(target)
    sample["moto_cores"] = (moto.cpu_s() - before) / sample["seconds"]
    _emptied(s3, target)
    return sample


def _loop(model: Path, endpoint: str, target: str) -> Sample:
    loop = loops.Loop("s3", str(model), f"{_BUCKET}/in", f"{_BUCKET}/{target}/loop.parquet", LOOP_ROWS)
    loop.endpoint = endpoint
    return loops.run(loop)


def _ours(ours: Product, target: str) -> Sample:
    body = {
        "model": "net",
        "input": {"uri": f"s3://{_BUCKET}/in/", "format": "parquet", "key": "id"},
        "output": {"uri": f"s3://{_BUCKET}/{target}/", "format": "parquet"},
    }
    return score(ours, body, ROWS)


def run(bench: Bench) -> Report:
    rows = table.prepare(bench.folder / "s3", ROWS)
    with contextlib.ExitStack() as stack:
        moto, endpoint = stack.enter_context(moto_server(bench.folder / "moto"))
        s3 = client(endpoint)
        _fill(s3, rows.rows)
        turns = {"loop": functools.partial(_loop, rows.model, endpoint)}
        facts: dict[str, object] = {"rows": ROWS, "loop_rows": LOOP_ROWS}
        if not bench.peer_only:
            settings = {"BATCHLINE_S3_ENDPOINT_URL": f"http://{endpoint}", **CREDENTIALS}
            ours = stack.enter_context(
                product(bench.digits, bench.folder / "product", models={"net": rows.model}, settings=settings)
            )
            turns["batchline"] = functools.partial(_ours, ours)
            facts["postgres"] = durability(ours.database_url)
        sides = {side: functools.partial(_with_moto, turn, s3, moto) for side, turn in turns.items()}
        samples = interleave(sides, bench)
    report = Report("batch_s3", samples, ("rows_per_s", "seconds", "planned_s", "moto_cores"), facts=facts)
    busy = ", ".join(f"{side} {report.median(side, 'moto_cores'):.2f}" for side in samples)
    report.notes.append(f"cores that moto itself took: {busy}; where it is about 1, moto is the bottleneck of both")
    if not bench.peer_only:
        report.goals = [Goal("rows/s, batchline : loop", report.ratio("rows_per_s", "batchline", "loop"), 0.8)]
    return report
