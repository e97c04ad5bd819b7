"""Two workers against one on the batch of `batch_parquet`, with a net that is dear enough to be the limit."""

from __future__ import annotations

import contextlib
import functools

from benchmarks.batch_parquet import parquet_to_parquet
from benchmarks.harness import Bench, Goal, Report, durability, interleave
from benchmarks.product import product
from benchmarks.table import prepare

SUMMARY = "Parquet -> larger net -> Parquet, two worker processes against one: rows/s"
HIDDEN = (512, 512)


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    table, out = prepare(bench.folder / "table-dear", bench.rows, HIDDEN), bench.folder / "out"
    out.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        sides, facts = {}, dict[str, object]()
        for workers in (1, 2):
            ours = stack.enter_context(
                product(bench.digits, bench.folder / f"product{workers}", workers=workers,
                        models={"net": table.model}, settings={"BATCHLINE_DATA_ROOTS": str(bench.folder)})
            )  # fmt: skip
            sides[f"{workers} worker{'s' * (workers > 1)}"] = functools.partial(parquet_to_parquet, ours, table, out)
            facts["postgres"] = durability(ours.database_url)
        samples = interleave(sides, bench)
    report = Report("batch_workers", samples, ("rows_per_s", "seconds", "worker0_cpu_s", "worker1_cpu_s"), facts=facts)
    report.goals = [Goal("rows/s, 2 workers : 1", report.ratio("rows_per_s", "2 workers", "1 worker"), 1.6)]
    one = report.median("1 worker", "worker0_cpu_s") / report.median("1 worker", "seconds")
    report.notes.append(f"one worker alone keeps {one:.2f} cores busy: that is what two can add to")
    return report
