"""Redis with a million jobs queued and no worker: it holds hints, so it must stay small however long that lasts."""

from __future__ import annotations

import time
from typing import Any

import redis

from batchline.job import Lane
from batchline.metrics import NUDGES
from batchline.queue.celery_queue import CeleryNudger, queue_name
from batchline.queue.hints import Hints
from batchline.testing import ephemeral_valkey
from benchmarks.harness import Bench, Goal, Report, Sample, durability
from benchmarks.processes import BenchmarkError
from benchmarks.rig import POOL, rig, sql

SUMMARY = "Redis' used_memory with 1,000,000 jobs queued and their nudges sent, workers stopped"
GROUPS = 5_000
"""Groups the jobs were committed in; each nudges, as an API process does after its commit."""
SUBMITTED = 20
"""Of these, so many are committed through the store; the other jobs are queued by SQL."""
MIB = 2**20
_SEND_S = 5.0


def _counts() -> dict[str, float]:
    return {s.labels["outcome"]: s.value for m in NUDGES.collect() for s in m.samples if s.name.endswith("_total")}


def _nudge(nudger: CeleryNudger, *, force: bool) -> None:
    """Nudge once and wait for what became of it: nudges that come faster than they are sent are one."""
    before = sum(_counts().values())
    nudger.nudge(POOL, Lane.ONLINE, force=force)
    until = time.monotonic() + _SEND_S
    while sum(_counts().values()) == before:
        if time.monotonic() > until:
            raise BenchmarkError("a nudge was neither sent nor left out")
        time.sleep(0.0001)


def _sample(server: Any) -> Sample:
    memory = server.info("memory")
    messages = float(server.llen(queue_name(POOL, Lane.ONLINE)))
    return {"used_mib": memory["used_memory"] / MIB, "peak_mib": memory["used_memory_peak"] / MIB, "messages": messages}


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    with ephemeral_valkey() as valkey, rig(bench, "queued") as (one,):
        server: Any = redis.Redis.from_url(valkey.url)
        hints = Hints(valkey.url)
        nudger = CeleryNudger(valkey.url, hints)
        facts: dict[str, object] = {"postgres": durability(one.url)}
        samples = {"empty": [_sample(server)]}
        for _ in range(SUBMITTED):
            one.submit(bench.queued // GROUPS)
            _nudge(nudger, force=False)
        one.fill(bench.queued - SUBMITTED * (bench.queued // GROUPS))
        for _ in range(GROUPS - SUBMITTED):
            _nudge(nudger, force=False)
        samples["at once"] = [_sample(server)]
        # The same over hours: the marker, which lives 2 s, is gone each time, and the scheduler nudges by force.
        for n in range(GROUPS):
            hints.unmark(POOL, Lane.ONLINE)
            _nudge(nudger, force=n % 2 == 1)
        samples["over hours"] = [_sample(server)]
        facts["nudges"] = _counts()
        with sql(one.url) as cursor:
            cursor.execute("SELECT count(*) FROM jobs WHERE status = 'queued'")
            facts["queued"] = queued = cursor.fetchone()[0]
        nudger.close()
        hints.close()
        server.close()
    report = Report("redis_memory", samples, ("used_mib", "peak_mib", "messages"), facts=facts)
    report.notes.append(f"{queued:,} jobs queued; what became of {2 * GROUPS:,} nudges: {facts['nudges']}")
    used = max(report.median(side, "used_mib") for side in samples)
    report.goals.append(Goal(f"Redis in all, {queued:,} jobs queued", used, 10.0, at_least=False, unit="MiB"))
    return report
