"""`client.webhooks`: what was sent where, again, and the secret; values, calls as generators, both kinds of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from batchline.client.calls import Call, Calls
from batchline.errors import NotFoundError

T = TypeVar("T")
_PAGE = 100
_DELIVERIES, _ENDPOINTS, _SECRET = "/v1/webhooks/deliveries", "/v1/webhooks/endpoints", "/v1/webhooks/secret"

DeliveryStatus = Literal["pending", "delivered", "failed", "disabled"]


class Attempt(msgspec.Struct, frozen=True):
    """One attempt to deliver a message."""

    nth: int
    at: datetime
    status_code: int | None
    error: str | None
    duration_ms: int


class Delivery(msgspec.Struct, frozen=True):
    """A message to a receiver, who sees `id` as webhook-id."""

    id: str
    event: str
    status: str
    subject_id: str
    """The job or batch that it tells of."""
    endpoint_id: str
    url: str
    attempt_count: int
    created_at: datetime
    next_attempt_at: datetime | None
    ended_at: datetime | None
    attempts: Sequence[Attempt] = ()
    """Of one delivery; a list is without."""


class Endpoint(msgspec.Struct, frozen=True):
    """A URL that jobs or batches named."""

    id: str
    url: str
    enabled: bool
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str | None


class Secret(msgspec.Struct, frozen=True):
    """What messages are signed with: verify against either."""

    secret: str
    previous: str | None
    previous_until: datetime | None


class _DeliveryPage(msgspec.Struct):
    data: list[Delivery]
    last_id: str | None
    has_more: bool


class _EndpointPage(msgspec.Struct):
    data: list[Endpoint]
    last_id: str | None
    has_more: bool


class Run(Protocol):
    """How a client drives a call."""

    def __call__(self, call: Call[T]) -> T: ...


class AsyncRun(Protocol):
    """How an asyncio client drives a call."""

    async def __call__(self, call: Call[T]) -> T: ...


@dataclass(frozen=True, slots=True)
class _WebhookCalls:
    calls: Calls

    def deliveries(self, status: str | None, event: str | None, limit: int) -> Call[list[Delivery]]:
        found: list[Delivery] = []
        while True:
            asked = {"status": status, "event": event, "after": found[-1].id if found else None}
            asked |= {"limit": str(max(1, min(_PAGE, limit - len(found))))}
            page = yield from self.calls.typed(_DeliveryPage, "GET", f"{_DELIVERIES}?{_query(asked)}")
            found += page.data
            if not page.has_more or len(found) >= limit:
                return found

    def get(self, message_id: str) -> Call[Delivery]:
        return self.calls.typed(Delivery, "GET", _path(_DELIVERIES, message_id))

    def replay(self, message_id: str) -> Call[Delivery]:
        return self.calls.typed(Delivery, "POST", f"{_path(_DELIVERIES, message_id)}/replay")

    def endpoints(self) -> Call[list[Endpoint]]:
        found: list[Endpoint] = []
        while True:
            asked = {"after": found[-1].id if found else None, "limit": str(_PAGE)}
            page = yield from self.calls.typed(_EndpointPage, "GET", f"{_ENDPOINTS}?{_query(asked)}")
            found += page.data
            if not page.has_more:
                return found

    def enable(self, endpoint_id: str) -> Call[Endpoint]:
        return self.calls.typed(Endpoint, "POST", f"{_path(_ENDPOINTS, endpoint_id)}/enable")

    def secret(self) -> Call[Secret]:
        return self.calls.typed(Secret, "GET", _SECRET)

    def rotate(self) -> Call[Secret]:
        return self.calls.typed(Secret, "POST", f"{_SECRET}/rotate")


class Webhooks:
    """The webhooks of a `Client`."""

    def __init__(self, run: Run, calls: Calls) -> None:
        self._run = run
        self._calls = _WebhookCalls(calls)

    def deliveries(
        self, *, status: DeliveryStatus | None = None, event: str | None = None, limit: int = _PAGE
    ) -> list[Delivery]:
        """Messages, newest first, without their attempts.

        Args:
            status: only what stands so.
            event: only what tells of this, such as `job.failed`.
            limit: at most so many.
        """
        return self._run(self._calls.deliveries(status, event, limit))

    def get(self, message_id: str) -> Delivery:
        """One message with every attempt to deliver it.

        Raises:
            NotFoundError: there is none.
        """
        return self._run(self._calls.get(message_id))

    def replay(self, message_id: str) -> Delivery:
        """Send a message again, at once and under the same id.

        Raises:
            EndpointDisabledError: `enable` its endpoint first.
        """
        return self._run(self._calls.replay(message_id))

    def endpoints(self) -> list[Endpoint]:
        """The URLs that jobs and batches named."""
        return self._run(self._calls.endpoints())

    def enable(self, endpoint_id: str) -> Endpoint:
        """Send messages to an endpoint again that answered 410."""
        return self._run(self._calls.enable(endpoint_id))

    def secret(self) -> Secret:
        """What messages are signed with. Needs the scope submit."""
        return self._run(self._calls.secret())

    def rotate(self) -> Secret:
        """Sign with a new secret; the one before signs too for 24 hours. Repeated within a minute, does nothing."""
        return self._run(self._calls.rotate())


class AsyncWebhooks:
    """The webhooks of an `AsyncClient`; see `Webhooks`."""

    def __init__(self, run: AsyncRun, calls: Calls) -> None:
        self._run = run
        self._calls = _WebhookCalls(calls)

    async def deliveries(
        self, *, status: DeliveryStatus | None = None, event: str | None = None, limit: int = _PAGE
    ) -> list[Delivery]:
        """See `Webhooks.deliveries`."""
        return await self._run(self._calls.deliveries(status, event, limit))

    async def get(self, message_id: str) -> Delivery:
        """See `Webhooks.get`."""
        return await self._run(self._calls.get(message_id))

    async def replay(self, message_id: str) -> Delivery:
        """See `Webhooks.replay`."""
        return await self._run(self._calls.replay(message_id))

    async def endpoints(self) -> list[Endpoint]:
        """See `Webhooks.endpoints`."""
        return await self._run(self._calls.endpoints())

    async def enable(self, endpoint_id: str) -> Endpoint:
        """See `Webhooks.enable`."""
        return await self._run(self._calls.enable(endpoint_id))

    async def secret(self) -> Secret:
        """See `Webhooks.secret`."""
        return await self._run(self._calls.secret())

    async def rotate(self) -> Secret:
        """See `Webhooks.rotate`."""
        return await self._run(self._calls.rotate())


def _query(asked: Mapping[str, str | None]) -> str:
    return urlencode({name: value for name, value in asked.items() if value is not None})


def _path(under: str, wanted: str) -> str:
    if not wanted:
        raise NotFoundError("There is nothing with an empty id.")
    return f"{under}/{quote(wanted, safe='')}"
