"""Two API and two worker processes against one of each, on the load of `throughput`."""

from __future__ import annotations

import functools

from benchmarks.harness import Bench, Goal, Report, durability, interleave, turn
from benchmarks.product import product

SUMMARY = "2 API + 2 worker processes against 1 + 1: jobs/s must not shrink"


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
    report.goals.append(Goal("jobs/s, 2 + 2 : 1 + 1", ratio, 1.0))
    return report
