"""The default sink: result lines of batches in Postgres, copied in, passed through unread on the way out.

The lines of an attempt are seen only once their slice has finished with that attempt; what others left is swept.
Chunks are stored as zstd frames, a fifth of the bytes: what a batch writes ahead stands in the way of the commits of
online work, and compressing here costs Postgres nothing.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Iterator, Sequence

import psycopg2
import zstandard

from batchline.batch import Chunk
from batchline.store.postgres import Database, Row, Transaction, columns

_CHUNKS, _SLICES, _SWEPT = 4, 64, 1000
"""Chunks that one step of a read fetches, slices that it looks into, and chunks that one step of a sweep removes."""

_COPY = "COPY batch_lines (job_id, attempt, first_row, rows, lines) FROM STDIN WITH (FORMAT binary)"

_INSERT = """
INSERT INTO batch_lines (job_id, attempt, first_row, rows, lines)
SELECT %(job)s, %(attempt)s, * FROM unnest(%(first)s::bigint[], %(rows)s::int[], %(lines)s::bytea[])
ON CONFLICT DO NOTHING
"""

_START = """
SELECT s.number FROM slices s WHERE s.batch_id = %(id)s AND s.first_row <= %(row)s
ORDER BY s.first_row DESC, s.number DESC LIMIT 1
"""

_OPEN_BEFORE = """
SELECT 1 FROM slices s JOIN jobs j ON j.id = s.job_id
WHERE s.batch_id = %(id)s AND s.number < %(number)s AND j.status IN ('queued', 'running') LIMIT 1
"""

# Slices in order of their numbers up to the first that has not ended, each with its chunks in order of their rows; then
# one row that tells how far this looked: the last slice that may be read, the last one seen, and how many were seen.
_STEP = """
WITH seen AS MATERIALIZED (
  SELECT s.number, s.job_id, j.attempt, s.staged IS NOT NULL AS finished, j.status IN ('queued', 'running') AS open
  FROM slices s JOIN jobs j ON j.id = s.job_id
  WHERE s.batch_id = %(id)s AND s.number >= %(number)s ORDER BY s.number LIMIT %(slices)s
), ended AS MATERIALIZED (
  SELECT * FROM seen WHERE number < coalesce((SELECT min(number) FROM seen WHERE open), 2147483647)
)
SELECT * FROM (
  SELECT e.number, l.first_row, l.rows, l.lines FROM ended e CROSS JOIN LATERAL (
    SELECT l.first_row, l.rows, l.lines FROM batch_lines l WHERE l.job_id = e.job_id AND l.attempt = e.attempt
      AND l.first_row >= CASE WHEN e.number = %(number)s THEN %(row)s ELSE 0 END
    ORDER BY l.first_row LIMIT %(chunks)s
  ) l WHERE e.finished ORDER BY e.number, l.first_row LIMIT %(chunks)s) lines
UNION ALL SELECT (SELECT max(number) FROM ended), (SELECT max(number) FROM seen), (SELECT count(*) FROM seen)::int, NULL
"""

_CHUNK_OF_ROW = """
SELECT l.first_row FROM slices s JOIN jobs j ON j.id = s.job_id JOIN batch_lines l
  ON l.job_id = s.job_id AND l.attempt = j.attempt
