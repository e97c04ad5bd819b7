"""Peak memory of a worker over a small and a large batch: equal, since it depends on the slice and not on the file."""

from __future__ import annotations

from pathlib import Path

from benchmarks.batch_parquet import parquet_to_parquet
from benchmarks.harness import Bench, Goal, Report, Sample
from benchmarks.processes import Process
from benchmarks.product import product
from benchmarks.table import Table, prepare

SUMMARY = "peak RSS of a worker, 20 M rows against 100 k"
SMALL, LARGE = 100_000, 20_000_000


def _peak_mib(process: Process) -> float:
    """The high-water mark that the kernel keeps."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024


def _once(bench: Bench, table: Table, name: str) -> Sample:
    """A fresh worker, one batch; peak and rows/s."""
    out = bench.folder / "out"
    out.mkdir(exist_ok=True)
    with product(bench.digits, bench.folder / name, models={"net": table.model},
                 settings={"BATCHLINE_DATA_ROOTS": str(bench.folder)}) as ours:  # fmt: skip
        sample = parquet_to_parquet(ours, table, out)
        worker = next(p for p in ours.processes if p.name == "worker0")
        return sample | {"peak_mib": _peak_mib(worker)}


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    samples: dict[str, list[Sample]] = {}
    for name, count in (("100 k rows", SMALL), ("20 M rows", LARGE)):
        table = prepare(bench.folder / f"table-{count}", count)
        samples[name] = [_once(bench, table, f"product-{count}")]
        table.rows.unlink()
        bench.say(f"  {name}: peak {samples[name][0]['peak_mib']:.0f} MiB")
    report = Report("batch_rss", samples, ("peak_mib", "rows_per_s", "seconds"))
    ratio = report.ratio("peak_mib", "20 M rows", "100 k rows")
    report.goals = [Goal("peak RSS, 20 M rows : 100 k", ratio, 1.1, at_least=False)]
    return report
