"""Answers that are made while they are sent, from an iterator that blocks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from batchline.errors import BatchlineError

log = logging.getLogger("api")


class Streamed(ASGIResponse):
    """Sends what an iterator yields, one piece at a time, and no longer than the client listens.

    The first piece has been asked for by then (see `streamed`): what cannot be begun is an error like any other. What
    fails later cuts the answer short, which the client sees by its length or its missing last chunk.
    """

    def __init__(
        self, first: bytes | None, pieces: Iterator[bytes], headers: Mapping[str, str], kind: str, threads: Executor
    ) -> None:
        self._first = first
        self._pieces = pieces
        self._threads = threads
        self._headers = [
            (b"content-type", kind.encode("latin-1")),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Any = {"type": "http.response.start", "status": 200, "headers": self._headers}
        await send(start)
        loop = asyncio.get_running_loop()
        gone = asyncio.ensure_future(_gone(receive))
        piece = self._first
        try:
            while piece is not None and not gone.done():
                body: Any = {"type": "http.response.body", "body": piece, "more_body": True}
                await send(body)
                piece = await loop.run_in_executor(self._threads, next, self._pieces, None)
        except BatchlineError as e:
            log.warning("answer cut short", extra={"path": scope.get("path"), "error": e.detail})
            return
        finally:
            gone.cancel()
            close: Callable[[], None] | None = getattr(self._pieces, "close", None)
            if close is not None:
                await loop.run_in_executor(self._threads, close)
        end: Any = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(end)


async def streamed(
    pieces: Callable[[], Iterator[bytes]], headers: Mapping[str, str], kind: str, threads: Executor
) -> Streamed:
    """An answer of what `pieces` yields; opened, and its first piece read, before anything is sent.

    Raises: what opening and reading the first piece raise.
    """

    def begin() -> tuple[bytes | None, Iterator[bytes]]:
        opened = pieces()
        return next(opened, None), opened

    first, rest = await asyncio.get_running_loop().run_in_executor(threads, begin)
    return Streamed(first, rest, headers, kind, threads)


async def _gone(receive: Receive) -> None:
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            return
