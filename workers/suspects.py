"""Slices whose process died: each pass alone in the process and noted beforehand, until the guilty row stands alone."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import numpy as np

from batchline.job import ClaimedJob
from batchline.store.batch_contract import Slices
from workers.collate import MicroBatch
from workers.models import LoadedModel
from workers.predict import Pace, Predicted, Predictor
from workers.stretches import Collator, Stretch
from workers.turns import Turns

_PARTS = 256
"""Into so many passes is the stretch cut that the process died in: one row of 65,536 is found by two more deaths.
Halving would take sixteen, and each costs a lease."""
_NOTHING = (0, 0)


class StaleError(Exception):
    """The slice is no longer this attempt's."""


class Alone:
    """Predicts the stretches of one suspect slice."""

    def __init__(
        self,
        slices: Slices,
        predictor: Predictor,
        turns: Turns,
        *,
        worker_id: uuid.UUID,
        job: ClaimedJob,
        model: LoadedModel,
        pace: Pace,
        exposed: tuple[int, int] | None,
        check: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        """Begin an attempt.

        Args:
            slices: where exposure is noted.
            predictor: of the device.
            turns: of the process.
            worker_id: the fence, with `job`.
            job: the slice.
            model: what to run.
            pace: sizes of passes.
            exposed: row offsets [from, to) that the process died with.
            check: raises when the slice is to be left.
            stop: set when the worker drains.
        """
        self._slices = slices
        self._predictor = predictor
        self._turns = turns
        self._worker_id = worker_id
        self._job = job
        self._model = model
        self._pace = pace
        self._collator = Collator(model, pace)
        self._exposed = exposed
        self._check = check
        self._stop = stop

    def predict(self, stretch: Stretch) -> None:
        """Run the rows of a stretch, part by part.

        Raises:
            StaleError: the slice is no longer ours.
        """
        offsets = stretch.todo + stretch.first
        for start, stop in self._parts(offsets):
            batches = self._collator.part(stretch, start, stop)
            while not self._alone(stretch.predicted, batches, (int(offsets[start]), int(offsets[stop - 1]) + 1)):
                self._check()

    def _parts(self, offsets: np.ndarray) -> Iterator[tuple[int, int]]:
        """Cut rows into parts: small ones within the stretch that the process died in, passes elsewhere."""
        low, high = (int(n) for n in np.searchsorted(offsets, self._exposed or _NOTHING))
        small = max(1, -(-(high - low) // _PARTS))
        for begin, end, inside in ((0, low, False), (low, high, True), (high, len(offsets), False)):
            start = begin
            while start < end:
                stop = min(end, start + (small if inside else self._pace.rows(self._model, online=True)))
                yield start, stop
                start = stop

    def _alone(self, done: Predicted, batches: list[MicroBatch], offsets: tuple[int, int]) -> bool:
        """One part with nothing else in the process; False if that could not be had."""
        with self._turns.slot(), self._turns.alone(self._stop) as alone:
            if not alone:
                return False
            self._expose(offsets)
            part = self._predictor.run(self._model, batches, lambda _: self._check(), pace=self._pace)
            self._expose(_NOTHING)
        done.passes += part.passes
        done.faults |= part.faults
        done.no_room |= part.no_room
        done.predict_s += part.predict_s
        done.wait_s += part.wait_s
        return True

    def _expose(self, offsets: tuple[int, int]) -> None:
        if not self._slices.expose(self._worker_id, self._job, offsets):
            raise StaleError
