"""HTTP as the handlers see it: headers in one pass, bodies counted while they stream, answers as bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

from litestar.response.base import ASGIResponse
from litestar.types import Receive

from batchline.errors import MalformedError, TooLargeError, UnsupportedMediaError

JSON = "application/json"
_DISCARD_S = 5.0
"""How long the rest of a body that is too large is read and dropped, so that the client gets to see the 413."""
_DISCARD_TIMES = 4


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


def answer(
    status: int, body: bytes, headers: Mapping[str, str] | None = None, *, media_type: str = JSON
) -> ASGIResponse:
    """A finished answer."""
    return ASGIResponse(body=body, status_code=status, media_type=media_type, headers=dict(headers or {}))
