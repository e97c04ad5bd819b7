"""`Client` and `AsyncClient`: the same calls, sent over httpx without and with await."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from batchline import settings
from batchline.client.batch_calls import BatchCalls, BatchOptions
from batchline.client.batch_results import BatchInfo, BatchPage
from batchline.client.batches import AsyncBatch, Batch
from batchline.client.calls import PAGE, Answer, Call, Calls, Lost, Send, SubmitOptions, Upload
from batchline.client.results import Job, JobPage, Model, Output, RowError, Traffic, each_row
from batchline.client.schedules import AsyncSchedules, Schedules
from batchline.client.webhooks import AsyncWebhooks, Webhooks
from batchline.clock import Clock, SystemClock
from batchline.errors import InvalidRequestError, UnauthorizedError
from batchline.job import Status

T = TypeVar("T")

CONNECT_S = 5.0
_LIMITS = httpx.Limits(max_connections=500, max_keepalive_connections=100)
# Loopback is never behind a proxy, whatever the environment says of proxies.
_DIRECT: dict[str, None] = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}


def _calls(url: str | None, api_key: str | None, timeout_s: float, clock: Clock) -> Calls:
    found = settings.load_client()
    urls = settings.split_urls(url) if url else found.urls or (found.default_url,)
    wrong = [u for u in urls if not u.startswith(("http://", "https://"))]
    if wrong or not urls:
        raise InvalidRequestError(f"{wrong[0] if wrong else url!r} is no server: give http://HOST:PORT.")
    key = found.api_key if api_key is None else api_key
    if not (key.isascii() and key.isprintable()):
        raise UnauthorizedError("The API key is no key: it has characters that no key has.")
    return Calls(urls, key, timeout_s, clock)


def _timeout(send: Send) -> httpx.Timeout:
    return httpx.Timeout(send.timeout_s, connect=min(CONNECT_S, send.timeout_s), pool=None)


def _content(send: Send) -> dict[str, Any]:
    """The body as httpx takes it; a form is read while it is sent."""
    if isinstance(send.body, Upload):
        return {"data": {"purpose": "batch"}, "files": {"file": (send.body.name, send.body.open())}}
    return {"content": send.body}


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


class _Pages:
    """Where a listing of at most `limit` entries stands.

    Attributes:
        after: the id behind which the next page begins.
        more: whether there is one to be asked for.
    """

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self.after: str | None = None
        self.more = limit is None or limit > 0

    @property
    def size(self) -> int:
        """Of the next page."""
        return PAGE if self._left is None else min(PAGE, self._left)

    def took(self, page: JobPage | BatchPage) -> None:
        """This was the next page."""
        if self._left is not None:
            self._left -= len(page.data)
        self.after = page.last_id
        self.more = page.has_more and self.after is not None and (self._left is None or self._left > 0)


class Client:
    """The API for programs. Threads may share one."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connects at the first call.

        Args:
            url: the server, or several with commas between: a dead or overloaded one is left for the next.
                BATCHLINE_URL when absent, else http://127.0.0.1:8000.
            api_key: BATCHLINE_API_KEY when absent, else what the file `.batchline/key` holds.
            timeout_s: how long one call may take, retries included; `wait` has its own.
            transport: another way to the server than the network.
            clock: where time comes from.
            sleep: what is called between two tries.
        """
        self._calls = _calls(url, api_key, timeout_s, clock or SystemClock())
        self._batch_calls = BatchCalls(self._calls)
        self.schedules = Schedules(self._run, self._calls)
        """Batches that run by themselves."""
        self.webhooks = Webhooks(self._run, self._calls)
        """Messages about the ends of jobs and batches."""
        self._http = httpx.Client(transport=transport, limits=_LIMITS, mounts={} if transport else _DIRECT)
        self._sleep = sleep

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers, in the order of their use."""
        return tuple(self._calls.urls)

    def submit(self, model: str, inputs: object, **options: Unpack[SubmitOptions]) -> Job:
        """Submit a job of 1 to 1,000 rows.

        Args:
            model: its name.
            inputs: the rows: a list (or a numpy array of N rows) of nested lists, of objects `{input: value}`, or of
                strings for a model that takes text.
            **options: see `SubmitOptions`: version, priority, ttl_s, deadline, metadata, idempotency_key, webhook.

        Returns:
            The job, queued.

        Raises:
            InvalidRequestError: the rows do not fit the model; `faults` names each.
            QuotaError, OverloadedError, UnreachableError: it did not succeed in `timeout_s`.
        """
        return self._run(self._calls.submit(model, inputs, **options))

    def wait(self, job: Job | str, timeout_s: float | None = None) -> Job:
        """The finished job; outlives restarts of the servers, refusals and lost connections.

        Raises:
            TimedOutError: `timeout_s` has passed and the job is not finished; it may be waited for again.
            NotFoundError: there is no such job.
        """
        return self._run(self._calls.wait(_id(job), timeout_s))

    def get(self, job: Job | str) -> Job:
        """The job as it is now."""
        return self._run(self._calls.get(_id(job)))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job that is not finished.

        Raises:
            AlreadyEndedError: it is finished, and stays as it is.
        """
        return self._run(self._calls.cancel(_id(job)))

    def jobs(
        self, *, status: Status | str | None = None, model: str | None = None, limit: int | None = None
    ) -> Iterator[Job]:
        """Jobs, newest first, without their outputs; page by page."""
        pages = _Pages(limit)
        while pages.more:
            page = self._run(self._calls.page(status, model, pages.after, pages.size))
            yield from page.data
            pages.took(page)

    def rows(self, job: Job | str) -> Iterator[Output | RowError]:
        """Each row of a job in order: its output, or why it has none. Waits for a job that is not finished."""
        done = job if isinstance(job, Job) and job.is_finished and job.outputs is not None else self.wait(job)
        return each_row(done)

    def batch(self, model: str, data: object, **options: Unpack[BatchOptions]) -> Batch:
        """Submit a batch: all rows of a data set, of any size.

        Args:
            model: its name.
            data: a URI that the server reads (`s3://bucket/users/*.parquet`); a path of a file here; a table of pandas,
                polars or pyarrow; an array or a list of rows; or an input as the API takes it, such as
                `{"table": "public.users", "key": "id"}`.
            **options: see `BatchOptions`: output, key, columns, where, version, priority, deadline, …

        Returns:
            The batch, `validating`. Its `id` is all that another program needs to go on: `get_batch`.

        Raises:
            InvalidRequestError: the batch does not fit the model; `faults` names each reason.
            QuotaError, OverloadedError, UnreachableError: it did not succeed in `timeout_s`.
        """
        return self._batch(self._run(self._batch_calls.create(model, data, options)))

    def get_batch(self, batch_id: str) -> Batch:
        """A batch by its id.

        Raises:
            NotFoundError: there is no such batch.
        """
        return self._batch(self._run(self._batch_calls.get(batch_id)))

    def batches(self, *, limit: int | None = None) -> Iterator[BatchInfo]:
        """Batches, newest first; page by page."""
        pages = _Pages(limit)
        while pages.more:
            page = self._run(self._batch_calls.page(pages.after, pages.size))
            yield from page.data
            pages.took(page)

    def _batch(self, info: BatchInfo) -> Batch:
        return Batch(self._run, self._sleep, self._batch_calls, info)

    def models(self) -> list[Model]:
        """The models of the catalogue."""
        return self._run(self._calls.models())

    def model(self, name: str) -> Model:
        """One model with all its versions."""
        return self._run(self._calls.model(name))

    def traffic(self, name: str) -> Traffic:
        """Which version of a model takes the jobs that name none, and how its versions did lately."""
        return self._run(self._calls.traffic(name))

    def set_traffic(
        self,
        name: str,
        production: str | int,
        *,
        canary: str | int | None = None,
        percent: float | None = None,
        shadow: str | int | None = None,
    ) -> Traffic:
        """Set the whole rule of a model; what is not given is switched off. Needs the scope admin.

        Args:
            name: of the model.
            production: the version that takes the jobs that name none.
            canary: takes `percent` of them instead.
            percent: 0 to 100.
            shadow: gets a copy of each, unseen by whoever submits.
        """
        return self._run(self._calls.set_traffic(name, production, canary, percent, shadow))

    def reset_traffic(self, name: str) -> Traffic:
        """Go back to the highest version taking all jobs. Needs the scope admin."""
        return self._run(self._calls.reset_traffic(name))

    def request(self, method: str, path: str, body: object = None) -> object:
        """Any other route: its JSON answer, with the same retries; a body is repeated as it is."""
        return self._run(self._calls.request(method, path, body))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        step: Answer | Lost | None = None
        try:
            while True:
                effect = call.send(step)
                step = self._send(effect) if isinstance(effect, Send) else self._sleep(effect)
        except StopIteration as end:
            return end.value

    def _send(self, send: Send) -> Answer | Lost:
        try:
            return _answer(
                self._http.request(
                    send.method, send.url, headers=send.headers, timeout=_timeout(send), **_content(send)
                )
            )
        except httpx.RequestError as e:
            return Lost(str(e) or type(e).__name__)


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited. One event loop; any number of tasks."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """See `Client`."""
        self._calls = _calls(url, api_key, timeout_s, clock or SystemClock())
        self._batch_calls = BatchCalls(self._calls)
        self.schedules = AsyncSchedules(self._run, self._calls)
        """See `Client.schedules`."""
        self.webhooks = AsyncWebhooks(self._run, self._calls)
        """See `Client.webhooks`."""
        self._http = httpx.AsyncClient(transport=transport, limits=_LIMITS, mounts={} if transport else _DIRECT)
        self._sleep = sleep

    async def submit(self, model: str, inputs: object, **options: Unpack[SubmitOptions]) -> Job:
        """See `Client.submit`."""
        return await self._run(self._calls.submit(model, inputs, **options))

    async def wait(self, job: Job | str, timeout_s: float | None = None) -> Job:
        """See `Client.wait`."""
        return await self._run(self._calls.wait(_id(job), timeout_s))

    async def get(self, job: Job | str) -> Job:
        """See `Client.get`."""
        return await self._run(self._calls.get(_id(job)))

    async def cancel(self, job: Job | str) -> Job:
        """See `Client.cancel`."""
        return await self._run(self._calls.cancel(_id(job)))

    async def jobs(
        self, *, status: Status | str | None = None, model: str | None = None, limit: int | None = None
    ) -> AsyncIterator[Job]:
        """See `Client.jobs`."""
        pages = _Pages(limit)
        while pages.more:
            page = await self._run(self._calls.page(status, model, pages.after, pages.size))
            for job in page.data:
                yield job
            pages.took(page)

    async def rows(self, job: Job | str) -> AsyncIterator[Output | RowError]:
        """See `Client.rows`."""
        done = job if isinstance(job, Job) and job.is_finished and job.outputs is not None else await self.wait(job)
        for row in each_row(done):
            yield row

    async def batch(self, model: str, data: object, **options: Unpack[BatchOptions]) -> AsyncBatch:
        """See `Client.batch`."""
        return self._batch(await self._run(self._batch_calls.create(model, data, options)))

    async def get_batch(self, batch_id: str) -> AsyncBatch:
        """See `Client.get_batch`."""
        return self._batch(await self._run(self._batch_calls.get(batch_id)))

    async def batches(self, *, limit: int | None = None) -> AsyncIterator[BatchInfo]:
        """See `Client.batches`."""
        pages = _Pages(limit)
        while pages.more:
            page = await self._run(self._batch_calls.page(pages.after, pages.size))
            for info in page.data:
                yield info
            pages.took(page)

    def _batch(self, info: BatchInfo) -> AsyncBatch:
        return AsyncBatch(self._run, self._batch_calls, info)

    async def models(self) -> list[Model]:
        """See `Client.models`."""
        return await self._run(self._calls.models())

    async def model(self, name: str) -> Model:
        """See `Client.model`."""
        return await self._run(self._calls.model(name))

    async def traffic(self, name: str) -> Traffic:
        """See `Client.traffic`."""
        return await self._run(self._calls.traffic(name))

    async def set_traffic(
        self,
        name: str,
        production: str | int,
        *,
        canary: str | int | None = None,
        percent: float | None = None,
        shadow: str | int | None = None,
    ) -> Traffic:
        """See `Client.set_traffic`."""
        return await self._run(self._calls.set_traffic(name, production, canary, percent, shadow))

    async def reset_traffic(self, name: str) -> Traffic:
        """See `Client.reset_traffic`."""
        return await self._run(self._calls.reset_traffic(name))

    async def request(self, method: str, path: str, body: object = None) -> object:
        """See `Client.request`."""
        return await self._run(self._calls.request(method, path, body))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        step: Answer | Lost | None = None
        try:
            while True:
                effect = call.send(step)
                step = await self._send(effect) if isinstance(effect, Send) else await self._sleep(effect)
        except StopIteration as end:
            return end.value

    async def _send(self, send: Send) -> Answer | Lost:
        try:
            return _answer(
                await self._http.request(
                    send.method, send.url, headers=send.headers, timeout=_timeout(send), **_content(send)
                )
            )
        except httpx.RequestError as e:
            return Lost(str(e) or type(e).__name__)
