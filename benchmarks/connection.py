"""A bare HTTP/1.1 keep-alive connection: one request at a time, as little CPU per request as Python allows."""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Answer(NamedTuple):
    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """One connection. Understands Content-Length only: both sides of every benchmark send it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = b""
        self._needed = 0
        self._head = 0

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to a server on loopback."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def request(self, message: bytes) -> asyncio.Future[Answer]:
        """Send one whole request; the future gives its answer.

        Raises:
            ConnectionError: from the future, when the server hangs up.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._received, self._needed = b"", 0
        if self._transport is None or self._transport.is_closing():
            self._answer.set_exception(ConnectionResetError("the server closed the connection"))
        else:
            self._transport.write(message)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        if not self._needed:
            self._head = self._received.find(b"\r\n\r\n")
            if self._head < 0:
                return
            length = _LENGTH.search(self._received, 0, self._head)
            if length is None:
                self._fail(ConnectionError(f"no Content-Length in {self._received[: self._head]!r}"))
                return
            self._needed = self._head + 4 + int(length[1])
        if len(self._received) >= self._needed and self._answer and not self._answer.done():
            self._answer.set_result(Answer(int(self._received[9:12]), self._received[self._head + 4 : self._needed]))

    def _fail(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)


def message(method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """The bytes of one request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body
