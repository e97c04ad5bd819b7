"""What the autoscaler tells of itself: Prometheus metrics, CloudWatch if configured, and what a decision keeps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Protocol

from autoscaler.signals import Decision, Limits, Signals
from batchline import metrics

KEPT = ("queued_rows", "bulk_rows", "running_rows", "oldest_age_s", "arrived_rows", "done_rows", "workers", "pending",
        "draining", "rows_per_s", "bulk_rows_per_s", "queued_work_s", "bulk_work_s", "running_work_s")  # fmt: skip
"""Signals that are kept with a decision."""
ALLOWED = ("min_workers", "max_workers", "max_launches_per_hour", "budget_per_day", "enabled")
"""Limits that are kept with it, where there is one."""


class Channel(Protocol):
    """Somebody else who wants the numbers; must not wait. `autoscaler.cloudwatch.CloudWatch` is one."""

    def offer(self, pool: str, seen: Signals, decision: Decision) -> None: ...


class Publisher:
    """Told by the loop and the hands; never raises what it could not tell."""

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel
        self._desired: dict[str, int] = {}

    def leads(self, held: bool) -> None:
        metrics.AUTOSCALER_LEADER.set(held)

    def looked(self, pool: str, seen: Signals, decision: Decision, *, leads: bool) -> None:
        """At every tick, what was seen and is wanted; only the leader's decisions count, and go to the channel."""
        for metric, value in (
            (metrics.WORKERS_DESIRED, decision.desired),
            (metrics.WORKERS_LIVE, seen.workers),
            (metrics.WORKERS_PENDING, seen.pending),
            (metrics.WORKERS_DRAINING, seen.draining),
            (metrics.QUEUED_ROWS, seen.queued_rows),
            (metrics.RUNNING_ROWS, seen.running_rows),
            (metrics.OLDEST_AGE, seen.oldest_age_s),
        ):
            metric.labels(pool).set(value)
        if not leads:
            self._desired.pop(pool, None)
            return
        before = self._desired.get(pool, seen.total)
        self._desired[pool] = decision.desired
        change = "up" if decision.desired > before else "down" if decision.desired < before else "same"
        metrics.DECISIONS.labels(pool, change).inc()
        if self._channel is not None:
            self._channel.offer(pool, seen, decision)

    def launched(self, pool: str, provider: str, instances: int) -> None:
        metrics.LAUNCHED.labels(pool, provider).inc(instances)

    def failed(self, *, pool: str, provider: str, call: str, trouble: str) -> None:
        """A provider said no; `trouble` is why."""
        metrics.PROVIDER_ERRORS.labels(pool, provider, call, trouble).inc()


def kept(seen: Signals, limits: Limits) -> dict[str, float]:
    """The numbers of a decision, for `Scaling.signals`: what it was made from and within which limits."""
    signals, allowed = asdict(seen), asdict(limits)
    found = {name: float(signals[name]) for name in KEPT}
    return found | {name: float(allowed[name]) for name in ALLOWED if allowed[name] is not None}
