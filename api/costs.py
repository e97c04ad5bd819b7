"""GET /v1/costs and GET /v1/jobs/{id}/cost: what machines cost and for whom, and what one job did."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api.asking import Asking
from api.http import answer, headers_of
from api.queries import query_of, refused
from api.services import Services
from batchline.clock import Clock
from batchline.errors import NotFoundError
from batchline.job import parse_id, show_id
from batchline.store.cost_contract import By, CostLine, Costs, JobCost

AnyRequest = Request[Any, Any, Any]
MAX_DAYS = 92
_LONG_S = 25.0
"""A quarter of a year of many machines takes seconds: one such question at a time, and nobody else waits for it."""
_FIRST, _LAST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


class CostRoutes:
    """The handlers."""

    def __init__(self, services: Services, clock: Clock) -> None:
        self._s = services
        self._clock = clock
        self._ask = Asking(threads=1, timeout_s=_LONG_S)

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            get("/v1/costs", name="get_costs")(self.costs),
            get("/v1/jobs/{job_id:str}/cost", name="get_job_cost")(self.job),
        ]

    async def costs(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "admin")
        query = query_of(request.scope["query_string"], ("by", "from", "to"))
        since, until = _range(query, self._clock.now())
        try:
            by = By(query.get("by", By.TENANT))
        except ValueError:
            raise refused("by", f"must be one of {', '.join(By)}") from None
        found = await self._ask(lambda: self._s.store.costs.read(by, since, until))
        return answer(200, msgspec.json.encode(_costs(by, found)))

    async def job(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "read")
        job_id = parse_id(request.path_params["job_id"])
        found = await self._s.ask(lambda: self._s.store.costs.of_job(job_id))
        if found is None or found.tenant_id != principal.tenant_id:
            raise NotFoundError("There is no job with this id.")
        return answer(200, msgspec.json.encode(_job(found)))


def _range(query: Mapping[str, str], now: datetime) -> tuple[datetime, datetime]:
    """The hours asked for; today, by default."""
    until = _instant(query, "to", now)
    since = _instant(query, "from", until.replace(hour=0, minute=0, second=0, microsecond=0))
    if not since < until:
        raise refused("from", "must be before `to`")
    if until - since > timedelta(days=MAX_DAYS):
        raise refused("from", f"must be at most {MAX_DAYS} days before `to`")
    return since, until


def _instant(query: Mapping[str, str], name: str, default: datetime) -> datetime:
    """A date is its midnight of UTC."""
    text = query.get(name)
    if text is None:
        return default
    told = "must be a date or a time with its zone, as 2026-11-22 or 2026-11-22T06:00:00Z"
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
        at = at if at.tzinfo or "T" in text else at.replace(tzinfo=UTC)
        fits = at.tzinfo is not None and _FIRST <= at <= _LAST
    except (ValueError, OverflowError):
        raise refused(name, told) from None
    if not fits:
        raise refused(name, told)
    return at.astimezone(UTC)


def _costs(by: By, found: Costs) -> dict[str, object]:
    return {
        "object": "costs",
        "by": by.value,
        "from": found.since,
        "to": found.until,
        "data": [_line(line) for line in found.lines],
        "total": {
            "machines": found.machines,
            "machine_s": found.machine_s,
            "cost": found.cost,
            "on_demand": found.on_demand,
            "saved": found.on_demand - found.cost,
        },
    }


def _line(line: CostLine) -> dict[str, object]:
    return {
        "key": line.key,
        "idle": line.idle,
        "worker_s": line.worker_s,
        "cost": line.cost,
        "on_demand": line.on_demand,
    }


def _job(found: JobCost) -> dict[str, object]:
    return {
        "object": "job_cost",
        "id": show_id(found.job_id),
        "machine": found.machine,
        "worker_s": found.worker_s,
        "cost": found.cost,
        "on_demand": found.on_demand,
    }
