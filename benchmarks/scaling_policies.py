"""Scaling policies over five simulated days at one target of waiting: ours, rivals at their best, the clairvoyant."""

from __future__ import annotations

import time

from autoscaler.policies import DrainTime
from autoscaler.signals import Limits
from autoscaler.simulate.compare import OURS_EVERY_S, Comparison, Target, compare, table, totals
from autoscaler.simulate.engine import simulate
from autoscaler.simulate.fleet import World
from autoscaler.simulate.trace import DAY_S, SHAPES
from benchmarks.harness import Bench, Goal, Report, Sample

SUMMARY = "worker-hours of drain_time, KEDA's and Cortex's rule, and a lower bound, over five simulated days"
ROWS = 1e9
WORKERS = 10_000


def _samples(found: list[Comparison]) -> dict[str, list[Sample]]:
    sides: dict[str, list[Sample]] = {name: [{}] for name in [*found[0].found, "lower bound"]}
    for one in found:
        name = one.trace.name
        for side, best in one.found.items():
            sides[side][0] |= {
                f"{name}, worker-hours": best.result.worker_hours,
                f"{name}, p95 s": best.result.wait_p95_s,
                f"{name}, deadlines missed": best.result.missed,
            }
        sides["lower bound"][0][f"{name}, worker-hours"] = one.bound.worker_hours
    for side, hours in totals(found).items():
        sides[side][0]["sum, worker-hours"] = hours
    return sides


def _large() -> Sample:
    """A day of 10^9 rows on up to 10,000 workers."""
    trace = SHAPES["day"](ROWS / DAY_S, 1)
    start = time.perf_counter()
    result = simulate(trace, DrainTime(), Limits(max_workers=WORKERS), World(rows_per_s=2.0), OURS_EVERY_S)
    return {"simulated in s": time.perf_counter() - start, "rows": trace.rows, "peak workers": result.peak,
            "worker-hours": result.worker_hours, "p95 s": result.wait_p95_s}  # fmt: skip


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    target, world = Target(), World()
    found = compare(target, world, say=bench.say)
    samples = _samples(found)
    figures = tuple(dict.fromkeys(figure for side in samples.values() for figure in side[0]))
    large = _large()
    sums = totals(found)
    ours = sums["drain_time"]
    worst = max(one.found["drain_time"].result.wait_p95_s for one in found)
    missed = sum(one.found["drain_time"].result.missed for one in found if one.bound.late_rows < 1.0)
    return Report(
        "scaling_policies",
        samples,
        figures,
        [
            Goal("drain_time : KEDA's rule at its best, worker-hours", ours / sums["keda"], 0.8, at_least=False),
            Goal("drain_time : Cortex's at its best", ours / sums["target_in_flight"], 0.8, at_least=False),
            Goal("drain_time : clairvoyant lower bound", ours / sums["lower bound"], 1.3, at_least=False),
            Goal("highest p95 wait of drain_time", worst, target.wait_s, at_least=False, unit="s"),
            Goal("deadlines missed that the bound meets", missed, 0, at_least=False, unit=""),
            Goal("10^9 rows, 10,000 workers simulated", large["simulated in s"], 300, at_least=False, unit="s"),
        ],
        table(found).splitlines(),
        {"target": repr(target), "world": repr(world), "large": large},
    )
