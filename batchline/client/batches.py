"""`Batch` and `AsyncBatch`: one batch in a program's hands; it may be taken up again by its id at any time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from batchline.client.batch_calls import LINES, BatchCalls, Progress, poll_s
from batchline.client.batch_results import BatchInfo, LinePage, each_line
from batchline.client.batch_tables import Tables
from batchline.client.calls import Call
from batchline.client.progress import watching
from batchline.client.results import Output, RowError

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


class Run(Protocol):
    """How a client drives a call."""

    def __call__(self, call: Call[T]) -> T: ...


class AsyncRun(Protocol):
    """How an asyncio client drives a call."""

    async def __call__(self, call: Call[T]) -> T: ...


class _Held:
    """What both kinds know without asking."""

    def __init__(self, calls: BatchCalls, info: BatchInfo) -> None:
        self._calls = calls
        self.info = info
        """As last told by the server."""

    @property
    def id(self) -> str:
        return self.info.id

    def __repr__(self) -> str:
        rows = self.info.rows
        return f"<{type(self).__name__} {self.id} {self.info.status}: {rows.succeeded} of {rows.total} rows>"


class _Pages:
    """Where reading stands: after which row, and how long to wait for more."""

    def __init__(self) -> None:
        self.after: int | None = None
        self.polls = 0

    def wait_s(self, page: LinePage) -> float | None:
        """How long to wait before the next page; None when there is none."""
        if page.lines:
            self.after, self.polls = page.last_row, 0
        if len(page.lines) >= LINES:
            return 0.0
        if page.complete:
            return None
        self.polls += 1
        return poll_s(self.polls)


class Batch(_Held):
    """A batch of a `Client`."""

    def __init__(self, run: Run, sleep: Callable[[float], None], calls: BatchCalls, info: BatchInfo) -> None:
        """Made by `Client.batch` and `Client.get_batch`."""
        super().__init__(calls, info)
        self._run = run
        self._sleep = sleep

    def status(self) -> BatchInfo:
        """The batch as it is now."""
        return self._told(self._run(self._calls.get(self.id)))

    def wait(self, timeout_s: float | None = None, *, progress: bool | Progress = False) -> BatchInfo:
        """Wait until it has ended, however; outlives restarts of the servers and lost connections.

        Args:
            timeout_s: None waits for ever, also while the batch is paused.
            progress: True draws a bar with rows/s and what is left, on a terminal; or call this with each BatchInfo.

        Raises:
            TimedOutError: it has not ended; it may be waited for again.
        """
        with watching(progress) as tell:
            return self._told(self._run(self._calls.wait(self.id, timeout_s, tell)))

    def results(self) -> Iterator[Output | RowError]:
        """Each row in its order: `{"row" or the key, kept columns, outputs}`, or why it has none.

        Follows a batch that runs, and ends with it; rows that were cancelled or expired do not come.

        Raises:
            InvalidRequestError: the results went to files or a table.
        """
        for page in self._pages():
            yield from each_line(page)

    def to_arrow(self) -> pa.Table:
        """All result rows as one Arrow table; waits for the batch to end.

        Columns are `row`, the key, kept columns, outputs in the types that the model declares, and `error`
        {code, message}: of rows without a result, whose outputs are null.

        Raises: as `results`.
        """
        pages = self._pages()
        first = next(pages)
        tables = Tables(self._run(self._calls.outputs(self.info)))
        tables.add(first)
        for page in pages:
            tables.add(page)
        return tables.table()

    def cancel(self) -> BatchInfo:
        """Cancel what has not run; rows that are done stay.

        Raises:
            AlreadyEndedError: it has ended.
        """
        return self._told(self._run(self._calls.act(self.id, "cancel")))

    def pause(self) -> BatchInfo:
        """Begin no further slices."""
        return self._told(self._run(self._calls.act(self.id, "pause")))

    def resume(self) -> BatchInfo:
        """Go on."""
        return self._told(self._run(self._calls.act(self.id, "resume")))

    def retry(self) -> Batch:
        """A new batch of the rows that failed, were cancelled or expired; `info.parent_id` names this one.

        Raises:
            AlreadyEndedError: it has not ended yet, or every row succeeded.
        """
        return Batch(self._run, self._sleep, self._calls, self._run(self._calls.act(self.id, "retry")))

    def _told(self, info: BatchInfo) -> BatchInfo:
        self.info = info
        return info

    def _pages(self) -> Iterator[LinePage]:
        pages = _Pages()
        while True:
            page = self._run(self._calls.lines(self.id, pages.after))
            yield page
            wait_s = pages.wait_s(page)
            if wait_s is None:
                return
            if wait_s:
                self._sleep(wait_s)


class AsyncBatch(_Held):
    """A batch of an `AsyncClient`; see `Batch`."""

    def __init__(self, run: AsyncRun, calls: BatchCalls, info: BatchInfo) -> None:
        """Made by `AsyncClient.batch` and `AsyncClient.get_batch`."""
        super().__init__(calls, info)
        self._run = run

    async def status(self) -> BatchInfo:
        """See `Batch.status`."""
        return self._told(await self._run(self._calls.get(self.id)))

    async def wait(self, timeout_s: float | None = None, *, progress: bool | Progress = False) -> BatchInfo:
        """See `Batch.wait`."""
        with watching(progress) as tell:
            return self._told(await self._run(self._calls.wait(self.id, timeout_s, tell)))

    async def results(self) -> AsyncIterator[Output | RowError]:
        """See `Batch.results`."""
        async for page in self._pages():
            for row in each_line(page):
                yield row

    async def to_arrow(self) -> pa.Table:
        """See `Batch.to_arrow`."""
        pages = self._pages()
        first = await anext(pages)
        tables = Tables(await self._run(self._calls.outputs(self.info)))
        tables.add(first)
        async for page in pages:
            tables.add(page)
        return tables.table()

    async def cancel(self) -> BatchInfo:
        """See `Batch.cancel`."""
        return self._told(await self._run(self._calls.act(self.id, "cancel")))

    async def pause(self) -> BatchInfo:
        """See `Batch.pause`."""
        return self._told(await self._run(self._calls.act(self.id, "pause")))

    async def resume(self) -> BatchInfo:
        """See `Batch.resume`."""
        return self._told(await self._run(self._calls.act(self.id, "resume")))

    async def retry(self) -> AsyncBatch:
        """See `Batch.retry`."""
        return AsyncBatch(self._run, self._calls, await self._run(self._calls.act(self.id, "retry")))

    def _told(self, info: BatchInfo) -> BatchInfo:
        self.info = info
        return info

    async def _pages(self) -> AsyncIterator[LinePage]:
        pages = _Pages()
        while True:
            page = await self._run(self._calls.lines(self.id, pages.after))
            yield page
            wait_s = pages.wait_s(page)
            if wait_s is None:
                return
            if wait_s:
                await self._run(_pause(wait_s))


def _pause(seconds: float) -> Call[None]:
    yield seconds
