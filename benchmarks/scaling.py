"""Two API and two worker processes against one of each, on the load of `throughput`."""

from __future__ import annotations

import functools
import os

from benchmarks.harness import Bench, Goal, Report, durability, interleave, turn
from benchmarks.product import product

SUMMARY = "2 API + 2 worker processes against 1 + 1: jobs/s must not shrink"


def cores(report: Report, side: str) -> str:
    """Where the CPU went: cores used by each process on average, the client's and those of others included."""
    jobs_per_s, end = report.median(side, "jobs_per_s"), "_cpu_ms_per_job"
    used = {
        key.removesuffix(end): report.median(side, key) * jobs_per_s / 1e3
        for key in report.samples[side][0]
        if key.endswith(end)
    }
    used["others"] = report.median(side, "others_cores") - used.get("client", 0.0)
    most = sorted(used.items(), key=lambda item: -item[1])
    return f"{sum(used.values()):.2f} of {os.cpu_count()}: " + ", ".join(f"{name} {n:.2f}" for name, n in most)


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    with (
        product(bench.digits, bench.folder / "one", apis=1, workers=1) as one,
        product(bench.digits, bench.folder / "two", apis=2, workers=2) as two,
    ):
        sides = {
            name: functools.partial(turn, bench.load("product", side.ports, key=side.key), side.processes)
            for name, side in {"1 + 1": one, "2 + 2": two}.items()
        }
        facts: dict[str, object] = {"postgres": durability(one.database_url)}
        samples = interleave(sides, bench)
    report = Report("scaling", samples, ("jobs_per_s", "p50_ms", "p99_ms"), facts=facts)
    ratio = report.ratio("jobs_per_s", "2 + 2", "1 + 1")
    report.notes += [f"cores at work, {side}: {cores(report, side)}" for side in samples]
    report.goals.append(Goal("jobs/s, 2 + 2 : 1 + 1", ratio, 1.0))
    return report
