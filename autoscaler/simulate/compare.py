"""Policies side by side at one target: ours as it comes, rivals at their best for each trace, the lower bound."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from autoscaler.policies import DrainTime, Policy, QueueRule, TargetInFlight
from autoscaler.signals import Limits
from autoscaler.simulate.engine import Result, Simulation
from autoscaler.simulate.fleet import World
from autoscaler.simulate.fluid import Bound, bound
from autoscaler.simulate.rivals import Keda
from autoscaler.simulate.trace import SHAPES, Trace

OURS_EVERY_S = 10.0
KEDA_EVERY_S = 15.0
CORTEX_EVERY_S = 10.0
_HEAD = (
    f"{'trace':10} {'policy':17} {'worker-h':>9} {'p50 s':>7} {'p95 s':>7} {'p99 s':>7} {'missed':>6} "
    f"{'launches':>8} {'cost':>8}  best of"
)
_WAITS = (1.5, 1.0, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6)
"""The rivals' thresholds: rows queued for each worker, as a share of what it does within the target wait."""
_FLOORS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Their minimum of workers, as a share of what the trace's peak needs."""
_CEILINGS = (0.0, 1.0)
"""Their maximum, likewise; 0: the pool's."""


@dataclass(frozen=True, slots=True)
class Target:
    """What all policies must reach, and in which world.

    Attributes:
        wait_s: of online rows, at p95.
        max_workers: of the pool.
        load: of the generated traces, rows/s.
        seed: of the generated traces.
    """

    wait_s: float = 60.0
    max_workers: int = 100
    load: float = 1000.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """A policy's best run on a trace, and with which settings."""

    result: Result
    settings: str
    within: bool
    """p95 within the target and no batch late that the bound does in time."""
    tried: int = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """One trace: every policy's best, by name, and the bound."""

    trace: Trace
    bound: Bound
    found: dict[str, Found]


Setting = tuple[str, Policy, Limits, float]
"""What to call it, and what to simulate: policy, limits, seconds between two decisions."""


def compare(
    target: Target, world: World, traces: list[Trace] | None = None, say: Callable[[str], None] = print
) -> list[Comparison]:
    """Every policy on every trace.

    Args:
        target: to be reached by all.
        world: the same for all.
        traces: instead of the generated ones.
        say: told what goes on.
    """
    found = list[Comparison]()
    for trace in traces or [make(target.load, target.seed) for make in SHAPES.values()]:
        say(f"{trace.name}: {trace.rows:,.0f} rows")
        least = bound(trace, world, target.wait_s, target.max_workers)
        ours = DrainTime(target_wait_s=target.wait_s)
        settings = {
            "drain_time": iter([("as it comes", ours, Limits(max_workers=target.max_workers), OURS_EVERY_S)]),
            "keda": _keda(trace, world, target),
            "keda, any window": _keda_windows(trace, world, target),
            "target_in_flight": _cortex(trace, world, target),
            "queue": _queue(trace, world, target),
        }
        best = {name: search(trace, tries, target, world, least) for name, tries in settings.items()}
        found.append(Comparison(trace, least, best))
    return found


def search(trace: Trace, tries: Iterator[Setting], target: Target, world: World, least: Bound) -> Found:
    """The run with the fewest worker-hours that reaches the target; if none does, the one that misses it least."""
    best: Found | None = None
    count = 0
    for name, policy, limits, every_s in tries:
        count += 1
        bounds = (best.result.worker_hours, target.wait_s) if best and best.within else (math.inf, math.inf)
        result = Simulation(trace, policy, limits, world, every_s).run(*bounds)
        if result is None:
            continue
        in_time = result.late_rows <= max(least.late_rows, 1.0)
        one = Found(result, name, within=result.wait_p95_s <= target.wait_s and in_time)
        if best is None or _rank(one) < _rank(best):
            best = one
    if best is None:
        raise ValueError("nothing to try")
    return replace(best, tried=count)


def _rank(found: Found) -> tuple[float, ...]:
    if found.within:
        return (0.0, found.result.worker_hours)
    return (1.0, found.result.missed, found.result.wait_p95_s)


