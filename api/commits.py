"""Group commit: one thread writes everything that arrived during its last commit, then nudges, then answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from api.beside import Beside
from batchline import failpoints
from batchline.errors import BatchlineError, OverloadedError, StoreUnavailableError
from batchline.job import Admitted, Lane, NewJob
from batchline.metrics import COMMIT_SECONDS, GROUP_SIZE

log = logging.getLogger("api.commits")

MAX_JOBS = 500
MAX_BYTES = 16 * 2**20
"""Of one statement; what is above goes with the next."""

Submit = Callable[[Sequence[NewJob]], list[Admitted | BatchlineError]]
Nudge = Callable[[str, Lane], None]


class _Entry:
    """One submit on its way. `taken` says that its fate is no longer ours to decide."""

    __slots__ = ("future", "job", "pool", "taken")

    def __init__(self, job: NewJob, pool: str, future: asyncio.Future[Admitted]) -> None:
        self.job = job
        self.pool = pool
        self.future = future
        self.taken = False


class Commits(Beside):
    """The open group of this process and the thread that commits it.

    Args:
        submit: commits a group and tells the outcome of each job, in order.
        nudge: called for each pool and lane of a committed group; must not block.
        wait_s: longest wait of a submit.
        limit_bytes: most bytes of rows that wait and commit at once.
    """

    def __init__(self, submit: Submit, nudge: Nudge, *, wait_s: float, limit_bytes: int) -> None:
        super().__init__("commits")
        self._submit = submit
        self._nudge = nudge
        self._wait_s = wait_s
        self._limit_bytes = limit_bytes
        self._open: deque[_Entry] = deque()
        self._bytes = 0

    async def commit(self, job: NewJob, pool: str) -> Admitted:
        """Join the open group and return when it is committed.

        Raises:
            OverloadedError: the job was not accepted; the group was full or its turn did not come in time.
            StoreUnavailableError: the outcome is unknown; repeating with the same Idempotency-Key is safe.
            BatchlineError: the store refused this job.
        """
        loop = asyncio.get_running_loop()
        entry = _Entry(job, pool, loop.create_future())
        size = len(job.payload)
        with self._change:
            if self._closed or self._bytes + size > self._limit_bytes:
                raise OverloadedError("More is arriving than can be written; this job was not accepted.")
            self._open.append(entry)
            self._bytes += size
            self._change.notify()
        timer = loop.call_later(self._wait_s, self._overdue, entry)
        try:
            return await entry.future
        finally:
            timer.cancel()

    def _overdue(self, entry: _Entry) -> None:
        with self._change:
            taken = entry.taken
            if not taken and entry in self._open:
                self._open.remove(entry)
                self._bytes -= len(entry.job.payload)
        if not entry.future.done():
            entry.future.set_exception(
                _unconfirmed()
                if taken
                else OverloadedError("The database is slow to write; this job was not accepted.", retry_after_s=2.0)
            )

    def _take(self) -> list[_Entry]:
        """The next group; empty when closed and done."""
        with self._change:
            while not self._open and not self._closed:
                self._change.wait()
            group: list[_Entry] = []
            size = 0
            while self._open and len(group) < MAX_JOBS:
                size += len(self._open[0].job.payload)
                if group and size > MAX_BYTES:
                    break
                entry = self._open.popleft()
                entry.taken = True
                group.append(entry)
            return group

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while group := self._take():
            started = time.perf_counter()
            outcomes = self._outcomes([entry.job for entry in group])
            COMMIT_SECONDS.observe(time.perf_counter() - started)
            GROUP_SIZE.observe(len(group))
            failpoints.hit("api.after_commit")
            with self._change:
                self._bytes -= sum(len(entry.job.payload) for entry in group)
            for pool, lane in {(entry.pool, entry.job.lane) for entry in group}:
                self._nudge(pool, lane)
            try:
                loop.call_soon_threadsafe(_answer, group, outcomes)
            except RuntimeError:  # the loop is gone, and with it whoever waited
                log.warning("nobody is left to answer", extra={"jobs": len(group)})

    def _outcomes(self, jobs: list[NewJob]) -> Sequence[Admitted | BatchlineError]:
        try:
            return self._submit(jobs)
        except StoreUnavailableError as e:
            log.warning("commit failed", extra={"jobs": len(jobs), "error": e.detail})
            return [_unconfirmed() for _ in jobs]
        except Exception:
            log.exception("commit failed", extra={"jobs": len(jobs)})
            return [BatchlineError("The job could not be written; it has been logged.") for _ in jobs]


def _answer(group: Sequence[_Entry], outcomes: Sequence[Admitted | BatchlineError]) -> None:
    for entry, outcome in zip(group, outcomes, strict=True):
        if entry.future.done():
            continue
        if isinstance(outcome, BatchlineError):
            entry.future.set_exception(outcome)
        else:
            entry.future.set_result(outcome)


def _unconfirmed() -> StoreUnavailableError:
    return StoreUnavailableError(
        "The database did not confirm in time whether it has this job. Repeat the request: with the same"
        " Idempotency-Key it cannot be taken twice.",
        retry_after_s=2.0,
    )
