"""One HTTP connection, bounded: heads, trailers and whatever else a parser gathers unread, and the time they may take.

uvicorn itself bounds none of it: one client that sent a header without end made all others wait for seconds.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""A head is refused at the first read beyond this; so are trailers and chunk extensions."""
_SLOWEST_BYTES_PER_S = 256 * 1024
_MOST_BYTES = 2**30
_CONTINUE = b"HTTP/1.1 100 "
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 22\r\nconnection: close\r\n\r\n"
    b"The head is too large."
)


class Whole:
    """A transport that holds the head of an answer back until its body comes, as ASGI wants it.

    One packet and one call of the system instead of two, and the client wakes once.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or hold back what looks like a head; whatever it is, it goes out before the answer ends.

        What is left to say to a client that has gone is dropped: uvloop would raise, and a fault of ours be logged.
        """
        if self._transport.is_closing():
            self._head = b""
        elif self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and not data.startswith(_CONTINUE):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits; a connection that exceeds them is closed."""

    head_s = 30.0
    """From the first byte (or the connection) to the end of the head."""
    body_s = 300.0
    """From the end of the head to the end of the body, for clients however slow; large files have more."""
    linger_s = 5.0
    """How long the rest of a body is still read once it has been answered."""
    check_s = 5.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._whole = Whole(transport)
        super().connection_made(cast("asyncio.Transport", self._whole))
        self._unread_bytes = 0
        self._due: float | None = self.loop.time() + self.head_s
        self._timer = self.loop.call_later(self.check_s, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._due is None:
            self._due = self.loop.time() + self.head_s
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if not self.cycle or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._unread_bytes = 0
        self._due = self.loop.time() + self.body_s + self._announced_bytes() / _SLOWEST_BYTES_PER_S
        super().on_headers_complete()

    def _announced_bytes(self) -> int:
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        return min(int(length), _MOST_BYTES) if length.isdigit() else 0

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        if self.cycle.response_complete and self._due is not None:
            self._due = min(self._due, self.loop.time() + self.linger_s)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread_bytes = 0
        self._due = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._whole.flush()  # an answer without a body
        super().on_response_complete()

    def _check(self) -> None:
        if self._due is not None and self.loop.time() > self._due:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(self.check_s, self._check)
