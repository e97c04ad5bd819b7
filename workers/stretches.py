"""Stretches: consecutive rows of a slice on their way through the stages, and what becomes of each of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from batchline.batch import Staged
from batchline.rows import TEXT, Array, Column, RowBlock
from workers.collate import MicroBatch, collate
from workers.models import LoadedModel
from workers.predict import Pace, Predicted

log = logging.getLogger("workers")

Numbers = NDArray[np.int64]

_NO_INPUT = "The row cannot be made into the model's input."
_NO_ROOM = "The device has no room for this row, even alone."
POISON = "The worker process died each time this row ran alone; it is not tried again."


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row failed: a stable code, and a message for people."""

    code: str
    message: str


@dataclass(slots=True)
class Stretch:
    """Rows of a slice as they were read. Rows are numbered from 0 within it."""

    first: int
    """Offset of its first row within the slice."""
    count: int
    """How many of its rows are done, one way or the other; not those that are passed over."""
    source: object
    """What the writer must know of the rows; its own."""
    todo: Numbers
    """The rows that go to the model, ascending; micro-batches number these through."""
    columns: dict[str, Column] = field(default_factory=dict[str, Column])
    """The model's inputs, len(todo) rows."""
    faults: dict[int, RowFault] = field(default_factory=dict[int, RowFault])
    """Rows that failed before the model. Rows that are neither here nor in `todo` are passed over."""
    batches: list[MicroBatch] = field(default_factory=list[MicroBatch])
    predicted: Predicted = field(default_factory=Predicted)


@dataclass(frozen=True, slots=True)
class Written:
    """What the writer has made of all stretches: staged, how many rows it was given, and which of them failed."""

    staged: Staged
    rows: int
    failed: Sequence[int]
    """Offsets within the slice, ascending."""


class Work(Protocol):
    """What a slice is about: how its rows are read, and where they go. Each method is called by one thread."""

    def read(self) -> Iterator[Stretch]:
        """The rows in order, with inputs but not collated."""
        ...

    def write(self, stretches: Iterator[Stretch]) -> Written:
        """Write what was predicted and stage it; whatever is raised, nothing is left behind."""
        ...

    def publish(self, staged: Staged) -> None:
        """Make visible what was staged."""
        ...

    def discard(self, staged: Staged) -> None:
        """Remove what was staged and came too late."""
        ...


class Collator:
    """Makes micro-batches of the rows of stretches, for one model."""

    def __init__(self, model: LoadedModel, pace: Pace) -> None:
        self._model = model
        self._pace = pace
        self._encode = model.tokenizer.encode if model.tokenizer else None

    def whole(self, stretch: Stretch) -> None:
        """Fill in `batches`; rows that cannot be collated become faults of the prediction."""
        stretch.batches = self.part(stretch, 0, len(stretch.todo))

    def part(self, stretch: Stretch, start: int, stop: int) -> list[MicroBatch]:
        """Micro-batches of the rows todo[start:stop]."""
        if start == stop:
            return []
        try:
            return self._collated(stretch, start, stop)
        except Exception:
            log.warning("rows cannot be collated as one; trying each", extra={"model": self._model.spec.ref})
        batches: list[MicroBatch] = []
        for n in range(start, stop):
            try:
                batches += self._collated(stretch, n, n + 1)
            except Exception as e:
                log.info("row cannot be collated", extra={"error": str(e)[:300]})
                stretch.predicted.faults[n] = _NO_INPUT
        return batches

    def _collated(self, stretch: Stretch, start: int, stop: int) -> list[MicroBatch]:
        """Arrays of one shape are left whole: they are cut once the device is theirs."""
        columns = {name: column[start:stop] for name, column in stretch.columns.items()}
        whole = TEXT not in columns and all(isinstance(c, np.ndarray) for c in columns.values())
        most = stop - start if whole else self._pace.rows(self._model)
        batches = collate([RowBlock(stop - start, columns)], self._model.spec, max_rows=most, encode=self._encode)
        if not start:
            return batches
        return [replace(b, rows=[start + n for n in b.rows]) for b in batches]


def chosen(column: Column, rows: Numbers, count: int) -> Column:
    """These rows of a column of `count`; the column itself if that is all of them."""
    if len(rows) == count:
        return column
    if isinstance(column, np.ndarray):
        return column[rows]
    return cast("Column", [column[n] for n in rows])


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a stretch: the rows that succeeded, with their outputs, and the faults of the others."""

    good: Numbers
    """Ascending."""
    outputs: Mapping[str, Column]
    """[G, ...] for each output, or a list of G arrays where their shapes differ."""
    faults: Mapping[int, RowFault]


def settle(stretch: Stretch) -> Settled:
    """Put the passes of a stretch together."""
    done = stretch.predicted
    faults = dict(stretch.faults)
    for n, message in done.faults.items():
        faults[int(stretch.todo[n])] = RowFault("predict_failed", message)
    for n in done.no_room:
        faults[int(stretch.todo[n])] = RowFault("out_of_memory", _NO_ROOM)
    if not done.passes:
        return Settled(np.zeros(0, np.int64), {}, faults)
    numbers = np.concatenate([np.asarray(rows, np.int64) for rows, _ in done.passes])
    order = None if bool((numbers[1:] > numbers[:-1]).all()) else np.argsort(numbers)
    names = done.passes[0][1]
    outputs = {name: _ordered([out[name] for _, out in done.passes], order) for name in names}
    return Settled(stretch.todo[numbers if order is None else numbers[order]], outputs, faults)


def _ordered(parts: list[Array], order: Numbers | None) -> Column:
    if len({part.shape[1:] for part in parts}) == 1:
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole if order is None else whole[order]
    rows = [row for part in parts for row in part]
    return rows if order is None else [rows[n] for n in order]
