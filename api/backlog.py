"""How much is queued, how fast it drains, and who has had enough."""

from __future__ import annotations

import math
import time
from collections import defaultdict

from batchline.errors import OverloadedError, QuotaError
from batchline.job import Lane
from batchline.metrics import QUEUE_JOBS, QUEUE_OLDEST, QUEUE_ROWS
from batchline.model import ModelRecord
from batchline.store.chores import Backlog as Queued
from batchline.store.contract import Chores, Workers
from batchline.traffic import SHADOW_TENANT

COUNT_S = 1.0
"""Counting runs at most this often, and at most a tenth of the time."""
UNMEASURED_ROWS_PER_S = 1000.0
"""Taken for the drain rate while no worker has measured any."""
_MAX_RETRY_S = 300


class Backlog:
    """The last count and what this process admitted since. `refresh` is for one thread; all else for the event loop."""

    def __init__(self, chores: Chores, workers: Workers, *, max_rows_tenant: int, max_rows: int) -> None:
        self._chores = chores
        self._workers = workers
        self._max_rows_tenant = max_rows_tenant
        self._max_rows = max_rows
        self._count_took_s = 0.0
        self._rates: dict[str, float] = {}
        self._by_model: dict[int, tuple[int, int]] = {}
        self.queued: list[Queued] = []
        self._shown: set[tuple[str, str]] = set()
        self._rows: dict[int, int] = {}
        self._total = 0
        self._since: dict[int, int] = defaultdict(int)
        self._before: dict[int, int] = {}

    def refresh(self) -> None:
        """Count (if it is time, and nobody else does) and read the counts (blocking)."""
        # Jobs admitted while the count runs are in `_since`; those before it in `_before`, until the count is known.
        self._before, self._since = self._since, defaultdict(int)
        started = time.monotonic()
        self._chores.count_backlog(every_s=max(COUNT_S * 0.9, 10 * self._count_took_s))
        self._count_took_s = max(time.monotonic() - started, 0.9 * self._count_took_s)
        queued = self._chores.backlog()
        self._rates = self._workers.drain_rates(Lane.ONLINE)
        rows: dict[int, int] = defaultdict(int)
        by_model: dict[int, tuple[int, int]] = {}
        for entry in queued:
            if entry.lane is not Lane.ONLINE:
                continue  # slices of batches wait behind all of these, and have limits of their own
            rows[entry.tenant_id] += entry.rows
            jobs, model_rows = by_model.get(entry.model_id, (0, 0))
            by_model[entry.model_id] = (jobs + entry.jobs, model_rows + entry.rows)
        self._show(queued)
        self.queued, self._by_model = queued, by_model
        self._rows, self._total, self._before = dict(rows), sum(rows.values()) - rows[SHADOW_TENANT], {}

    def _show(self, queued: list[Queued]) -> None:
        """For Prometheus, from the counts at hand; a queue that was shown once stays there, with zeros."""
        found: dict[tuple[str, str], tuple[int, int, float]] = dict.fromkeys(self._shown, (0, 0, 0.0))
        for entry in queued:
            if entry.tenant_id == SHADOW_TENANT:
                continue  # copies may wait as long as they like
            key = (entry.pool, entry.lane.value)
            jobs, rows, oldest_s = found.get(key, (0, 0, 0.0))
            found[key] = (jobs + entry.jobs, rows + entry.rows, max(oldest_s, entry.oldest_age_s))
        for key, values in found.items():
            for metric, value in zip((QUEUE_JOBS, QUEUE_ROWS, QUEUE_OLDEST), values, strict=True):
                metric.labels(*key).set(value)
        self._shown = set(found)

    def shadow_rows(self) -> int:
        """How many rows of copies for shadow versions are queued."""
        return self._rows.get(SHADOW_TENANT, 0)

    def rate(self, pool: str) -> float:
        """Rows a second that the pool drains; an assumption while nothing is measured."""
        return self._rates.get(pool) or UNMEASURED_ROWS_PER_S

    def measured_rates(self) -> dict[str, float]:
        """Rows a second by pool, as the workers measured them."""
        return dict(self._rates)

    def eta_s(self, model_id: int, pool: str, position: int | None) -> float | None:
        """About how long until a job at `position` of the model's queue is done; None where nothing is measured."""
        rate = self._rates.get(pool)
        if position is None or not rate:
            return None
        jobs, rows = self._by_model.get(model_id, (0, 0))
        return round((position + 1) * (rows / jobs if jobs else 1.0) / rate, 3)

    def admit(self, tenant_id: int, model: ModelRecord, rows: int) -> None:
        """Count `rows` in.

        Raises:
            QuotaError: the tenant would have more rows queued than it may.
            OverloadedError: the system would.
        """
        mine = self._rows.get(tenant_id, 0) + self._before.get(tenant_id, 0) + self._since.get(tenant_id, 0) + rows
        if mine > self._max_rows_tenant:
            raise QuotaError(
                f"This tenant may have {self._max_rows_tenant} rows queued and has {mine - rows}; try again later.",
                retry_after_s=self._retry_after_s(mine - self._max_rows_tenant, model),
            )
        everyone = self._total + sum(self._before.values()) + sum(self._since.values()) + rows
        if everyone > self._max_rows:
            raise OverloadedError(
                "The system has its fill of queued rows; try again later.",
                retry_after_s=self._retry_after_s(everyone - self._max_rows, model),
            )
        self._since[tenant_id] += rows

    def _retry_after_s(self, excess: int, model: ModelRecord) -> float:
        return float(min(max(math.ceil(excess / self.rate(model.spec.policy.pool)), 1), _MAX_RETRY_S))
