"""`python -m benchmarks [NAME ...]`: run benchmarks, print one readable table each, keep all samples as JSON."""

from __future__ import annotations

import argparse
import os
import sys
import time

from rich.console import Console

from benchmarks import (
    batch_online,
    batch_parquet,
    batch_postgres,
    batch_rss,
    batch_s3,
    batch_sql,
    batch_workers,
    latency,
    redis_memory,
    rows256,
    rss,
    scaling,
    scaling_policies,
    schedules,
    snapshot,
    store,
    throughput,
)
from benchmarks.harness import Bench, Report, machine, prepared, save, show
from benchmarks.processes import ROOT, BenchmarkError

JOBS = {
    "throughput": throughput,
    "scaling": scaling,
    "latency": latency,
    "rows256": rows256,
    "store": store,
    "snapshot": snapshot,
    "redis_memory": redis_memory,
    "rss": rss,
}
BATCHES = {
    "batch_parquet": batch_parquet,
    "batch_s3": batch_s3,
    "batch_postgres": batch_postgres,
    "batch_sql": batch_sql,
    "batch_workers": batch_workers,
    "batch_online": batch_online,
    "batch_rss": batch_rss,
    "schedules": schedules,
}
SIMULATED = {"scaling_policies": scaling_policies}
BENCHMARKS = JOBS | BATCHES | SIMULATED
GROUPS = {"jobs": list(JOBS), "batches": list(BATCHES), "simulated": list(SIMULATED)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:14} {module.SUMMARY}" for name, module in BENCHMARKS.items()),
    )  # fmt: skip
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a group (jobs, which is the default, batches, simulated) or one of them: " + ", ".join(BENCHMARKS),
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured seconds of a turn (default 5)")
    parser.add_argument("--peer-only", action="store_true", help="measure what Batchline is compared with, and not it")
    parser.add_argument("--queued", type=int, default=1_000_000, help="jobs in a long queue (default 1000000)")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long the snapshot is held (default 5)")
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs that RSS is watched over (default 100000)")
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of a batch (default 2000000)")
    chosen = parser.parse_args()
    chosen.names = [name for given in chosen.names or ["jobs"] for name in GROUPS.get(given, [given])]
    if unknown := set(chosen.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    return chosen


def _run(names: list[str], bench: Bench, console: Console) -> tuple[list[Report], bool]:
    """Run them one by one; one that cannot be run does not keep the others from it.

    Returns:
        the reports, and whether there is one of each.
    """
    reports, whole = list[Report](), True
    for name in names:
        console.print(f"{name}: {BENCHMARKS[name].SUMMARY}")
        start = time.perf_counter()
        try:
            if report := BENCHMARKS[name].run(bench):
                report.facts["took_s"] = round(time.perf_counter() - start, 1)
                reports.append(report)
        except BenchmarkError as error:
            console.print(f"{name} could not be run: {error}", style="red", markup=False)
            whole = False
    return reports, whole


def main() -> int:
    """Exit status: 0 all goals met, 1 one was missed, 2 a benchmark could not be run."""
    chosen = _arguments()
    console = Console()
    facts = machine()
    options = {"rounds": chosen.rounds, "measured_s": chosen.seconds, "peer_only": chosen.peer_only,
               "queued": chosen.queued, "held_s": chosen.minutes * 60, "jobs": chosen.jobs,
               "rows": chosen.rows}  # fmt: skip
    with prepared(**options, say=console.print) as bench:
        reports, whole = _run(chosen.names, bench, console)
    facts["load_average_after"] = os.getloadavg()[0]
    show(facts, reports, console)
    console.print(f"all samples: {save(facts, reports).relative_to(ROOT)}")
    if not whole:
        return 2
    return 0 if all(goal.met for report in reports for goal in report.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
