"""Grouped reads: one thread reads all jobs asked for since its last query, and looks after those who wait."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

from litestar.types import Receive

from api.beside import Beside
from batchline.errors import BatchlineError, StoreUnavailableError
from batchline.job import TERMINAL, JobView

log = logging.getLogger("api.reads")

POLL_S = 0.5
"""Wake-ups may be lost silently, so all waiters are polled this often, in one query."""
MAX_IDS = 256
"""Of one query."""
_LISTEN_AFTER_S = 0.25
"""A wait is watched for the client's going away from then on; most are over before."""

Waiting = asyncio.Future[JobView | None]
Asking = asyncio.Future["JobView | None"]


class Source(Protocol):
    """What is asked of the store."""

    def read(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, JobView]: ...
    def terminal(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]: ...


class Reads(Beside):
    """The questions of this process and the thread that asks them."""

    def __init__(self, source: Source, *, timeout_s: float) -> None:
        super().__init__("reads")
        self._source = source
        self._timeout_s = timeout_s
        self._asks: dict[uuid.UUID, list[Asking]] = {}
        self._hinted: set[uuid.UUID] = set()
        self._watched: dict[uuid.UUID, list[Waiting]] = {}
        self._releasing = False

    async def read(self, job_id: uuid.UUID) -> JobView | None:
        """The job with its results, None if there is none.

        Raises:
            StoreUnavailableError: Postgres did not answer in time.
        """
        loop = asyncio.get_running_loop()
        future: Asking = loop.create_future()
        with self._change:
            self._asks.setdefault(job_id, []).append(future)
            self._change.notify()
        timer = loop.call_later(self._timeout_s, _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()

    def watch(self, job_id: uuid.UUID) -> Watch:
        """Register for the end of a job, before asking whether it has ended."""
        return Watch(self, job_id)

    @property
    def waiters(self) -> int:
        """How many requests wait."""
        return sum(len(futures) for futures in self._watched.values())

    def release(self) -> None:
        """Send every waiter home with nothing, now and from now on: the process is about to end."""
        self._releasing = True
        for futures in list(self._watched.values()):
            for future in futures:
                if not future.done():
                    future.set_result(None)

    def hint(self, ids: Iterable[uuid.UUID]) -> None:
        """Jobs that may have ended; from any thread."""
        with self._change:
            known = [job_id for job_id in ids if job_id in self._watched]
            if known:
                self._hinted.update(known)
                self._change.notify()

    def register(self, job_id: uuid.UUID, future: Waiting) -> None:
        if self._releasing:
            future.set_result(None)
        with self._change:
            first = not self._watched
            self._watched.setdefault(job_id, []).append(future)
            if first:
                self._change.notify()  # the thread slept without a time to wake

    def unregister(self, job_id: uuid.UUID, future: Waiting) -> None:
        with self._change:
            futures = self._watched[job_id]
            futures.remove(future)
            if not futures:
                del self._watched[job_id]

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        poll_at = 0.0
        while True:
            with self._change:
                while not (self._asks or self._hinted or self._closed):
                    left = poll_at - time.monotonic()
                    if self._watched and left <= 0:
                        break
                    self._change.wait(left if self._watched else None)
                if self._closed:
                    return
                asks, self._asks = self._asks, {}
                hinted, self._hinted = self._hinted, set()
                polled: list[uuid.UUID] = []
                if self._watched and time.monotonic() >= poll_at:
                    polled = list(self._watched)
                    poll_at = time.monotonic() + POLL_S
            views, error = self._ask([*asks, *hinted], polled)
            try:
                loop.call_soon_threadsafe(self._answer, asks, views, error)
            except RuntimeError:  # the loop is gone, and with it whoever asked
                return

    def _ask(
        self, wanted: list[uuid.UUID], polled: list[uuid.UUID]
    ) -> tuple[dict[uuid.UUID, JobView], BatchlineError | None]:
        views: dict[uuid.UUID, JobView] = {}
        try:
            if polled:
                wanted = [*wanted, *self._source.terminal(polled)]
            unique = list(dict.fromkeys(wanted))
            for at in range(0, len(unique), MAX_IDS):
                views |= self._source.read(unique[at : at + MAX_IDS])
        except StoreUnavailableError as e:
            log.warning("read failed", extra={"jobs": len(wanted), "error": e.detail})
            return {}, _unavailable()
        except Exception:
            log.exception("read failed", extra={"jobs": len(wanted)})
            return {}, BatchlineError("The job could not be read; it has been logged.")
        return views, None

    def _answer(
        self, asks: dict[uuid.UUID, list[Asking]], views: dict[uuid.UUID, JobView], error: BatchlineError | None
    ) -> None:
        for job_id, futures in asks.items():
            for future in futures:
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(views.get(job_id))
        for job_id, view in views.items():
            if view.status in TERMINAL:
                for future in self._watched.get(job_id, ()):
                    if not future.done():
                        future.set_result(view)


class Watch:
    """One request's wait for the end of one job; leaving the block frees it."""

    def __init__(self, reads: Reads, job_id: uuid.UUID) -> None:
        self._reads = reads
        self._job_id = job_id
        self._loop = asyncio.get_running_loop()
        self._future: Waiting = self._loop.create_future()
        self._listener: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._reads.register(self._job_id, self._future)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reads.unregister(self._job_id, self._future)
        if self._listener is not None:
            self._listener.cancel()

    async def wait(self, seconds: float, receive: Receive) -> JobView | None:
        """The ended job, or None when the time is up, the client has gone or the process is ending."""
        soon_s = min(seconds, _LISTEN_AFTER_S)
        self._timer = self._loop.call_later(soon_s, self._go_on, seconds - soon_s, receive)
        try:
            return await self._future
        finally:
            self._timer.cancel()

    def _go_on(self, left_s: float, receive: Receive) -> None:
        """Most waits are over by now; this one has two more ends, each with its price."""
        if left_s <= 0:
            self._end()
            return
        self._timer = self._loop.call_later(left_s, self._end)
        self._listener = self._loop.create_task(self._until_gone(receive))

    def _end(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._end()


def _give_up(future: Asking) -> None:
    if not future.done():
        future.set_exception(_unavailable())


def _unavailable() -> StoreUnavailableError:
    return StoreUnavailableError("The database does not answer; try again.", retry_after_s=2.0)
