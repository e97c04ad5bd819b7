"""The bulk lane of one worker: one slice at a time, beside the online lane and behind it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol

from batchline.job import ClaimedJob, Lane
from batchline.queue.contract import Nudger
from batchline.store.contract import Head
from workers.claiming import Claimer
from workers.models import LoadedModel
from workers.turns import Slot, Turns


class RunSlice(Protocol):
    """Sees one claimed slice through; returns what Flower shows of it."""

    def __call__(
        self, worker_id: uuid.UUID, job: ClaimedJob, model: LoadedModel, predicted: Callable[[], None]
    ) -> dict[str, Any]:
        """Run a slice to its end, whatever that is; `predicted` is called once its last row has been."""
        ...


class BulkTurn:
    """The right to do bulk: one thread reads and predicts, and one more may still be finishing its slice."""

    def __init__(self, first: threading.Lock, last: threading.Lock) -> None:
        """`first` is held already."""
        self._mine: threading.Lock = first
        self._last = last
        self.worked = False

    def finishing(self) -> None:
        """Let the next slice begin; waits until the one before has been finished."""
        self._last.acquire()
        self._mine, before = self._last, self._mine
        before.release()

    def leave(self) -> None:
        """The end, from wherever."""
        self._mine.release()


class Bulk:
    """Takes slices for the engine, which has chosen and loaded their model."""

    def __init__(self, run: RunSlice, *, claimer: Claimer, turns: Turns, nudger: Nudger, pool: str) -> None:
        self._run = run
        self._claimer = claimer
        self._turns = turns
        self._nudger = nudger
        self._pool = pool
        self._first, self._last = threading.Lock(), threading.Lock()

    @contextmanager
    def turn(self) -> Generator[BulkTurn | None]:
        """Yields None at once if bulk work is being done already; whoever had the turn nudges for the next slice."""
        if not self._first.acquire(blocking=False):
            yield None
            return
        turn = BulkTurn(self._first, self._last)
        try:
            yield turn
        finally:
            turn.leave()
            if turn.worked:
                self._nudger.nudge(self._pool, Lane.BULK, force=True)

    def claim(
        self, worker_id: uuid.UUID, model: LoadedModel, head: Head, slot: Slot, turn: BulkTurn
    ) -> dict[str, Any] | None:
        """Claim one slice under the slot, let the slot go, and see the slice through.

        Returns:
            What happened, for Flower; None when somebody else had it.
        """
        if head.suspect:
            jobs, more = self._claimer.claim_suspect(worker_id, model.id, Lane.BULK), True
        else:
            claim = self._claimer.claim(worker_id, model, Lane.BULK, rows=1)
            jobs, more = claim.jobs, claim.more
        if not jobs:
            return None
        turn.worked = True

        def predicted() -> None:
            turn.finishing()
            turn.worked = False
            self._nudger.nudge(self._pool, Lane.BULK, force=True)

        with self._turns.hold(jobs, Lane.BULK):
            slot.release()
            if more or self._claimer.others_wait(Lane.BULK, model.id):
                self._nudger.nudge(self._pool, Lane.BULK)  # for other workers
            return self._run(worker_id, jobs[0], model, predicted)
