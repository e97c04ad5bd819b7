"""GET /v1/backlog and GET /v1/autoscaler: the numbers that scalers follow, and what ours has decided and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api.http import answer, headers_of
from api.services import Services
from batchline.store.cost_contract import PoolMoney
from batchline.store.instance_contract import Instance, InstanceStatus, Scaling

AnyRequest = Request[Any, Any, Any]
Numbers = dict[str, float]

LIMITS = ("min_workers", "max_workers", "max_launches_per_hour", "budget_per_day", "enabled")
"""What the autoscaler keeps among a decision's signals of what the operator allows."""
_SHOWN = 20
_FRESH_S = 1.0
_GONE_WITHIN_S = 3600.0
_TOLD_WITHIN = timedelta(minutes=10)
"""A pool that nobody has decided on for longer is not the autoscaler's any more."""


class ScalingRoutes:
    """The handlers. Both answer for every pool that a model or a worker names, so that no path leads to nothing."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._running: Numbers = {}
        self._counted_at = float("-inf")

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            get("/v1/backlog", name="get_backlog")(self.backlog),
            get("/v1/autoscaler", name="get_autoscaler")(self.autoscaler),
        ]

    async def backlog(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "admin")
        backlog = self._s.backlog
        running, rates = await self._s.ask(self._running_rows), backlog.measured_rates()
        named = {*running, *rates, *(entry.pool for entry in backlog.queued)}
        pools = {
            pool: {"jobs": 0, "rows": 0, "oldest_age_s": 0.0, "rows_per_s": rates.get(pool, 0.0)}
            for pool in sorted(named)
        }
        for entry in backlog.queued:
            pool = pools[entry.pool]
            pool["jobs"] += entry.jobs
            pool["rows"] += entry.rows
            pool["oldest_age_s"] = max(pool["oldest_age_s"], float(entry.oldest_age_s))
        for name, pool in pools.items():
            pool["running_rows"] = running.get(name, 0)
            pool["unfinished_rows"] = pool["rows"] + pool["running_rows"]
        total = sum(pool["rows"] for pool in pools.values())
        return answer(200, msgspec.json.encode({"object": "backlog", "rows": total, "pools": pools}))

    async def autoscaler(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "admin")
        body = await self._s.ask(self._told)
        return answer(200, msgspec.json.encode(body))

    def _running_rows(self) -> Numbers:
        """Rows claimed and not finished, by pool; asks Postgres at most once a second (blocking)."""
        if time.monotonic() - self._counted_at > _FRESH_S:
            totals = self._s.store.instances.totals(datetime.now(UTC))
            self._running = {pool.pool: pool.running_rows for pool in totals}
            self._counted_at = time.monotonic()
        return self._running

    def _told(self) -> dict[str, object]:
        ledger, now = self._s.store.instances, datetime.now(UTC)
        instances = ledger.list(gone_within_s=_GONE_WITHIN_S)
        decided = {scaling.pool for scaling in ledger.decisions(limit=1000, since=now - _TOLD_WITHIN)}
        money = {m.pool: m for m in self._s.store.costs.money()}
        pools = {
            pool: _pool(ledger.decisions(pool=pool, limit=_SHOWN), [i for i in instances if i.pool == pool], now)
            | {"budget": _budget(money.get(pool))}
            for pool in sorted(decided | {i.pool for i in instances if i.status is not InstanceStatus.GONE})
        }
        return {"object": "autoscaler", "pools": pools, "instances": [_instance(i) for i in instances]}


def _pool(decisions: Sequence[Scaling], instances: Sequence[Instance], now: datetime) -> dict[str, object]:
    counts = Counter(i.status for i in instances)
    last = decisions[0] if decisions else None
    signals, limits = _parted(last.signals if last else {})
    return {
        "desired": last.desired if last else None,
        "reason": last.reason if last else None,
        "decided_at": last.at if last else None,
        "age_s": round(max(0.0, (now - last.at).total_seconds()), 1) if last else None,
        "signals": signals,
        "limits": limits,
        "instances": {status.value: counts[status] for status in InstanceStatus if status is not InstanceStatus.GONE},
        "decisions": [{"at": d.at, "desired": d.desired, "reason": d.reason} for d in decisions],
    }


def _budget(money: PoolMoney | None) -> dict[str, object] | None:
    """How the pool stands with its money of today (UTC); None without a budget."""
    if money is None or money.budget_per_day is None:
        return None
    return {
        "per_day": money.budget_per_day,
        "spent_today": money.spent_today,
        "standing": money.standing.value,
        "bulk_held_until": money.bulk_held_until,
        "at": money.updated_at,
    }


def _parted(numbers: Mapping[str, float]) -> tuple[Numbers, dict[str, float | None]]:
    """What was seen, and what was allowed; None where there is no limit."""
    seen = {name: value for name, value in numbers.items() if name not in LIMITS}
    return seen, {name: numbers.get(name) for name in LIMITS} if "max_workers" in numbers else {}


def _instance(instance: Instance) -> dict[str, object]:
    return {
        "id": instance.id,
        "object": "instance",
        "pool": instance.pool,
        "provider": instance.provider,
        "status": instance.status.value,
        "kind": instance.kind,
        "zone": instance.zone,
        "market": instance.market,
        "price_per_hour": instance.price_per_hour,
        "launched_at": instance.launched_at,
        "registered_at": instance.registered_at,
        "draining_at": instance.draining_at,
        "gone_at": instance.gone_at,
        "age_s": round(instance.age_s, 1),
        "reason": instance.reason,
        "workers": instance.workers,
        "running": instance.running,
    }
