"""Reads of every pool what policies and limits ask for, from Postgres alone."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoscaler.config import PoolConfig
from autoscaler.signals import Demand, Facts, Limits, Signals, Spent
from batchline.clock import Clock
from batchline.job import Lane
from batchline.store import Store
from batchline.store.contract import Backlog, WorkerView
from batchline.store.instance_contract import Instance, InstanceStatus, Launch, Totals

_REBASE = timedelta(minutes=2)
_OVERLAP = timedelta(minutes=1)
_MEASURE_S = 60.0
_MEASURED_S = 86400.0
_SPENT_S = 15.0
"""Money is counted this often: it takes a look at all hours of all workers since midnight."""
_CAPACITY = (InstanceStatus.STARTING, InstanceStatus.SERVING)


@dataclass(frozen=True, slots=True)
class Look:
    """One pool at one moment.

    Attributes:
        signals: for the policy.
        unmanaged: live workers that the ledger knows nothing of; never stopped.
        managed: instances that are capacity: starting, or with a live worker that takes work.
        moving: something is on its way: launches whose outcome is not known, instances that are to be ended.
    """

    signals: Signals
    unmanaged: int
    managed: int
    moving: bool


class Observer:
    """Looks again and again; what only grows goes on growing from look to look."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._since = clock.now()
        self._counted: dict[int, int] = {}
        """Rows by model."""
        self._arrived: dict[str, float] = collections.defaultdict(float)
        self._arrived_work_s: dict[str, float] = collections.defaultdict(float)
        self._measured: dict[str, tuple[float, float]] = {}
        self._measured_at = -_MEASURE_S
        self._money: dict[str, tuple[float, datetime, float]] = {}
        """What a pool had spent: when that was counted, since which midnight, how much."""

    def look(self, pools: Collection[str] = ()) -> dict[str, Look]:
        """Every pool that has work, workers or instances, and those named; counted anew unless somebody just did."""
        now = self._clock.now()
        self._store.chores.count_backlog(every_s=1.0)
        backlog = self._store.chores.backlog()
        totals = {t.pool: t for t in self._store.instances.totals(self._since)}
        self._grow(totals.values())
        launches = self._store.instances.unsettled()
        instances = self._store.instances.list()
        live = [w for w in self._store.workers.list() if w.live]
        named = {*pools, *(b.pool for b in backlog), *(w.pool for w in live), *(i.pool for i in instances)}
        return {
            pool: _look(
                [b for b in backlog if b.pool == pool],
                [w for w in live if w.pool == pool],
                [i for i in instances if i.pool == pool],
                [x for x in launches if x.pool == pool],
                totals.get(pool) or Totals(pool, 0, 0, 0, 0.0, ()),
                arrived=(self._arrived[pool], self._arrived_work_s[pool]),
                at=now.timestamp(),
            )
            for pool in sorted(named | {x.pool for x in launches})
        }

    def facts(self, pool: PoolConfig) -> Facts:
        """Start-up time as measured of the pool's instances of a day, price as configured or as they cost."""
        now = self._clock.monotonic()
        if now - self._measured_at >= _MEASURE_S:
            self._measure()
            self._measured_at = now
        start_s, price = self._measured.get(pool.pool, (0.0, 0.0))
        return Facts(start_s or pool.start_s, pool.billing_s, pool.price_per_hour or price)

    def spent(self, pool: str, limits: Limits) -> Spent:
        """As far as the limits ask for it."""
        launches, today = 0, 0.0
        if limits.max_launches_per_hour is not None:
            launches = self._store.instances.launches_within(pool, 3600.0)
        if limits.budget_per_day is not None:
            today = self._today(pool)
        return Spent(launches, today)

    def _today(self, pool: str) -> float:
        now, midnight = self._clock.monotonic(), self._clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
        at, day, spent = self._money.get(pool, (-math.inf, midnight, 0.0))
        if now - at >= _SPENT_S or day != midnight:
            at, spent = now, self._store.costs.spent(pool, midnight)
            self._money[pool] = (at, midnight, spent)
        return spent

    def _grow(self, totals: Iterable[Totals]) -> None:
        """Add up what has arrived; the moment it is counted from follows, so that counting stays cheap."""
        for t in totals:
            for model_id, model in t.models.items():
                rows = max(0, model.arrived_rows - self._counted.get(model_id, 0))
                self._arrived[t.pool] += rows
                self._arrived_work_s[t.pool] += t.work_s(model_id, Lane.ONLINE, rows)
                self._counted[model_id] = model.arrived_rows
        now = self._clock.now()
        if not timedelta(0) <= now - self._since <= _REBASE:  # before: the clock went back
            self._since = now - _OVERLAP
            again = self._store.instances.totals(self._since)
            self._counted = {model_id: model.arrived_rows for t in again for model_id, model in t.models.items()}

    def _measure(self) -> None:
        found: dict[str, list[Instance]] = collections.defaultdict(list)
        for instance in self._store.instances.list(gone_within_s=_MEASURED_S):
            found[instance.pool].append(instance)
        self._measured = {pool: (_start_s(own), _price(own)) for pool, own in found.items()}


def _start_s(instances: Sequence[Instance]) -> float:
    """Median of the last twenty; those that were found by their tags do not say when they were launched."""
    seen = [
        (i.registered_at - i.launched_at).total_seconds()
        for i in instances
        if i.registered_at is not None and i.registered_at > i.launched_at
    ]
    return statistics.median(seen[-20:]) if seen else 0.0


def _price(instances: Sequence[Instance]) -> float:
    """Of one instance, as the last twenty cost."""
    return statistics.fmean([i.price_per_hour for i in instances[-20:]] or [0.0])


def _look(
    backlog: Sequence[Backlog],
    live: Sequence[WorkerView],
    instances: Sequence[Instance],
    launches: Sequence[Launch],
    totals: Totals,
    *,
    arrived: tuple[float, float],
    at: float,
) -> Look:
    """One pool's; `arrived` are rows and worker-seconds since this process looked first."""
    ids = {i.id for i in instances}
    serving = {w.instance for w in live if not w.draining}
    unmanaged = sum(not w.draining and w.instance not in ids for w in live)
    capacity = [i for i in instances if i.status in _CAPACITY]
    workers = sum(i.id in serving for i in capacity)
    starting = sum(i.status is InstanceStatus.STARTING and i.id not in serving for i in capacity)
    coming = sum(max(0, x.count - x.instances) for x in launches)
    work = [(b.lane, totals.work_s(b.model_id, b.lane, b.rows)) for b in backlog]
    signals = Signals(
        at=at,
        queued_rows=sum(b.rows for b in backlog),
        bulk_rows=sum(b.rows for b in backlog if b.lane is Lane.BULK),
        running_rows=totals.running_rows,
        oldest_age_s=max((b.oldest_age_s for b in backlog if b.lane is not Lane.BULK), default=0.0),
        arrived_rows=arrived[0],
        done_rows=totals.done_rows,
        workers=unmanaged + workers,
        pending=starting + coming,
        draining=sum(w.draining for w in live),
        rows_per_s=totals.rows_per_s,
        demands=tuple(Demand(*demand) for demand in totals.demands),
        bulk_rows_per_s=totals.bulk_rows_per_s,
        queued_work_s=sum(work_s for _, work_s in work),
        bulk_work_s=sum(work_s for lane, work_s in work if lane is Lane.BULK),
        running_work_s=totals.running_work_s,
        arrived_work_s=arrived[1],
    )
    moving = bool(launches) or any(i.status is InstanceStatus.STOPPING for i in instances)
    return Look(signals, unmanaged, workers + starting, moving)
