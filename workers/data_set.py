"""Slices of a data set: rows of a source, through the model, into a part of a sink."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import cast

import msgspec
import numpy as np
import pyarrow as pa

from batchline.batch import Slice, Staged, bits_to_rows
from batchline.data.columns import Mapper
from batchline.data.contract import Part, Rows, Sink, Source
from batchline.data.many_pieces import read_pieces
from batchline.job import ClaimedJob
from batchline.model import DTYPES, ModelSpec
from batchline.store.batch_contract import SliceWork
from workers.stretches import POISON, Numbers, RowFault, Stretch, Written, settle

Opened = tuple[Source, Mapper]

_ROWS = 8_192
_BYTES = 8 * 2**20
_FREE_ROWS = 1024
"""Rows of one stretch: of a fixed shape at most so many and so large; of a free one so many."""


class DataSetWork:
    """See `workers.stretches.Work`."""

    def __init__(self, ask: SliceWork, job: ClaimedJob, spec: ModelSpec, opened: Opened, sink: Sink) -> None:
        self._job = job
        self._slice = msgspec.json.decode(job.payload, type=Slice)
        self._source, self._mapper = opened
        self._sink = sink
        self._only = None if self._slice.only is None else np.array(bits_to_rows(self._slice.only), np.int64)
        self._poison = np.array(sorted(ask.poison), np.int64)
        self._batch_rows = stretch_rows(spec)

    def read(self) -> Iterator[Stretch]:
        pieces = self._slice.pieces
        firsts = [0, *accumulate(piece.rows for piece in pieces)]
        wanted = [at for at, piece in enumerate(pieces) if self._wants(firsts[at], piece.rows)]
        asked = [pieces[at] for at in wanted]
        reads, texts = self._mapper.reads, self._mapper.texts
        for number, rows in read_pieces(self._source, asked, reads, batch_rows=self._batch_rows, texts=texts):
            at = wanted[number]
            yield self._stretch(rows, firsts[at], pieces[at].uri)
            firsts[at] += rows.batch.num_rows

    def _wants(self, first: int, count: int) -> bool:
        within = _within(self._only, first, count)
        return within is None or len(within) > 0

    def _stretch(self, rows: Rows, first: int, where: str) -> Stretch:
        count = rows.batch.num_rows
        only = _within(self._only, first, count)
        poison = _within(self._poison, first, count)
        faults: dict[int, RowFault] = {}
        if poison is not None and len(poison):
            every = np.arange(count) if only is None else only
            faults = {int(row): RowFault("poison", POISON) for row in np.intersect1d(every, poison)}
            only = np.setdiff1d(every, poison, assume_unique=True)
        mapped = self._mapper.arrays(rows, only=None if only is None else only.tolist(), where=where)
        faults |= {row: RowFault("invalid_row", why) for row, why in mapped.faults.items()}
        todo = np.arange(count) if mapped.at is None else mapped.at
        return Stretch(first, len(todo) + len(faults), rows.batch, todo, mapped.columns, faults)

    def write(self, stretches: Iterator[Stretch]) -> Written:
        part = self._sink.open(self._slice.number, self._job.attempt, self._mapper.schema)
        try:
            rows, failed = 0, list[int]()
            for stretch in stretches:
                bad = self._put(part, stretch)
                rows += stretch.count
                failed += [stretch.first + row for row in bad]
            staged = part.stage()
            if part.refused:
                failed = sorted({*failed, *(number - self._slice.first_row for number in part.refused)})
            return Written(staged, rows, failed)
        except BaseException:
            part.abort()
            raise

    def _put(self, part: Part, stretch: Stretch) -> Sequence[int]:
        """Write one stretch; returns its rows that failed, ascending."""
        batch = cast("pa.RecordBatch", stretch.source)
        settled = settle(stretch)
        first_row = self._slice.first_row + stretch.first
        bad = sorted(settled.faults)
        if bad:
            faults = [settled.faults[row] for row in bad]
            codes, messages = [fault.code for fault in faults], [fault.message for fault in faults]
            part.write_errors(self._mapper.errors(batch, bad, first_row, codes, messages))
        if len(settled.good):
            good = None if len(settled.good) == batch.num_rows else settled.good
            numbers = settled.good + first_row
            part.write(self._mapper.output(batch, good, first_row, settled.outputs), cast("Sequence[int]", numbers))
        return bad

    def publish(self, staged: Staged) -> None:
        self._sink.publish(self._slice.number, staged)

    def discard(self, staged: Staged) -> None:
        self._sink.discard(self._slice.number, staged)


def stretch_rows(spec: ModelSpec) -> int:
    """How many rows are read together: memory is bounded by a few stretches, whatever the size of the slice."""
    if spec.text is not None or any(None in tensor.shape for tensor in spec.inputs):
        return _FREE_ROWS
    row_bytes = sum(
        math.prod(axis or 1 for axis in tensor.shape) * np.dtype(DTYPES[tensor.dtype]).itemsize
        for tensor in (*spec.inputs, *spec.outputs)
    )
    return max(1, min(_ROWS, _BYTES // max(row_bytes, 1)))


def _within(rows: Numbers | None, first: int, count: int) -> Numbers | None:
    """Those of the offsets that lie in [first, first + count), counted from first."""
    if rows is None:
        return None
    low, high = np.searchsorted(rows, (first, first + count))
    return rows[low:high] - first
