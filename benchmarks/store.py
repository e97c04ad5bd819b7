"""The store alone: what a group saves over one at a time, and what a long queue costs a claim."""

from __future__ import annotations

import functools
import statistics
import time

from batchline.job import Lane
from benchmarks.harness import Bench, Goal, Report, Sample, durability, interleave
from benchmarks.processes import BenchmarkError
from benchmarks.rig import GROUP, Rig, rig

SUMMARY = "claim + finish in groups of 64 against one at a time; a claim from a long queue against a short one"
SHORT = 1_000
TURN_S = 2.0
CLAIMS = 100


def _claim_and_finish(one: Rig, size: int) -> Sample:
    """Jobs claimed and finished in groups of `size`, by one thread, from a queue filled before."""
    one.empty()
    one.fill(40 * GROUP if size == 1 else 400 * GROUP)
    claimer, spans, done = one.claimer(), list[float](), 0
    start = time.perf_counter()
    while time.perf_counter() - start < TURN_S:
        at = time.perf_counter()
        claim = claimer.claim(one.worker_id, one.model, Lane.ONLINE, rows=size)
        if len(claim.jobs) < size:
            break
        one.finish(claim.jobs)
        spans.append(time.perf_counter() - at)
        done += len(claim.jobs)
    return {"jobs_per_s": done / sum(spans), "p50_ms": statistics.median(spans) * 1e3, "jobs": float(done)}


def _claims(one: Rig) -> Sample:
    """The time of a claim of 64. The queue keeps its length: each group taken is finished, and a new one queued."""
    claimer, spans = one.claimer(), list[float]()
    for _ in range(CLAIMS):
        at = time.perf_counter()
        claim = claimer.claim(one.worker_id, one.model, Lane.ONLINE, rows=GROUP)
        spans.append(time.perf_counter() - at)
        if len(claim.jobs) != GROUP:
            raise BenchmarkError(f"a claim of {GROUP} brought {len(claim.jobs)} jobs")
        one.finish(claim.jobs)
        one.submit(GROUP)
    return {"p50_ms": statistics.median(spans) * 1e3, "mean_ms": statistics.fmean(spans) * 1e3}


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    with rig(bench, "groups", "short", "long") as (groups, short, long):
        facts: dict[str, object] = {"postgres": durability(groups.url)}
        sides = {"one": functools.partial(_claim_and_finish, groups, 1),
                 "groups": functools.partial(_claim_and_finish, groups, GROUP)}  # fmt: skip
        samples = interleave({f"{name} claimed + finished": turn for name, turn in sides.items()}, bench)
        short.fill(SHORT)
        start = time.perf_counter()
        long.fill(bench.queued)
        bench.say(f"  {bench.queued:,} jobs queued in {time.perf_counter() - start:.0f} s")
        lengths = {f"{SHORT:,} queued": short, f"{bench.queued:,} queued": long}
        samples |= interleave({name: functools.partial(_claims, one) for name, one in lengths.items()}, bench)
    report = Report("store", samples, ("jobs_per_s", "p50_ms", "mean_ms"), facts=facts)
    one, group, few, many = samples
    report.notes.append(f"postgres: {facts['postgres']}")
    report.goals = [
        Goal(f"jobs/s, claim + finish, groups of {GROUP} : one", report.ratio("jobs_per_s", group, one), 12.0),
        Goal(f"a claim of {GROUP}, {many} : {few}", report.ratio("p50_ms", many, few), 2.0, at_least=False),
    ]
    return report
