"""`python -m autoscaler.simulate`: what a policy would cost and how long rows would wait, before it is switched on."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from autoscaler.guards import check
from autoscaler.policies import DrainTime, Policy, QueueRule, TargetInFlight
from autoscaler.signals import Limits
from autoscaler.simulate import plot
from autoscaler.simulate.compare import CORTEX_EVERY_S, KEDA_EVERY_S, OURS_EVERY_S, Target, compare, table, totals
from autoscaler.simulate.engine import Result, simulate
from autoscaler.simulate.fleet import World
from autoscaler.simulate.rivals import Keda
from autoscaler.simulate.trace import SHAPES, Trace, load
from batchline.errors import BatchlineError, InvalidRequestError

POLICIES = ("drain_time", "queue", "target_in_flight", "keda")


def main(arguments: list[str]) -> int:
    given = _parser().parse_args(arguments)
    world = World(
        given.rows_per_s, given.start_s, given.billing_s, price_per_hour=given.price,
        interruptions_per_hour=given.interruptions, capacity_errors=given.capacity_errors, seed=given.seed,
    )  # fmt: skip
    limits = Limits(given.min_workers, given.max_workers)
    check(limits)
    if given.compare:
        return _compare(given, world)
    trace = _trace(given)
    began = time.perf_counter()
    results = [_run(name, trace, limits, world, given) for name in given.policy or POLICIES[:1]]
    took_s = time.perf_counter() - began
    if given.plot:
        plot.draw(trace, results, given.plot)
    if given.json:
        sys.stdout.write(json.dumps({"trace": trace.name, "rows": trace.rows, "runs": [_figures(r) for r in results]}))
        sys.stdout.write("\n")
        return 0
    sys.stdout.write(
        f"{trace.name}: {trace.rows:,.0f} rows in {trace.seconds / 3600:.1f} h, simulated in {took_s:.1f} s\n"
    )
    for result in results:
        sys.stdout.write(_told(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="batchline autoscaler simulate", description=__doc__)
    add = parser.add_argument
    add("--trace", default="day", help=f"a CSV (at_s, rows, due_s) or one of {', '.join(SHAPES)} (default day)")
    add("--policy", action="append", choices=POLICIES, help="may be given several times (default drain_time)")
    add("--plot", type=Path, help="draw queue, workers and cost into this .png or .svg")
    add("--compare", action="store_true", help="rivals at their best and the lower bound; all shapes, or --trace's CSV")
    add("--json", action="store_true", help="one JSON document")
    add("--wait-s", type=float, default=60.0, help="target of the p95 wait (default 60)")
    add("--load", type=float, default=1000.0, help="rows/s of generated traces, about the mean (default 1000)")
    add("--rows-per-s", type=float, default=50.0, help="of one busy worker (default 50)")
    add("--start-s", type=float, default=60.0, help="from launch to the first claim (default 60)")
    add("--billing-s", type=float, default=60.0, help="a worker costs at least this long (default 60)")
    add("--price", type=float, default=0.5, help="of a worker's hour (default 0.5)")
    add("--min-workers", type=int, default=0)
    add("--max-workers", type=int, default=100)
    add("--interruptions", type=float, default=0.0, help="of a worker, per hour (default 0)")
    add("--capacity-errors", type=float, default=0.0, help="share of launches that are refused (default 0)")
    add("--seed", type=int, default=1)
    return parser


def _trace(given: argparse.Namespace) -> Trace:
    if given.trace in SHAPES:
        return SHAPES[given.trace](given.load, given.seed)
    path = Path(given.trace)
    if not path.exists():
        raise InvalidRequestError(f"no file {path}, and no shape of that name; there are {', '.join(SHAPES)}")
    return load(path)


def _run(name: str, trace: Trace, limits: Limits, world: World, given: argparse.Namespace) -> Result:
    """One policy; the rivals' thresholds are half the target wait of work for each worker."""
    rows = given.wait_s / 2 * world.rows_per_s
    policies: dict[str, tuple[Policy, float]] = {
        "drain_time": (DrainTime(target_wait_s=given.wait_s), OURS_EVERY_S),
        "queue": (QueueRule(rows_per_worker=max(1, round(rows))), OURS_EVERY_S),
        "target_in_flight": (TargetInFlight(target=rows), CORTEX_EVERY_S),
        "keda": (Keda(rows_per_worker=rows), KEDA_EVERY_S),
    }
    policy, every_s = policies[name]
    return simulate(trace, policy, limits, world, every_s)


def _figures(result: Result) -> dict[str, object]:
    curves = ("queue", "live", "pending", "spent", "trace", "step_s")
    return {key: value for key, value in asdict(result).items() if key not in curves}


def _told(result: Result) -> str:
    return (
        f"{result.policy}\n"
        f"  wait         p50 {result.wait_p50_s:.1f} s, p95 {result.wait_p95_s:.1f} s, p99 {result.wait_p99_s:.1f} s\n"
        f"  deadlines    {result.missed} missed, {result.late_rows:,.0f} rows late\n"
        f"  worker-hours {result.worker_hours:,.1f}, at most {result.peak:,} at once\n"
        f"  cost         {result.cost:,.2f}\n"
        f"  launches     {result.launches:,}, {result.interrupted:,} interrupted, {result.refused:,} refused, "
        f"{result.turns:,} changes of direction\n"
    )


def _note(line: str) -> None:
    sys.stderr.write(line + "\n")


def _compare(given: argparse.Namespace, world: World) -> int:
    target = Target(given.wait_s, given.max_workers, given.load, given.seed)
    traces = None if given.trace in SHAPES else [_trace(given)]
    found = compare(target, world, traces, _note)
    if given.json:
        sums = totals(found)
        rows = {
            c.trace.name: {n: _figures(f.result) | {"settings": f.settings} for n, f in c.found.items()} for c in found
        }
        sys.stdout.write(json.dumps({"traces": rows, "worker_hours": sums}) + "\n")
    else:
        sys.stdout.write(table(found) + "\n")
    if given.plot:
        for one in found:
            path = given.plot.with_stem(f"{given.plot.stem}-{one.trace.name}") if len(found) > 1 else given.plot
            plot.draw(one.trace, [f.result for f in one.found.values()], path, one.bound)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BatchlineError as e:
        sys.exit(f"autoscaler simulate: {e.detail}")