WHERE s.batch_id = %(id)s AND s.number = %(number)s AND l.first_row <= %(row)s ORDER BY l.first_row DESC LIMIT 1
"""

_SWEEP = """
WITH lost AS MATERIALIZED (
  SELECT l.job_id, l.attempt, l.first_row FROM slices s JOIN jobs j ON j.id = s.job_id
  JOIN batch_lines l ON l.job_id = s.job_id
  WHERE s.batch_id = %(id)s AND (l.attempt < j.attempt OR j.status NOT IN ('queued', 'running') AND s.staged IS NULL)
  LIMIT %(limit)s
)
DELETE FROM batch_lines l USING lost
WHERE l.job_id = lost.job_id AND l.attempt = lost.attempt AND l.first_row = lost.first_row RETURNING 1
"""

_LEVEL = 1
_FRAME = b"\x28\xb5\x2f\xfd"
"""What a zstd frame begins with, and a line of JSON never; lines that do not shrink are stored as they are."""

_HEADER, _END = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0), struct.pack("!h", -1)
_ROW_NUMBER = re.compile(rb'\{"row":\s*(\d+)')


class Results:
    """See `batchline.store.batch_contract.Results`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def write(self, job_id: uuid.UUID, attempt: int, chunks: Sequence[Chunk]) -> None:
        if not chunks:
            return
        packed = [Chunk(chunk.first_row, chunk.rows, _packed(chunk.lines)) for chunk in chunks]
        data = b"".join((_HEADER, *(part for chunk in packed for part in _copied(job_id, attempt, chunk)), _END))

        def work(transaction: Transaction) -> None:
            # The finish comes later and is durable, and so is then all that came before; it counts what is there.
            transaction.run("SET LOCAL synchronous_commit = off")
            transaction.copy(_COPY, data)

        try:
            self._db.transact(work)
        except psycopg2.errors.UniqueViolation:
            self._db.run(_INSERT, _columns_of(job_id, attempt, packed))

    def read(self, batch_id: uuid.UUID, *, after: int, limit: int) -> Iterator[bytes]:
        number, row = self._start(batch_id, after + 1)
        left = limit if not self._db.run(_OPEN_BEFORE, {"id": batch_id, "number": number}) else 0
        while left > 0:
            params = {"id": batch_id, "number": number, "row": row, "slices": _SLICES, "chunks": _CHUNKS}
            *chunks, (readable, last_seen, seen, _) = self._db.run(_STEP, params)
            for rows, lines in _cut(chunks, after, left):
                left -= rows
                yield lines
            if len(chunks) == _CHUNKS:
                number, row = chunks[-1][0], chunks[-1][1] + 1
            elif seen == _SLICES and readable == last_seen:
                number, row = last_seen + 1, 0
            else:
                return

    def _start(self, batch_id: uuid.UUID, row: int) -> tuple[int, int]:
        """The slice to begin with, and the first row of the chunk of it that has the row."""
        slices = self._db.run(_START, {"id": batch_id, "row": row})
        if not slices:
            return 0, 0
        chunks = self._db.run(_CHUNK_OF_ROW, {"id": batch_id, "number": slices[0][0], "row": row})
        return slices[0][0], chunks[0][0] if chunks else 0

    def complete(self, batch_id: uuid.UUID) -> bool:
        return not self._db.run("SELECT 1 FROM batches WHERE id = %(id)s AND ended_at IS NULL", {"id": batch_id})

    def sweep(self, batch_id: uuid.UUID) -> None:
        while len(self._db.run(_SWEEP, {"id": batch_id, "limit": _SWEPT})) == _SWEPT:
            pass


def _packed(lines: bytes) -> bytes:
    frame = zstandard.compress(lines, _LEVEL)
    return frame if len(frame) < len(lines) else lines


def _unpacked(stored: bytes) -> bytes:
    return zstandard.decompress(stored) if stored.startswith(_FRAME) else stored


def _copied(job_id: uuid.UUID, attempt: int, chunk: Chunk) -> tuple[bytes, bytes]:
    """One row of a binary COPY: each field behind its length."""
    head = struct.pack(
        ">hi16siiiqiii", 5, 16, job_id.bytes, 4, attempt, 8, chunk.first_row, 4, chunk.rows, len(chunk.lines)
    )
    return head, chunk.lines


def _columns_of(job_id: uuid.UUID, attempt: int, chunks: Sequence[Chunk]) -> dict[str, object]:
    records = [(c.first_row, c.rows, psycopg2.Binary(c.lines)) for c in chunks]
    first, rows, lines = columns(records, 3)
    return {"job": job_id, "attempt": attempt, "first": first, "rows": rows, "lines": lines}


def _cut(chunks: Sequence[Row], after: int, left: int) -> Iterator[tuple[int, bytes]]:
    """Rows and lines of the chunks, without the rows up to `after` and those past the next `left`."""
    for _, first_row, count, raw in chunks:
        lines = _unpacked(bytes(raw))
        if first_row > after and count <= left:
            yield count, lines
            left -= count
        elif wanted := [line for line in lines.splitlines(keepends=True) if _row_of(line) > after][:left]:
            yield len(wanted), b"".join(wanted)
            left -= len(wanted)


def _row_of(line: bytes) -> int:
    """The row number that a line begins with."""
    found = _ROW_NUMBER.match(line)
    return int(found[1]) if found else -1
