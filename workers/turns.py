"""Whose turn it is: one thread claims at a time, and a suspect runs when nothing else is in the process."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Self

from batchline.job import ClaimedJob, Lane
from batchline.store.cost_contract import Used
from workers.usage import Hand, Meter

_STEP_S = 2.0
"""So long is a step of bulk work waited for by who wants to be alone."""
_LOOK_S = 0.05


class Slot:
    """The right to claim. Given up early, as soon as the claimed rows are on the device, or at the end of the block."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._mine = False

    def __enter__(self) -> Self:
        self._lock.acquire()
        self._mine = True
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let the next thread claim; a second call does nothing."""
        if self._mine:
            self._mine = False
            self._lock.release()


class _Tally:
    """Rows of one lane, and the time in which some of its jobs were in hand."""

    def __init__(self) -> None:
        self.jobs = 0
        self.rows = 0
        self._busy_since = 0.0
        self._busy_s = 0.0

    def hold(self, jobs: int) -> None:
        if not self.jobs:
            self._busy_since = time.monotonic()
        self.jobs += jobs

    def let_go(self, jobs: int) -> None:
        self.jobs -= jobs
        if not self.jobs:
            self._busy_s += time.monotonic() - self._busy_since

    @property
    def busy_s(self) -> float:
        return self._busy_s + (time.monotonic() - self._busy_since if self.jobs else 0.0)


class Turns:
    """The slot, and the jobs in hand: claimed and not yet written.

    Jobs come into hand only under the slot. So who has the slot, finds no online jobs in hand and holds up the steps of
    bulk work is alone in the process for as long as it keeps both.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._change = threading.Condition()
        self._held: set[uuid.UUID] = set()
        self._slices: set[uuid.UUID] = set()
        self._steps = 0
        self._alone = False
        self._tallies = {lane: _Tally() for lane in Lane}
        self._meter = Meter()
        self._rows: dict[tuple[Lane, int], int] = defaultdict(int)
        self._hands: dict[uuid.UUID, Hand] = {}
        """By the first job of each claim."""

    def slot(self) -> Slot:
        return Slot(self._lock)

    @contextmanager
    def hold(self, jobs: Sequence[ClaimedJob], lane: Lane = Lane.ONLINE) -> Generator[None]:
        """The jobs are in hand until the end of the block."""
        ids = [job.id for job in jobs]
        with self._change:
            self._tallies[lane].hold(len(ids))
            self._held.update(ids)
            if hand := self._meter.begin(jobs, lane) if ids else None:
                self._hands[ids[0]] = hand
            if lane is Lane.BULK:
                self._slices.update(ids)
        try:
            yield
        finally:
            with self._change:
                self._held.difference_update(ids)
                if hand:
                    self._hands.pop(ids[0], None)  # the same job may be in hand twice, once its lease has run out
                    self._meter.end(hand)
                self._slices.difference_update(ids)
                self._tallies[lane].let_go(len(ids))
                self._change.notify_all()

    def held(self) -> list[uuid.UUID]:
        with self._change:
            return list(self._held)

    @contextmanager
    def step(self) -> Generator[None]:
        """One step of bulk work: reading, running or writing one micro-batch. Waits while a suspect is alone."""
        with self._change:
            self._change.wait_for(lambda: not self._alone)
            self._steps += 1
        try:
            yield
        finally:
            with self._change:
                self._steps -= 1
                self._change.notify_all()

    @contextmanager
    def alone(self, stop: threading.Event) -> Generator[bool]:
        """Under the slot: have the process to oneself.

        Yields:
            False if it could not be had: `stop` was set, or a step of bulk work (a slow read) takes too long.
        """
        with self._change:
            self._alone = True
            got = self._wait_alone(stop)
        try:
            yield got
        finally:
            with self._change:
                self._alone = False
                self._change.notify_all()

    def _wait_alone(self, stop: threading.Event) -> bool:
        since = time.monotonic()
        while not self._change.wait_for(lambda: not self._steps and self._held <= self._slices, 0.1):
            if not self._held <= self._slices:
                since = time.monotonic()
            if stop.is_set() or time.monotonic() - since > _STEP_S:
                return False
        return True

    def count(self, rows: int, model_id: int, lane: Lane = Lane.ONLINE) -> None:
        """Note rows of a model that have been predicted and written."""
        with self._change:
            self._tallies[lane].rows += rows
            self._rows[lane, model_id] += rows

    def done(self, lane: Lane) -> tuple[int, float]:
        """Rows of a lane counted, and for how many seconds some of its jobs were in hand, since the process began."""
        with self._change:
            return self._tallies[lane].rows, self._tallies[lane].busy_s

    def worked(self) -> dict[tuple[Lane, int], tuple[int, float]]:
        """Rows counted and seconds spent since it was last asked, by lane and model.

        A moment in which claims of several models are in hand is shared evenly by them, as in `workers.usage`: rows
        over seconds is what one does in the time that it really has, and the seconds of all are those of the process.
        """
        with self._change:
            busy = self._meter.busy()
            rows, self._rows = self._rows, defaultdict(int)
        return {key: (rows.get(key, 0), busy.get(key, 0.0)) for key in {*rows, *busy}}

    def belongs(self, job_id: uuid.UUID, batch_id: uuid.UUID) -> None:
        """The slice in hand is of this batch: its time is the batch's."""
        with self._change:
            if hand := self._hands.get(job_id):
                self._meter.name(hand, batch_id)

    def spent_s(self, job_id: uuid.UUID) -> float:
        """Seconds of this process that the claim which begins with this job has had so far; see `workers.usage`."""
        with self._change:
            hand = self._hands.get(job_id)
            return self._meter.seconds(hand) if hand else 0.0

    def used(self) -> list[Used]:
        """What has grown since it was last `told`."""
        with self._change:
            return self._meter.read()

    def told(self, used: Sequence[Used]) -> None:
        """These sums have been written down."""
        with self._change:
            self._meter.told(used)

    def renamed(self) -> None:
        """This process goes on under a new id, and its sums begin anew."""
        with self._change:
            self._meter.restart()

    def wait_empty(self, timeout_s: float = math.inf) -> bool:
        """Wait until nothing is in hand and nobody is claiming; False when the time is up."""
        deadline = time.monotonic() + timeout_s
        with self._change:
            while self._held or self._lock.locked():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._change.wait(min(left_s, _LOOK_S))  # nobody tells when the slot is free
        return True
