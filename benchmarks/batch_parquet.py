"""A Parquet file scored into Parquet: against a loop written by hand and against Ray Data, each at its best."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks import loops
from benchmarks.harness import Bench, Goal, Report, Sample, durability, interleave
from benchmarks.product import Product, product
from benchmarks.ray_data import ray_data
from benchmarks.scoring import score
from benchmarks.table import Table

SUMMARY = "2 M rows x 30 columns, Parquet -> net -> Parquet: rows/s against a loop by hand and against Ray Data"
LOOP_ROWS = (4096, 16384, 65536)
RAY_ROWS = (4096, 16384, 65536)
_numbers = itertools.count()


def best(trial: Callable[[int], Sample], sizes: tuple[int, ...], bench: Bench, name: str) -> int:
    """The batch size with which a rival is fastest; the better of two trials each."""
    found = {size: max(trial(size)["rows_per_s"] for _ in range(2)) for size in sizes}
    for size, rows_per_s in found.items():
        bench.say(f"  {name}, {size} rows a batch: {rows_per_s:,.0f} rows/s")
    return max(found, key=found.__getitem__)


def parquet_to_parquet(ours: Product, table: Table, folder: Path) -> Sample:
    """One batch, file to file; its output is deleted."""
    target = folder / f"scores-{next(_numbers)}"
    body = {
        "model": "net",
        "input": {"uri": f"file://{table.rows}", "format": "parquet", "key": "id"},
        "output": {"uri": f"file://{target}", "format": "parquet"},
    }
    sample = score(ours, body, table.count)
    shutil.rmtree(target)
    return sample


def run(bench: Bench) -> Report:
    table = bench.table()
    out = bench.folder / "out"
    out.mkdir(exist_ok=True)

    def loop(batch_rows: int) -> Sample:
        return loops.run(
            loops.Loop("parquet", str(table.model), str(table.rows), str(out / "loop.parquet"), batch_rows)
        )

    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(ray_data(table, bench.folder / "ray"))
        loop_rows, ray_rows = best(loop, LOOP_ROWS, bench, "loop"), best(ray, RAY_ROWS, bench, "Ray Data")
        sides = {"loop": functools.partial(loop, loop_rows), "Ray Data": functools.partial(ray, ray_rows)}
        facts: dict[str, object] = {"loop_rows": loop_rows, "ray_rows": ray_rows, "rows": table.count}
        if not bench.peer_only:
            ours = stack.enter_context(
                product(bench.digits, bench.folder / "product", models={"net": table.model},
                        settings={"BATCHLINE_DATA_ROOTS": str(bench.folder)})
            )  # fmt: skip
            sides["batchline"] = functools.partial(parquet_to_parquet, ours, table, out)
            facts["postgres"] = durability(ours.database_url)
        samples = interleave(sides, bench)
    report = Report("batch_parquet", samples, ("rows_per_s", "seconds", "planned_s"), facts=facts)
    report.notes.append(f"rows a batch: loop {loop_rows}, Ray Data {ray_rows}; Ray's start is not counted")
    if not bench.peer_only:
        report.goals = [
            Goal("rows/s, batchline : loop", report.ratio("rows_per_s", "batchline", "loop"), 0.85),
            Goal("rows/s, batchline : Ray Data", report.ratio("rows_per_s", "batchline", "Ray Data"), 1.5),
        ]
    return report
