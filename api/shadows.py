"""Copies of jobs for shadow versions, written beside the clients' way: best effort, bounded, dropped and counted."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from uuid import UUID

from api.beside import Beside
from batchline.clock import Clock
from batchline.errors import StoreUnavailableError
from batchline.job import Lane, NewJob, new_job_id, rank_us
from batchline.metrics import SHADOWS
from batchline.model import ModelRecord
from batchline.traffic import SHADOW_TENANT, SHADOW_TTL_S

log = logging.getLogger("api.shadows")

MAX_JOBS = 1000
MAX_BYTES = 16 * 2**20
"""Of copies that wait to be written by this process."""
MAX_QUEUED_ROWS = 10_000
"""No copy is written while so many rows of copies wait for workers."""
_LOWEST = 9
_REST_S = 5.0
"""After trouble: whatever comes meanwhile is dropped."""

Copy = Callable[[Sequence[tuple[NewJob, UUID]]], None]
Nudge = Callable[[str, Lane], None]


class Shadows(Beside):
    """The copies that wait, and the thread that writes them.

    Args:
        copy: stores a group of copies with the ids of the clients' jobs; blocks on a connection of its own.
        nudge: called for each pool of a written group; must not block.
        queued_rows: how many rows of copies wait for workers, at the last count.
        clock: the database's time.
    """

    def __init__(self, copy: Copy, nudge: Nudge, queued_rows: Callable[[], int], clock: Clock) -> None:
        super().__init__("shadows")
        self._copy = copy
        self._nudge = nudge
        self._queued_rows = queued_rows
        self._clock = clock
        self._open: deque[tuple[NewJob, ModelRecord]] = deque()
        self._bytes = 0
        self._rests_until = float("-inf")

    def offer(self, job: NewJob, shadow: ModelRecord) -> None:
        """Have a committed job copied to a version, if there is room; never waits for the database, never fails."""
        size = len(job.payload)
        with self._change:
            resting = self._clock.monotonic() < self._rests_until
            full = len(self._open) >= MAX_JOBS or self._bytes + size > MAX_BYTES
            if not self._closed and not resting and not full:
                self._open.append((job, shadow))
                self._bytes += size
                self._change.notify()
                return
        SHADOWS.labels(shadow.spec.name, "trouble" if resting else "full").inc()

    def _take(self) -> list[tuple[NewJob, ModelRecord]]:
        with self._change:
            while not self._open and not self._closed:
                self._change.wait()
            if self._closed:
                return []  # nobody waits for them, and whoever ends us does
            group = list(self._open)
            self._open.clear()
            self._bytes = 0
            return group

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ARG002 - it answers nobody
        while group := self._take():
            outcome = "backlog"
            if self._queued_rows() < MAX_QUEUED_ROWS:
                outcome = "sent" if self._write(group) else "trouble"
            for _, shadow in group:
                SHADOWS.labels(shadow.spec.name, outcome).inc()

    def _write(self, group: Sequence[tuple[NewJob, ModelRecord]]) -> bool:
        try:
            self._copy([(self._copied(job, shadow), job.id) for job, shadow in group])
        except Exception as e:
            told = e.detail if isinstance(e, StoreUnavailableError) else repr(e)
            log.warning("shadows dropped", extra={"jobs": len(group), "error": told})
            with self._change:
                self._rests_until = self._clock.monotonic() + _REST_S
            return False
        for pool in {shadow.spec.policy.pool for _, shadow in group}:
            self._nudge(pool, Lane.ONLINE)
        return True

    def _copied(self, job: NewJob, shadow: ModelRecord) -> NewJob:
        """The copy. It ranks behind all that clients submit as long as it may wait."""
        now = self._clock.now()
        ends = now + timedelta(seconds=SHADOW_TTL_S)
        return NewJob(
            id=new_job_id(now.timestamp()),
            tenant_id=SHADOW_TENANT,
            model_id=shadow.id,
            lane=Lane.ONLINE,
            priority=_LOWEST,
            rank=rank_us(ends.timestamp(), _LOWEST),
            rows=job.rows,
            payload=job.payload,
            deadline_at=ends,
        )
