"""The sink of a batch that names none: lines for Postgres."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

import pyarrow as pa
import pytest
from sink_rows import SCHEMA, faults, rows

from batchline.batch import Chunk, Output
from batchline.data import open_sink
from batchline.data.contract import Places, SinkContext


class Lines:
    """Keeps what the default sink gives to the store."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.swept: list[uuid.UUID] = []

    def write(self, job_id: uuid.UUID, attempt: int, chunks: Sequence[Chunk]) -> None:
        del job_id, attempt
        self.chunks += chunks

    def sweep(self, batch_id: uuid.UUID) -> None:
        self.swept.append(batch_id)


NUMBERED = SCHEMA.insert(0, pa.field("row", pa.int64()))


def numbered(*numbers: int) -> pa.RecordBatch:
    picked = rows(max(numbers) + 1).take(pa.array(numbers))
    return pa.RecordBatch.from_arrays([pa.array(numbers), *picked.columns], schema=NUMBERED)


@pytest.mark.parametrize("errors_first", [True, False])
def test_lines_are_in_the_order_of_rows(errors_first: bool) -> None:
    """Good rows and faults find their places, whichever of a stretch comes first."""
    lines = Lines()
    part = open_sink(Output(), Places("file:///b"), SinkContext(uuid.uuid4(), "id", uuid.uuid4()), results=lines).open(
        0, 1, NUMBERED
    )
    for good, bad in (((0, 2, 3), (1,)), ((4, 7), (5, 6)), ((), (8, 9)), ((10,), ())):
        if bad and errors_first:
            part.write_errors(faults(*bad))
        if good:
            part.write(numbered(*good))
        if bad and not errors_first:
            part.write_errors(faults(*bad))
    done = part.stage()
    told = [json.loads(line) for chunk in lines.chunks for line in chunk.lines.splitlines()]
    assert [line["row"] for line in told] == list(range(11))
    assert told[5] == {"row": 5, "id": 5, "error": {"code": "invalid", "message": "row 5"}}
    assert list(told[0]) == ["row", "id", "note", "label", "scores"]
    assert (done.rows, done.errors) == (6, 5)
    assert done.bytes == sum(len(chunk.lines) for chunk in lines.chunks)


def test_chunks_are_small_and_say_their_rows() -> None:
    """A chunk has some hundred KiB; its first row and count are those of its lines."""
    lines = Lines()
    part = open_sink(Output(), Places("file:///b"), SinkContext(uuid.uuid4(), None, uuid.uuid4()), results=lines).open(
        0, 1, NUMBERED
    )
    part.write(numbered(*range(40_000)))
    part.stage()
    assert len(lines.chunks) > 3
    assert max(len(chunk.lines) for chunk in lines.chunks) < 700_000
    first = 0
    for chunk in lines.chunks:
        assert (chunk.first_row, chunk.rows) == (first, chunk.lines.count(b"\n"))
        first += chunk.rows
    assert first == 40_000
