"""The device: one forward pass at a time, halved until a fault stands at its row, bounded in size and in time."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from batchline.errors import OutOfMemoryError, RowError
from batchline.job import Lane
from batchline.metrics import MICRO_BATCH_ROWS
from batchline.rows import Array
from workers.collate import MicroBatch, cut
from workers.models import LoadedModel

log = logging.getLogger("workers")

_REMEMBER_S = 600.0
_HUNG = 70
_BULK_WAITS_S = 1.0
"""So long does a bulk pass stand back for online work that never ends; then it has one turn."""
_RECENT_S = 1.0
_MESSAGE_CHARS = 300


@dataclass(slots=True)
class Predicted:
    """What became of the N rows of a claim, by their numbers.

    Every row is in exactly one of `passes`, `faults` and `no_room`.
    """

    passes: list[tuple[Sequence[int], dict[str, Array]]] = field(
        default_factory=list[tuple[Sequence[int], dict[str, Array]]]
    )
    """Row numbers of one forward pass and its outputs, [B, ...] each."""
    faults: dict[int, str] = field(default_factory=dict[int, str])
    """Rows that cannot be predicted, and why."""
    no_room: set[int] = field(default_factory=set[int])
    """Rows that found no memory even alone."""
    refused: int = 0
    """Rows of the largest pass that raised."""
    predict_s: float = 0.0
    pass_s: list[float] = field(default_factory=list[float])
    """How long each of `passes` held the device."""
    wait_s: float = 0.0
    """Time spent waiting for the device."""


class Sizes:
    """How many rows of each model the device has room for; forgotten after ten minutes, others may have left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits: dict[int, tuple[int, float]] = {}

    def limit(self, model: LoadedModel, *, most: int | None = None) -> int:
        """Most rows of one forward pass; without memory troubles `most`, or as the policy says."""
        rows, until = self._limits.get(model.id, (0, 0.0))
        most = model.spec.policy.max_batch_size if most is None else most
        return min(rows, most) if self._clock() < until else most

    def had_no_room(self, model: LoadedModel, rows: int) -> int:
        """Note that so many rows were too many; returns how many to try next, at least 1."""
        half = max(1, rows // 2)
        self._limits[model.id] = (half, self._clock() + _REMEMBER_S)
        return half


class Device:
    """The lock of the device, online work before bulk, and the watchdog over who holds it.

    A forward pass that hangs cannot be stopped in a thread: the process is ended, and its lease brings the jobs back.
    """

    def __init__(self, *, hung: Callable[[], None] = lambda: os._exit(_HUNG)) -> None:
        self._change = threading.Condition()
        self._busy = False
        self._waiting = 0
        self._online_at = -math.inf
        self._pass: tuple[str, float] | None = None
        self._hung = hung
        self._closed = threading.Event()

    def watch(self, every_s: float = 0.5) -> None:
        """Start the watchdog."""
        threading.Thread(target=self._watch, args=(every_s,), name="watchdog", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    @contextmanager
    def occupy(self, lane: Lane = Lane.ONLINE) -> Generator[None]:
        """Have the device. Bulk goes behind all online work that waits, but for one pass a second."""
        with self._change:
            if lane is Lane.BULK:
                self._change.wait_for(lambda: not self._busy and not self._waiting, _BULK_WAITS_S)
                self._change.wait_for(lambda: not self._busy)
            else:
                self._waiting += 1
                self._change.wait_for(lambda: not self._busy)
                self._waiting -= 1
            self._busy = True
        try:
            yield
        finally:
            with self._change:
                self._busy = False
                if lane is Lane.ONLINE:
                    self._online_at = time.monotonic()
                self._change.notify_all()

    def online_waits(self) -> bool:
        """Whether online work wants the device, or had it within the last second."""
        return self._waiting > 0 or time.monotonic() - self._online_at < _RECENT_S

    @contextmanager
    def forward(self, model: LoadedModel) -> Generator[None]:
        """One forward pass, watched."""
        self._pass = (model.spec.ref, time.monotonic() + model.spec.policy.predict_timeout_s)
        try:
            yield
        finally:
            self._pass = None

    def _watch(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            now = self._pass
            if now is not None and time.monotonic() > now[1]:
                log.error(
                    "forward pass hangs; ending this process, its jobs will run elsewhere", extra={"model": now[0]}
                )
                self._hung()


class Pace(Protocol):
    """How large the passes of bulk work are."""

    def rows(self, model: LoadedModel, *, online: bool = False) -> int:
        """Most rows of the next pass; `online`: while online work waits."""
        ...

    def note(self, model: LoadedModel, rows: int, seconds: float, size_bytes: int) -> None:
        """Learn from a pass of so many rows that went well; size_bytes: of its inputs and outputs."""
        ...


class Predictor:
    """Runs micro-batches on one device."""

    def __init__(self, device: Device, sizes: Sizes) -> None:
        self._device = device
        self._sizes = sizes

    def run(
        self,
        model: LoadedModel,
        batches: Sequence[MicroBatch],
        begin: Callable[[int], None],
        *,
        pace: Pace | None = None,
        step: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Predicted:
        """Run the micro-batches of one claim; the device is let go between passes.

        Args:
            model: what to run.
            batches: every row of the claim once.
            begin: called with the number of passes tried so far whenever the device is ours; what it raises, is raised.
            pace: of bulk work: it stands back for online work, and its micro-batches are cut once the device is ours.
            step: entered for each pass, before the device is waited for.
        """
        done = Predicted()
        lane = Lane.ONLINE if pace is None else Lane.BULK
        todo = list(reversed(batches))
        tried = 0
        while todo:
            batch = todo.pop()
            waited = time.monotonic()
            with step(), self._device.occupy(lane):
                begin(tried)
                at = time.monotonic()
                done.wait_s += at - waited
                if pace and (rows := pace.rows(model, online=self._device.online_waits())) < len(batch.rows):
                    todo.append(batch.part(rows, len(batch.rows)))
                    batch = batch.part(0, rows)
                again = self._run(model, batch, done, pace)
                done.predict_s += time.monotonic() - at
            tried += 1
            todo += reversed(again)
        if done.refused > model.spec.policy.max_batch_size and not done.faults:
            self._sizes.had_no_room(model, done.refused)  # nobody was guilty: so many are refused
        return done

    def _run(self, model: LoadedModel, batch: MicroBatch, done: Predicted, pace: Pace | None) -> list[MicroBatch]:
        """One pass; returns the parts that are to be tried instead."""
        count = len(batch.rows)
        at = time.monotonic()
        try:
            with self._device.forward(model):
                outputs = model.runtime.run(batch.inputs)
            _check_lengths(outputs, count)
        except (OutOfMemoryError, MemoryError):
            half = self._sizes.had_no_room(model, count)
            log.warning("out of memory", extra={"model": model.spec.ref, "rows": count, "next": half})
            if count > 1:
                return cut(batch, half)
            done.no_room.add(batch.rows[0])
        except Exception as e:
            done.refused = max(done.refused, count)
            if count > 1:
                return cut(batch, count // 2)
            done.faults[batch.rows[0]] = _safe(e)
            log.info("row refused", extra={"model": model.spec.ref, "error": str(e)[:_MESSAGE_CHARS]})
        else:
            MICRO_BATCH_ROWS.labels(model.spec.ref).observe(count)
            spent_s = time.monotonic() - at
            done.passes.append((batch.rows, outputs))
            done.pass_s.append(spent_s)
            if pace:
                size = sum(a.nbytes for arrays in (batch.inputs, outputs) for a in arrays.values())
                pace.note(model, count, spent_s, size)
        return []


def _check_lengths(outputs: dict[str, Array], count: int) -> None:
    for name, value in outputs.items():
        have = value.shape[0] if value.ndim else 0
        if have != count:
            raise RowError(f"the model gave {have} rows of {name} for {count}")


def _safe(error: Exception) -> str:
    """What a client may read: our own words, or only that the model refused. The runtime's text goes to the log."""
    if isinstance(error, RowError):
        return f"The row cannot be predicted: {error.detail}."
    return "The model refused this row; its values may be outside of what the model can take."
