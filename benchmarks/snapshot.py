"""A snapshot held open while jobs come and go: dead rows pile up where claims begin, and no vacuum may take them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Generator
from dataclasses import dataclass

import psycopg2

from batchline.job import Lane
from benchmarks.harness import Bench, Goal, Report, Sample, durability
from benchmarks.processes import BenchmarkError
from benchmarks.rig import GROUP, POOL, Rig, rig, sql
from workers.claiming import Claimer

SUMMARY = "a snapshot held open for minutes under a steady load: cost of a claim at its end against before"
BACKLOG = 500
TICK_S = 0.1
WINDOW_S = 15.0


@dataclass
class Side:
    """A database under load, and the worker's claimer that serves it."""

    rig: Rig
    claimer: Claimer

    def tick(self) -> float:
        """Submit a group, claim one, finish it. Returns the seconds that choosing and claiming took."""
        self.rig.submit(GROUP)
        at = time.perf_counter()
        head = self.claimer.choose(self.rig.worker_id, Lane.ONLINE, lambda _: True, may_load=True)
        if head is None:
            raise BenchmarkError("the worker saw an empty queue, which was full")
        claim = self.claimer.claim(self.rig.worker_id, self.rig.model, Lane.ONLINE, rows=GROUP)
        took = time.perf_counter() - at
        if len(claim.jobs) != GROUP:
            raise BenchmarkError(f"a claim of {GROUP} brought {len(claim.jobs)} jobs")
        self.rig.finish(claim.jobs)
        return took


def window(sides: dict[str, Side], seconds: float) -> dict[str, Sample]:
    """Both sides in turn at a steady rate; what a claim cost on each."""
    spans: dict[str, list[float]] = {name: [] for name in sides}
    start, n = time.perf_counter(), 0
    while (now := time.perf_counter() - start) < seconds:
        if now < n * TICK_S:
            time.sleep(n * TICK_S - now)
        for name, side in sides.items():
            spans[name].append(side.tick())
        n += 1
    return {name: _sample(side.rig, spans[name], seconds) for name, side in sides.items()}


def _sample(one: Rig, spans: list[float], seconds: float) -> Sample:
    ms = sorted(s * 1e3 for s in spans)
    with sql(one.url) as cursor:
        cursor.execute(
            "SELECT n_dead_tup, pg_relation_size('jobs_claim') FROM pg_stat_user_tables WHERE relname='jobs'"
        )
        dead, index_bytes = cursor.fetchone()
    return {
        "jobs_per_s": len(ms) * GROUP / seconds, "mean_ms": statistics.fmean(ms), "p50_ms": statistics.median(ms),
        "p99_ms": ms[int(len(ms) * 0.99)], "dead_rows": float(dead), "index_mb": index_bytes / 2**20,
    }  # fmt: skip


@contextlib.contextmanager
def held(url: str) -> Generator[None]:
    """A transaction that reads once and then sits there, as a forgotten console or a long dump does."""
    connection = psycopg2.connect(url)
    connection.set_session(isolation_level="REPEATABLE READ")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        yield
        if connection.closed or connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_INTRANS:
            raise BenchmarkError("the snapshot was lost")
    finally:
        connection.close()


def explain(side: Side) -> str:
    """What a claim from the very beginning of the queue reads: the plan of the look that no floor helps."""
    with sql(side.rig.url) as cursor:
        cursor.execute(
            "EXPLAIN (ANALYZE, BUFFERS) SELECT rank FROM jobs WHERE model_id = %s AND lane = 'online' AND rank >= 0"
            " AND status = 'queued' AND run_at IS NULL AND NOT suspect ORDER BY rank LIMIT 1",
            (side.rig.model.id,),
        )
        return "\n".join(row[0] for row in cursor.fetchall())


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    with rig(bench, "held", "free") as rigs:
        sides = {one.url.rpartition("/")[2]: Side(one, one.claimer()) for one in rigs}
        facts: dict[str, object] = {"postgres": durability(rigs[0].url), "pool": POOL}
        for one in rigs:
            one.fill(BACKLOG)
        window(sides, 5.0)
        series = [window(sides, WINDOW_S) for _ in range(2)]
        with held(rigs[0].url):
            until = time.perf_counter() + max(bench.held_s, 2 * WINDOW_S)
            while (left := until - time.perf_counter()) > WINDOW_S / 2:
                series.append(window(sides, min(WINDOW_S, left)))
                bench.say(f"  {left:.0f} s to go, " + "; ".join(f"{k}: {_brief(v)}" for k, v in series[-1].items()))
            facts["plan_at_the_end"] = explain(sides["held"])
        series += [window(sides, WINDOW_S) for _ in range(2)]
    return _report(series, facts, bench.held_s)


def _brief(sample: Sample) -> str:
    return f"claim {sample['mean_ms']:.1f} ms, {sample['dead_rows']:,.0f} dead rows"


def _report(series: list[dict[str, Sample]], facts: dict[str, object], held_s: float) -> Report:
    places = {"before": slice(0, 2), "at the end": slice(-4, -2), "after": slice(-2, None)}
    samples = {f"{k}, {side}": [w[side] for w in series[at]] for side in ("held", "free") for k, at in places.items()}
    facts["series"] = series
    report = Report(
        "snapshot", samples, ("jobs_per_s", "mean_ms", "p50_ms", "p99_ms", "dead_rows", "index_mb"), facts=facts
    )
    for side in ("held", "free"):
        ratio = report.ratio("mean_ms", f"at the end, {side}", f"before, {side}")
        if side == "free":
            report.notes.append(f"the same load without a snapshot, on the same server: {ratio:.2f} ×")
        else:
            text = f"choose + claim on average, {held_s / 60:g} min into a snapshot : before"
            report.goals.append(Goal(text, ratio, 3.0, at_least=False))
            kept = report.ratio("jobs_per_s", f"at the end, {side}", f"before, {side}")
            report.goals.append(Goal("jobs/s through submit, claim and finish, at its end : before", kept, 0.95))
    return report
