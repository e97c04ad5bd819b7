"""Who is asking: API keys, looked up in a thread and remembered for a few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from api.asking import Asking
from batchline.clock import Clock
from batchline.errors import ForbiddenError, UnauthorizedError
from batchline.store.catalogue import Principal

KNOWN_S = 5.0
"""A revoked key works for at most this long."""
UNKNOWN_S = 1.0
_MAX_CACHED = 10_000
_MAX_LENGTH = 512


class Keys:
    """Principals by Authorization header; used from the event loop only."""

    def __init__(self, find: Callable[[str], Principal | None], ask: Asking, clock: Clock) -> None:
        self._find = find
        self._ask = ask
        self._clock = clock
        self._cached: dict[bytes, tuple[float, Principal | None]] = {}
        self._asked: dict[bytes, asyncio.Task[Principal | None]] = {}

    async def check(self, headers: Mapping[bytes, bytes], scope: str) -> Principal:
        """The caller, who has `scope`.

        Raises:
            UnauthorizedError: no key, or an unknown one.
            ForbiddenError: the key lacks the scope.
            StoreUnavailableError: the key is not remembered and Postgres cannot be asked.
        """
        header = headers.get(b"authorization", b"")
        cached = self._cached.get(header)
        if cached is not None and cached[0] > self._clock.monotonic():
            principal = cached[1]
        else:
            principal = await self._look_up(header)
        if principal is None:
            raise UnauthorizedError("Send a valid API key: Authorization: Bearer KEY.")
        if not principal.may(scope):
            raise ForbiddenError(f"This key lacks the scope {scope!r}.")
        return principal

    async def _look_up(self, header: bytes) -> Principal | None:
        kind, _, key = header.partition(b" ")
        key = key.strip()
        if kind.lower() != b"bearer" or not key or len(key) > _MAX_LENGTH or not key.isascii() or b"\0" in key:
            return None
        asked = self._asked.get(header)
        if asked is None:
            asked = asyncio.ensure_future(self._ask(lambda: self._find(key.decode("ascii"))))
            self._asked[header] = asked
            asked.add_done_callback(lambda future: self._remember(header, future))
        return await asyncio.shield(asked)

    def _remember(self, header: bytes, future: asyncio.Future[Principal | None]) -> None:
        self._asked.pop(header, None)
        if future.cancelled() or future.exception() is not None:
            return
        principal = future.result()
        if len(self._cached) >= _MAX_CACHED:
            self._cached.clear()
        life_s = UNKNOWN_S if principal is None else KNOWN_S
        self._cached[header] = (self._clock.monotonic() + life_s, principal)
