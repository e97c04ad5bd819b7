"""/v1/webhooks: what was delivered and what not, again, endpoints, the secret that signs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api.http import answer, headers_of
from api.owned import owned
from api.queries import an_id, query_of, refused, whole_number
from api.services import Services
from batchline.batch import show_batch_id
from batchline.errors import EndpointDisabledError, NotFoundError
from batchline.job import show_id
from batchline.store.webhook_contract import EndpointView, MessageStatus, MessageView, SecretView
from batchline.webhook import (
    EVENTS,
    parse_endpoint_id,
    parse_message_id,
    show_endpoint_id,
    show_message_id,
)
from batchline.wire_webhooks import AttemptShown, DeliveryList, DeliveryShown, EndpointList, EndpointShown, SecretShown

AnyRequest = Request[Any, Any, Any]
_DELIVERIES = "/v1/webhooks/deliveries"
_DELIVERY = _DELIVERIES + "/{message_id:str}"
_ENDPOINTS = "/v1/webhooks/endpoints"
_ENABLE = _ENDPOINTS + "/{endpoint_id:str}/enable"
_SECRET = "/v1/webhooks/secret"  # noqa: S105 - a path
_ALL_EVENTS = tuple(event for events in EVENTS.values() for event in events)


class WebhookRoutes:
    """The handlers; each checks the key first and knows only the key's tenant.

    The secret asks for the scope `submit`: who submits says where messages go, and must be able to verify them; a key
    that only reads must not be able to forge one.
    """

    def __init__(self, services: Services) -> None:
        self._s = services
        self._store = services.store.webhooks

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            get(_DELIVERIES, name="list_deliveries")(self.list),
            get(_DELIVERY, name="get_delivery")(self.read),
            post(f"{_DELIVERY}/replay", name="replay_delivery")(self.replay),
            get(_ENDPOINTS, name="list_endpoints")(self.endpoints),
            post(_ENABLE, name="enable_endpoint")(self.enable),
            get(_SECRET, name="get_webhook_secret")(self.secret),
            post(f"{_SECRET}/rotate", name="rotate_webhook_secret")(self.rotate),
        ]

    async def list(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "read")
        query = query_of(request.scope["query_string"], ("status", "event", "after", "limit"))
        limit = whole_number(query, "limit", default=20, least=1, most=100)
        after = an_id(query, "after", parse_message_id, "delivery")
        event = query.get("event")
        if event is not None and event not in _ALL_EVENTS:
            raise refused("event", f"must be one of {', '.join(_ALL_EVENTS)}")
        try:
            status = MessageStatus(query["status"]) if "status" in query else None
        except ValueError:
            raise refused("status", f"must be one of {', '.join(MessageStatus)}") from None
        tenant = principal.tenant_id
        views = await self._s.ask(
            lambda: self._store.list(tenant, status=status, event=event, after=after, limit=limit + 1)
        )
        data = [_delivery(view) for view in views[:limit]]
        return answer(200, msgspec.json.encode(DeliveryList(data, *_ends(data), len(views) > limit)))

    async def read(self, request: AnyRequest) -> ASGIResponse:
        return await self._told(await self._message(request, "read"))

    async def replay(self, request: AnyRequest) -> ASGIResponse:
        view = await self._message(request, "submit")
        if not await self._s.ask(lambda: self._store.replay(view.tenant_id, view.id)):
            raise EndpointDisabledError(
                f"The endpoint {show_endpoint_id(view.endpoint_id)} of this delivery is disabled; enable it first."
            )
        again = await self._s.ask(lambda: self._store.read(view.id))
        return await self._told(again or view, status=202)

    async def endpoints(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "read")
        query = query_of(request.scope["query_string"], ("after", "limit"))
        limit = whole_number(query, "limit", default=20, least=1, most=100)
        after = an_id(query, "after", parse_endpoint_id, "endpoint")
        views = await self._s.ask(lambda: self._store.endpoints(principal.tenant_id, after=after, limit=limit + 1))
        data = [_endpoint(view) for view in views[:limit]]
        return answer(200, msgspec.json.encode(EndpointList(data, *_ends(data), len(views) > limit)))

    async def enable(self, request: AnyRequest) -> ASGIResponse:
        view = await owned(
            self._s, request, "submit", parse=parse_endpoint_id, read=self._store.endpoint, unknown=_no_endpoint
        )
        await self._s.ask(lambda: self._store.enable(view.tenant_id, view.id))
        again = await self._s.ask(lambda: self._store.endpoint(view.id))
        return answer(200, msgspec.json.encode(_endpoint(again or view)))

    async def secret(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "submit")
        return _secret(await self._s.ask(lambda: self._store.secret(principal.tenant_id)))

    async def rotate(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "submit")
        return _secret(await self._s.ask(lambda: self._store.rotate(principal.tenant_id)))

    async def _message(self, request: AnyRequest, scope: str) -> MessageView:
        return await owned(self._s, request, scope, parse=parse_message_id, read=self._store.read, unknown=_no_delivery)

    async def _told(self, view: MessageView, *, status: int = 200) -> ASGIResponse:
        tried = await self._s.ask(lambda: self._store.attempts(view.id))
        attempts = [AttemptShown(a.nth, _at(a.at), a.status_code, a.error, a.duration_ms) for a in tried]
        return answer(status, msgspec.json.encode(msgspec.structs.replace(_delivery(view), attempts=attempts)))


def _delivery(view: MessageView) -> DeliveryShown:
    show = show_id if view.event in EVENTS["job"] else show_batch_id
    return DeliveryShown(
        id=show_message_id(view.id),
        event=view.event,
        status=view.status.value,
        subject_id=show(view.subject_id),
        endpoint_id=show_endpoint_id(view.endpoint_id),
        url=view.url,
        attempt_count=view.attempts,
        created_at=_at(view.created_at),
        next_attempt_at=_at(view.due_at) if view.due_at else None,
        ended_at=_at(view.ended_at) if view.ended_at else None,
    )


def _endpoint(view: EndpointView) -> EndpointShown:
    return EndpointShown(
        id=show_endpoint_id(view.id),
        url=view.url,
        enabled=view.disabled_at is None,
        created_at=_at(view.created_at),
        disabled_at=_at(view.disabled_at) if view.disabled_at else None,
        disabled_why=view.disabled_why,
    )


def _secret(view: SecretView) -> ASGIResponse:
    until = _at(view.previous_until) if view.previous_until else None
    shown = SecretShown(view.secret, view.previous, until)
    return answer(200, msgspec.json.encode(shown), {"Cache-Control": "no-store"})


def _ends(data: list[DeliveryShown] | list[EndpointShown]) -> tuple[str | None, str | None]:
    return (data[0].id, data[-1].id) if data else (None, None)


def _at(at: datetime) -> str:
    return msgspec.to_builtins(at.astimezone(UTC))


def _no_delivery(_: str) -> NotFoundError:
    return NotFoundError("There is no delivery with this id.")


def _no_endpoint(_: str) -> NotFoundError:
    return NotFoundError("There is no endpoint with this id.")
