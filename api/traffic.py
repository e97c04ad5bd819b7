"""/v1/models/{m}/traffic: which version takes the jobs that name none, and how the versions do."""

from __future__ import annotations

import math
from typing import Any, cast

import msgspec
from litestar import Request, delete, get, put
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api.asking import Asking
from api.http import answer, check_json, headers_of, read_body
from api.services import Services
from batchline.decoding import from_decoding
from batchline.errors import BatchlineError, Fault, InvalidRequestError, NotFoundError
from batchline.model import ModelRecord
from batchline.store.traffic_contract import WINDOW_S, Ended, Pair
from batchline.traffic import Canary, Rule, takes_the_same
from batchline.wire_traffic import (
    CanaryShown,
    ComparedShown,
    LatelyShown,
    RoleShown,
    TrafficBody,
    TrafficShown,
)

AnyRequest = Request[Any, Any, Any]
_PATH = "/v1/models/{model:str}/traffic"
_CLOSE = 1e-3
"""How far numbers may be apart and still agree: so much of the larger one, or so much."""
_LONG_S = 10.0

_decoder = msgspec.json.Decoder(TrafficBody)
_rows = msgspec.json.Decoder(list[dict[str, object] | None])


class TrafficRoutes:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._ask = Asking(threads=1, timeout_s=_LONG_S)  # nobody else waits for those who look on

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            get(_PATH, name="get_traffic")(self.read),
            put(_PATH, name="set_traffic")(self.replace),
            delete(_PATH, name="reset_traffic", status_code=200)(self.reset),
        ]

    async def read(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "read")
        name, rule = await self._rule(request)
        records = {int(r.spec.version): r for r in self._s.models.known.of(name)}
        # It tells of the jobs of all tenants.
        lately = await self._ask(lambda: self._lately(rule, records)) if principal.may("admin") else None
        return answer(200, _json(name, rule, lately))

    async def replace(self, request: AnyRequest) -> ASGIResponse:
        headers = headers_of(request.scope)
        await self._s.keys.check(headers, "admin")
        name, _ = await self._rule(request)
        check_json(headers)
        raw = await read_body(request.receive, headers, self._s.settings.max_body_bytes)
        try:
            body = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise _told(from_decoding(e)) from None
        try:
            wanted = checked(body, self._s.models.known.of(name))
        except InvalidRequestError:
            await self._s.ask(self._s.models.refresh)  # a version may have come this very second
            wanted = checked(body, self._s.models.known.of(name))
        rule = await self._s.ask(lambda: self._s.store.traffic.put(name, wanted))
        await self._s.ask(self._s.models.refresh)
        return answer(200, _json(name, rule))

    async def reset(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "admin")
        name, _ = await self._rule(request)
        await self._s.ask(lambda: self._s.store.traffic.delete(name))
        await self._s.ask(self._s.models.refresh)
        return answer(200, _json(*await self._rule(request)))

    async def _rule(self, request: AnyRequest) -> tuple[str, Rule]:
        """The model of the path and its rule; a fresh look if it is not known."""
        name: str = request.path_params["model"]
        rule = self._s.models.known.rule(name)
        if rule is None:
            await self._s.models.resolve(name, "latest")
            rule = self._s.models.known.rule(name)
        if rule is None:
            raise NotFoundError("There is no such model.")
        return name, rule

    def _lately(self, rule: Rule, records: dict[int, ModelRecord]) -> LatelyShown:
        """What the versions of a rule did (blocking)."""
        roles = {role: records[version].id for role, version in rule.aliases.items() if version in records}
        ended = self._s.store.traffic.lately(roles)
        shown = {
            role: RoleShown(str(version), found.jobs, found.failed, _ms(found.p50_ms), _ms(found.p95_ms))
            for role, version in rule.aliases.items()
            for found in [ended.get(role, Ended())]
        }
        compared = None
        if "shadow" in roles:
            floats = frozenset(t.name for t in records[rule.aliases["shadow"]].spec.outputs if t.is_float)
            pairs = self._s.store.traffic.pairs(roles["shadow"])
            compared = ComparedShown(len(pairs), sum(agree(pair, floats) for pair in pairs))
        return LatelyShown(WINDOW_S, shown["production"], shown.get("canary"), shown.get("shadow"), compared)


