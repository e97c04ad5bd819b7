"""The default sink: result lines in Postgres, in the order of rows, seen once their slice has finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchline.batch import Chunk, Staged
from batchline.data import json_text
from batchline.data.contract import ROW, Manifest, ResultStore, SinkContext
from batchline.errors import SinkError, SinkUnavailableError, StoreUnavailableError

_CHUNK_BYTES = 512 << 10
_WRITE_BYTES = 8 << 20


class LinesSink:
    """See `batchline.data.contract.Sink`. Its rows have `row` first, whatever the key."""

    def __init__(self, results: ResultStore, context: SinkContext) -> None:
        self._results = results
        self._context = context

    def check(self, schema: pa.Schema) -> None:
        if ROW not in schema.names:
            raise SinkError("Result lines are numbered: the rows need the column `row`.")

    def open(self, number: int, attempt: int, schema: pa.Schema) -> LinesPart:
        del number  # lines are filed under the job
        self.check(schema)
        if self._context.job is None:
            raise SinkError("Result lines need the slice that they belong to.")
        return LinesPart(self._results, self._context, attempt)

    def publish(self, number: int, staged: Staged) -> None:
        """Nothing to do: the finish of the slice shows its lines."""

    def discard(self, number: int, staged: Staged) -> None:
        """Nothing to do: `sweep` removes the lines of attempts that lost."""

    def complete(self, manifest: Manifest) -> None:
        """Nothing to do: the batch itself tells all of it."""

    def sweep(self) -> None:
        self._results.sweep(self._context.batch)


class LinesPart:
    """Lines of one slice. One stretch is held back until the next begins, so that its faults find their places."""

    refused: Sequence[int] = ()

    def __init__(self, results: ResultStore, context: SinkContext, attempt: int) -> None:
        self._results = results
        self._context = context
        self._attempt = attempt
        self._good: _Lines | None = None
        self._bad: list[_Lines] = []
        self._chunks: list[Chunk] = []
        self._waiting_bytes = 0
        self._rows = self._errors = self._bytes = 0

    def write(self, rows: pa.RecordBatch, numbers: Sequence[int] | None = None) -> None:
        del numbers  # the rows have them
        if not rows.num_rows:
            return
        good = _Lines(rows.column(ROW).to_numpy(), json_text.lines(rows))
        self._release(-1 if self._good is None else int(self._good.numbers[-1]))
        self._good = good
        self._rows += rows.num_rows

    def write_errors(self, errors: pa.RecordBatch) -> None:
        named = [name for name in errors.schema.names if name not in ("code", "message")]
        shown = {"key": self._context.key or "key", "error": "key"}
        told = pa.array(errors.select(["code", "message"]).to_pylist())
        whole = pa.record_batch(
            [*(errors.column(name) for name in named), told], [*(shown.get(name, name) for name in named), "error"]
        )
        self._bad.append(_Lines(errors.column(ROW).to_numpy(), json_text.lines(whole)))
        self._errors += errors.num_rows

    def stage(self) -> Staged:
        self._release(None)
        self._flush()
        return Staged([], self._rows, self._errors, self._bytes, self._rows + self._errors)

    def abort(self) -> None:
        self._good, self._bad, self._chunks = None, [], []

    def _release(self, upto: int | None) -> None:
        """Turn lines of rows <= upto (all of them: None) into chunks."""
        ready = [] if self._good is None else [self._good]
        self._good = None
        if self._bad:
            bad = _merged(self._bad)
            count = len(bad.numbers) if upto is None else int(np.searchsorted(bad.numbers, upto, "right"))
            self._bad = [bad.part(count, len(bad.numbers))] if count < len(bad.numbers) else []
            ready += [bad.part(0, count)] if count else []
        if ready:
            self._cut(_merged(ready))

    def _cut(self, lines: _Lines) -> None:
        count, size = len(lines.numbers), lines.texts.nbytes
        step = max(1, count * _CHUNK_BYTES // max(size, 1))
        for low in range(0, count, step):
            some = lines.part(low, min(low + step, count))
            self._chunks.append(Chunk(int(some.numbers[0]), len(some.numbers), json_text.joined(some.texts)))
            self._bytes += len(self._chunks[-1].lines)
            self._waiting_bytes += len(self._chunks[-1].lines)
        if self._waiting_bytes >= _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._chunks or self._context.job is None:
            return
        try:
            self._results.write(self._context.job, self._attempt, self._chunks)
        except StoreUnavailableError as e:
            raise SinkUnavailableError("Postgres takes no results now.") from e
        self._chunks, self._waiting_bytes = [], 0


class _Lines(NamedTuple):
    """N lines, each with its newline, and the numbers of their rows, ascending."""

    numbers: NDArray[np.int64]
    texts: json_text.Texts

    def part(self, low: int, high: int) -> _Lines:
        return _Lines(self.numbers[low:high], self.texts.slice(low, high - low))


def _merged(some: Sequence[_Lines]) -> _Lines:
    """All of them, in the order of their rows."""
    if len(some) == 1:
        return some[0]
    numbers = np.concatenate([lines.numbers for lines in some])
    order = np.argsort(numbers, kind="stable")
    return _Lines(numbers[order], pa.concat_arrays([lines.texts for lines in some]).take(order))