def _thresholds(world: World, target: Target) -> list[float]:
    return [share * target.wait_s * world.rows_per_s for share in _WAITS]


def _limits(trace: Trace, world: World, target: Target) -> Iterator[tuple[str, Limits]]:
    peak = trace.peak_rows_per_s() / world.rows_per_s
    for floor, ceiling in itertools.product(_FLOORS, _CEILINGS):
        low, high = round(floor * peak), min(target.max_workers, round(ceiling * peak)) or target.max_workers
        if low <= high:
            yield f"{low} to {high} workers", Limits(min_workers=low, max_workers=high)


def _keda(trace: Trace, world: World, target: Target) -> Iterator[Setting]:
    """Thresholds, minimum and maximum; with batches, with and without a trigger of their own."""
    bulk = (0.0, 900.0) if trace.batches else (0.0,)
    for (limited, limits), rows, bulk_s in itertools.product(
        _limits(trace, world, target), _thresholds(world, target), bulk
    ):
        bulk_rows = bulk_s * world.rows_per_s
        text = f"{rows:.0f} rows a pod, " + (f"{bulk_rows:.0f} of batches, " if bulk_rows else "") + limited
        yield text, Keda(rows_per_worker=rows, bulk_rows_per_worker=bulk_rows), limits, KEDA_EVERY_S


def _keda_windows(trace: Trace, world: World, target: Target) -> Iterator[Setting]:
    """Its scale-down stabilisation searched too, which is 300 s unless somebody sets it."""
    for name, policy, limits, every_s in _keda(trace, world, target):
        yield name, policy, limits, every_s
        if isinstance(policy, Keda) and limits.max_workers == target.max_workers:
            for window_s in (0.0, 60.0):
                changed = replace(policy, stabilisation_s=window_s)
                yield f"{name}, window {window_s:.0f} s", changed, limits, every_s


def _cortex(trace: Trace, world: World, target: Target) -> Iterator[Setting]:
    """Targets, minimum and maximum; as documented, and set to react as quickly as its documentation says it can."""
    for (limited, limits), rows in itertools.product(_limits(trace, world, target), _thresholds(world, target)):
        text = f"{rows:.0f} rows in flight, {limited}"
        quick = TargetInFlight(target=rows, window_s=10.0, up_stable_s=0.0, max_up_factor=10.0)
        yield f"{text}, quick", quick, limits, CORTEX_EVERY_S
        yield text, TargetInFlight(target=rows), limits, CORTEX_EVERY_S


def _queue(trace: Trace, world: World, target: Target) -> Iterator[Setting]:
    for (limited, limits), rows in itertools.product(_limits(trace, world, target), _thresholds(world, target)):
        if limits.max_workers == target.max_workers:
            yield f"{rows:.0f} rows a worker, {limited}", QueueRule(round(rows)), limits, OURS_EVERY_S


def table(comparisons: list[Comparison]) -> str:
    """Worker-hours, waits and missed deadlines by trace, the sums, and ours as a share of each."""
    names = list(comparisons[0].found)
    lines = [_HEAD]
    for one in comparisons:
        for name in names:
            found = one.found[name]
            r = found.result
            lines.append(
                f"{one.trace.name:10} {name:17} {r.worker_hours:9.1f} {r.wait_p50_s:7.1f} {r.wait_p95_s:7.1f} "
                f"{r.wait_p99_s:7.1f} {r.missed:6} {r.launches:8} {r.cost:8.2f}  {found.tried}: {found.settings}"
                + ("" if found.within else " (misses the target)")
            )
        lines.append(f"{one.trace.name:10} {'lower bound':17} {one.bound.worker_hours:9.1f}")
    sums = totals(comparisons)
    lines += [f"{'sum':10} {name:17} {hours:9.1f}  drain_time is {sums['drain_time'] / hours:.2f} of it"
              for name, hours in sums.items()]  # fmt: skip
    return "\n".join(lines)


def totals(comparisons: list[Comparison]) -> dict[str, float]:
    """Worker-hours over all traces, by policy and of the bound."""
    sums = {name: sum(c.found[name].result.worker_hours for c in comparisons) for name in comparisons[0].found}
    return sums | {"lower bound": sum(c.bound.worker_hours for c in comparisons)}
