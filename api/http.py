"""HTTP as the handlers see it: headers in one pass, bodies counted while they stream, answers as bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from batchline.errors import MalformedError, TooLargeError, UnsupportedMediaError

JSON = "application/json"
_DISCARD_S = 5.0
"""How long the rest of a body that is too large is read and dropped, so that the client gets to see the 413."""
_DISCARD_TIMES = 4


class Call(NamedTuple):
    """A request without litestar around it: all of it that handlers of hot routes look at."""

    scope: Scope
    receive: Receive
    path_params: Mapping[str, str]


def headers_of(scope: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Headers by lower-case name; what came more than once is joined with a comma."""
    headers: dict[bytes, bytes] = {}
    for name, value in cast("Iterable[tuple[bytes, bytes]]", scope["headers"]):
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def check_json(headers: Mapping[bytes, bytes]) -> None:
    """Raise UnsupportedMediaError unless the body is said to be plain JSON."""
    kind = headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
    if kind != b"application/json":
        raise UnsupportedMediaError("Send the body as Content-Type: application/json.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaError("Send the body without Content-Encoding.")


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body, never holding more than `limit` bytes of it.

    Raises:
        TooLargeError: it is longer, whatever its Content-Length says.
        MalformedError: the client went away in the middle.
    """
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        if b"expect" not in headers:
            await _discard(receive, limit)
        raise _too_large(limit)
    message: Any = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] != "http.request":
            raise MalformedError("The body ended early.")
        size += len(message.get("body", b""))
        if size > limit:
            parts.clear()
            if message.get("more_body"):
                await _discard(receive, limit)
            raise _too_large(limit)
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


async def _discard(receive: Receive, limit: int) -> None:
    left = limit * _DISCARD_TIMES
    until = time.monotonic() + _DISCARD_S
    try:
        while left > 0:
            message: Any = await asyncio.wait_for(receive(), max(until - time.monotonic(), 0.01))
            left -= len(message.get("body", b""))
            if not message.get("more_body"):
                return
    except TimeoutError:
        return


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The body is larger than {limit} bytes; send fewer rows in each job.")


class Answer(ASGIResponse):
    """A finished answer: its headers and body as they go out, none of them looked at again.

    Litestar's own takes a tenth of a millisecond to look through a handful of headers, and this is the hot path.
    """

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str], media_type: str) -> None:
        self.status = status
        self._start: Any = {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", media_type.encode("latin-1")),
                (b"content-length", b"%d" % len(body)),
                *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
            ],
        }
        self._body: Any = {"type": "http.response.body", "body": body}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send(self._start)
        await send(self._body)


_NONE: Mapping[str, str] = {}


def answer(status: int, body: bytes, headers: Mapping[str, str] = _NONE, *, media_type: str = JSON) -> Answer:
    """A finished answer."""
    return Answer(status, body, headers, media_type)
