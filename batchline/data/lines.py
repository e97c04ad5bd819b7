"""The default sink: result lines in Postgres, in the order of rows, seen once their slice has finished."""

from __future__ import annotations

import heapq
from typing import cast

import pyarrow as pa

from batchline.batch import Chunk, Staged
from batchline.data import json_text
from batchline.data.contract import ROW, Manifest, ResultStore, SinkContext
from batchline.errors import SinkError, SinkUnavailableError, StoreUnavailableError

_CHUNK_BYTES = 512 << 10
_WRITE_BYTES = 8 << 20

_Line = tuple[int, bytes]


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

    def __init__(self, results: ResultStore, context: SinkContext, attempt: int) -> None:
        self._results = results
        self._context = context
        self._attempt = attempt
        self._good: list[_Line] = []
        self._bad: list[_Line] = []
        self._chunks: list[Chunk] = []
        self._waiting_bytes = 0
        self._rows = self._errors = self._bytes = 0

    def write(self, rows: pa.RecordBatch) -> None:
        if not rows.num_rows:
            return
        numbers = cast("list[int]", rows.column(ROW).to_pylist())
        self._release(self._good[-1][0] if self._good else -1)
        self._good.extend(zip(numbers, json_text.lines(rows), strict=True))
        self._rows += rows.num_rows

    def write_errors(self, errors: pa.RecordBatch) -> None:
        numbers = cast("list[int]", errors.column(ROW).to_pylist())
        named = [name for name in errors.schema.names if name not in ("code", "message")]
        heads = json_text.lines(errors.select(named))
        tails = json_text.lines(errors.select(["code", "message"]))
        told = (b'%b,"error":%b}' % (head[:-1], tail) for head, tail in zip(heads, tails, strict=True))
        self._bad.extend(zip(numbers, told, strict=True))
        self._errors += errors.num_rows

    def stage(self) -> Staged:
        self._release(None)
        self._flush()
        return Staged([], self._rows, self._errors, self._bytes)

    def abort(self) -> None:
        self._good, self._bad, self._chunks = [], [], []

    def _release(self, upto: int | None) -> None:
        """Turn lines of rows <= upto (all of them: None) into chunks."""
        good, self._good = self._good, []
        if upto is None:
            bad, self._bad = self._bad, []
        else:
            bad = [line for line in self._bad if line[0] <= upto]
            self._bad = self._bad[len(bad) :]
        if not good and not bad:
            return
        merged = good if not bad else list(heapq.merge(good, bad))
        size = sum(len(line) + 1 for _, line in merged)
        step = max(1, len(merged) * _CHUNK_BYTES // max(size, 1))
        for low in range(0, len(merged), step):
            stretch = merged[low : low + step]
            text = b"\n".join([line for _, line in stretch]) + b"\n"
            self._chunks.append(Chunk(stretch[0][0], len(stretch), text))
        self._bytes += size
        self._waiting_bytes += size
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