def checked(body: TrafficBody, records: list[ModelRecord]) -> Rule:
    """The rule that a body asks for.

    Raises:
        InvalidRequestError: with a pointer to each version that cannot be meant.
    """
    known = {int(r.spec.version): r for r in records}
    faults: list[Fault] = []

    def number(pointer: str, given: str | int) -> int:
        text = str(given)
        if text.isascii() and text.isdigit() and len(text) < 10 and int(text) in known:
            return int(text)
        faults.append(Fault(pointer, f"must be one of {', '.join(map(str, known))}"))
        return 0

    production = number("/production", body.production)
    canary = body.canary and Canary(number("/canary/version", body.canary.version), body.canary.percent)
    shadow = None if body.shadow is None else number("/shadow", body.shadow)
    if canary and canary.version == production and not faults:
        faults.append(Fault("/canary/version", f"must be another one than production, which is {production}"))
    if shadow and not faults:
        answering = [production, canary.version] if canary else [production]
        unlike = [str(v) for v in answering if not takes_the_same(known[v], known[shadow])]
        if unlike:
            faults.append(Fault("/shadow", f"takes other inputs than version {' and '.join(unlike)}"))
    if faults:
        raise InvalidRequestError("The body does not fit.", faults=tuple(faults))
    return Rule(production, canary, shadow)


def agree(pair: Pair, floats: frozenset[str]) -> bool:
    """Whether a copy came to the same: all its rows have the same labels.

    Labels are whole numbers, booleans and texts; of a row that has none, the numbers must be close.

    Args:
        pair: outputs of both.
        floats: names of the outputs that are numbers.
    """
    ours, theirs = (_rows.decode(text) for text in (pair.answered, pair.shadow))
    return len(ours) == len(theirs) and all(_rows_agree(a, b, floats) for a, b in zip(ours, theirs, strict=True))


def _rows_agree(one: dict[str, object] | None, other: dict[str, object] | None, floats: frozenset[str]) -> bool:
    if one is None or other is None:
        return one is other
    if one.keys() != other.keys():
        return False
    labels = one.keys() - floats
    if labels:
        return all(one[name] == other[name] for name in labels)
    return all(_close(one[name], other[name]) for name in one)


def _close(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        ours, theirs = cast("list[object]", one), cast("list[object]", other)
        return len(ours) == len(theirs) and all(map(_close, ours, theirs))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return one == other  # NaN and infinities are texts


def shown(rule: Rule) -> dict[str, object]:
    """The rule as models show it."""
    canary = rule.canary
    return {
        "production": str(rule.production),
        "canary": canary and {"version": str(canary.version), "percent": canary.percent},
        "shadow": None if rule.shadow is None else str(rule.shadow),
    }


def _json(name: str, rule: Rule, lately: LatelyShown | None = None) -> bytes:
    canary = rule.canary and CanaryShown(str(rule.canary.version), rule.canary.percent)
    shadow = None if rule.shadow is None else str(rule.shadow)
    return msgspec.json.encode(TrafficShown(name, str(rule.production), canary, shadow, rule.updated_at, lately))


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _told(error: BatchlineError) -> BatchlineError:
    """What a body may have, where it has something else."""
    fault = error.faults[0] if error.faults else None
    if fault is None or "unknown field" not in fault.detail:
        return error
    known = "version, percent" if fault.pointer.startswith("/canary/") else "production, canary, shadow"
    told = Fault(fault.pointer, f"is no field here; there are {known}")
    return InvalidRequestError(error.detail, faults=(told,))
