"""A table or view as a data set: cut by ranges of its key with exact counts, read by COPY.

The rows of a piece come in the order of the key; where the key repeats, in the order of the columns that are read, so
that every reading of rows that stand still has them at the same places. Each piece is read as the table stands then:
rows that came later with keys of a planned range are read too, rows behind the last key are not.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import psycopg2
import pyarrow as pa
from psycopg2 import sql

from batchline.batch import Condition, Input, Piece
from batchline.data.contract import Places, Rows
from batchline.data.sql_database import SOURCE, Database, Table, Text, find_table, is_unique, one
from batchline.data.sql_types import KEY_TYPES, Column, decode, read_columns, schema_of
from batchline.errors import BatchlineError, SourceError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

_AHEAD = 3
"""Blocks of rows that are read while others are worked on."""
_BLOCK_BYTES = 8 * 2**20
_JOIN_S = 10.0


@dataclass(frozen=True, slots=True)
class _Known:
    table: Table
    columns: dict[str, Column]
    key: Column
    unique: bool
    """Whether no two rows have the same key."""


class TableSource:
    """`batchline.data.contract.Source` over one table, partitioned table, view or foreign table of PostgreSQL."""

    at_once = 1

    def __init__(self, places: Places, wanted: Input) -> None:
        """Asks nothing of the database yet.

        Raises:
            SourceError: the database has no such name, or no table or key is given.
        """
        if not wanted.table:
            raise SourceError("The input names no table.")
        if not wanted.key:
            raise SourceError(f"The table {wanted.table} needs a key: the column that cuts it and names its rows.")
        self._wanted = wanted
        self._database = Database.named(places.databases, wanted.database, SOURCE)
        self._about = f"Table {wanted.table}"

    def schema(self) -> pa.Schema:
        """Names and types of the columns; types without a counterpart in Arrow are read as texts."""
        return schema_of(list(self._known.columns.values()))

    def pieces(self, slice_rows: int) -> Iterator[Piece]:
        """Ranges of keys; rows with the same key are in one piece, however many they are.

        Raises:
            SourceError: rows without a key, among others.
        """
        known = self._known
        key, parts = sql.Identifier(known.key.name), {"key": sql.Identifier(known.key.name), "table": known.table.id}
        with self._database.transaction(self._about, read_only=True) as setup:
            if not known.key.not_null:
                asked = self._where([sql.SQL("{} IS NULL").format(key)])
                setup.execute(sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(known.table.id, asked))
                if one(setup)[0]:
                    raise SourceError(
                        f"{self._about}: some rows have no {known.key.name}, by which it is cut: give them one, leave"
                        f' them out by where [["{known.key.name}", "is not null"]], or choose another key.'
                    )
            with setup.connection.cursor("batchline_pieces") as cursor:
                ends = _ENDS_UNIQUE if known.unique else _ENDS
                cursor.execute(
                    sql.SQL(ends).format(where=self._where([]), size=sql.Literal(max(1, slice_rows)), **parts)
                )
                after, before = None, 0
                for upto, so_far in cursor:
                    yield Piece(f"table:{known.table.shown}", "", (after, upto), so_far - before)
                    after, before = upto, so_far

    def read(
        self,
        piece: Piece,
        columns: Sequence[str] | None,
        *,
        batch_rows: int,
        texts: Collection[str] = (),
    ) -> Iterator[Rows]:
        """The rows of a range of keys, as the table stands now.

        Raises: as the contract has it; a value that Arrow cannot hold (an infinite date) names its column.
        """
        known = self._known
        names = list(known.columns) if columns is None else list(columns)
        missing = [n for n in names if n not in known.columns]
        if missing:
            raise SourceError(f"{self._about} has no column {missing[0]!r}; it has {_listed(known.columns)}.")
        chosen = [known.columns[n].read_as_text() if n in texts else known.columns[n] for n in names]
        if not chosen:
            raise SourceError(f"{self._about}: no columns to read.")
        query = self._query(known, piece, chosen)
        with closing(_Copy(self._database, self._about, query, max(1, batch_rows))) as copy:
            for block in copy:
                yield Rows(self._decoded(block, chosen))

    def _decoded(self, block: bytes, chosen: Sequence[Column]) -> pa.RecordBatch:
        try:
            return decode(block, chosen)
        except ValueError as e:
            raise SourceError(f"{self._about}: {e}.") from e

    def _query(self, known: _Known, piece: Piece, chosen: Sequence[Column]) -> Text:
        after, upto = piece.span
        key = sql.Identifier(known.key.name)
        bounds: list[Text] = []
        for op, bound in ((">", after), ("<=", upto)):
            if bound is not None:
                bounds.append(sql.SQL(f"{{}} {op} {{}}::{known.key.cast}").format(key, sql.Literal(str(bound))))
        order: list[Text] = [key]
        if not known.unique:
            order += [c.selected() for c in chosen if c.name != known.key.name]
        rows = "SELECT {columns} FROM {table} WHERE {where} ORDER BY {order}"
        return sql.SQL(f"COPY ({rows}) TO STDOUT (FORMAT csv)").format(
            columns=sql.SQL(", ").join([c.selected() for c in chosen]),
            table=known.table.id,
            where=self._where(bounds),
            order=sql.SQL(", ").join(order),
        )  # fmt: skip

    @cached_property
    def _known(self) -> _Known:
        wanted = self._wanted
        with self._database.transaction(self._about, read_only=True) as cursor:
            table = find_table(cursor, self._database, wanted.table or "")
            if table.oid is None:
                raise SourceError(f"{self._about}: there is no such table in the database {self._database.name!r}.")
            columns = {c.name: c for c in read_columns(cursor, table.oid)}
            key = columns.get(wanted.key or "")
            if key is None:
                raise SourceError(f"{self._about} has no column {wanted.key!r} for its key; it has {_listed(columns)}.")
            if key.base not in KEY_TYPES:
                raise SourceError(
                    f"{self._about} cannot be cut by {key.name!r}, which is {key.shown}: choose a key that is a whole"
                    " number, a text, a UUID, a date or a timestamp."
                )
            columns[key.name] = key = key.as_key()
            known = _Known(table, columns, key, is_unique(cursor, table.oid, key.name))
            for condition in wanted.where or []:
                column = columns.get(condition.column)
                if column is None:
                    raise SourceError(f"where: {self._about} has no column {condition.column!r}.")
                self._check(condition, column)
                with self._database.translated(f"where: {column.name!r}"):
                    cursor.execute(_tried(condition, column))
        return known

    def _check(self, condition: Condition, column: Column) -> None:
        """Whether the form of a condition is right."""
        lone = condition.op in ("is null", "is not null")
        if lone != (condition.value is None):
            told = "takes no value" if lone else "needs a value; write `is null` for rows without one"
            raise SourceError(f"where: {condition.op!r} on {column.name!r} {told}.")
        if not lone and (condition.op == "in") != isinstance(condition.value, list):
            raise SourceError(f"where: on {column.name!r}: `in` takes a list, and only `in` does.")

    def _where(self, more: Sequence[Text]) -> Text:
        columns = self._known.columns
        own = [_condition(c, columns[c.column]) for c in self._wanted.where or []]
        return sql.SQL(" AND ").join([*own, *more]) if own or more else sql.SQL("TRUE")


_ENDS = """
SELECT upto::text, so_far FROM (
  SELECT upto, so_far, lead(so_far) OVER (ORDER BY upto) AS next FROM (
    SELECT {key} AS upto, count(*) OVER (ORDER BY {key}) AS so_far FROM {table} WHERE {where}
  ) counted
) ends
WHERE next IS NULL OR (next - 1) / {size} <> (so_far - 1) / {size}
ORDER BY so_far
"""
"""Last keys of pieces with the rows up to each. count(*) counts rows with the same key together."""

_ENDS_UNIQUE = """
SELECT upto::text, so_far FROM (
  SELECT upto, so_far, lead(so_far) OVER (ORDER BY upto) AS next FROM (
    SELECT {key} AS upto, row_number() OVER (ORDER BY {key}) AS so_far FROM {table} WHERE {where}
  ) counted
) ends
WHERE next IS NULL OR so_far % {size} = 0
ORDER BY so_far
"""


def _condition(condition: Condition, column: Column) -> Text:
    """One condition; its value is a parameter of the column's own type."""
    name = sql.Identifier(column.name)
    if condition.value is None:
        return sql.SQL(f"{{}} {condition.op.upper()}").format(name)
    if isinstance(condition.value, list):
        values = sql.Literal([_plain(v) for v in condition.value])
        return sql.SQL("{} = ANY ({}::text[]::{}[])").format(name, values, sql.SQL(column.cast))
    value = sql.Literal(_plain(condition.value))
    return sql.SQL(f"{{}} {condition.op} {{}}::{{}}").format(name, value, sql.SQL(column.cast))


def _tried(condition: Condition, column: Column) -> Text:
    """A query that fails if the column's type does not take the value."""
    return sql.SQL("SELECT {} FROM (SELECT NULL::{} AS {}) t").format(
        _condition(condition, column), sql.SQL(column.cast), sql.Identifier(column.name)
    )


def _plain(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _listed(columns: dict[str, Column]) -> str:
    shown = ", ".join(list(columns)[:20])
    return f"{shown}, …" if len(columns) > 20 else shown


class _StoppedError(Exception):
    """Nobody wants more rows."""


class _Copy:
    """Rows of COPY's CSV as blocks of whole rows, read ahead by a thread; `close` ends it at any time."""

    def __init__(self, database: Database, about: str, query: Text, block_rows: int) -> None:
        self._database = database
        self._about = about
        self._query = query
        self._block_rows = block_rows
        self._blocks: queue.Queue[bytes | BatchlineError | None] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._connection: Connection | None = None
        self._lines: list[bytes] = []
        self._bytes = 0
        self._thread = threading.Thread(target=self._run, name="sql-copy", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[bytes]:
        while (block := self._blocks.get()) is not None:
            if isinstance(block, BatchlineError):
                raise block
            yield block

    def write(self, line: bytes) -> None:
        """Called by the driver, once a row."""
        self._lines.append(line)
        self._bytes += len(line)
        if len(self._lines) >= self._block_rows or self._bytes >= _BLOCK_BYTES:
            self._hand_over()

    def close(self) -> None:
        """End the thread and its query."""
        self._stopped.set()
        connection = self._connection
        if self._thread.is_alive() and connection is not None and not connection.closed:
            with suppress(psycopg2.Error):  # it has ended by itself in between
                connection.cancel()
        while self._thread.is_alive():
            try:
                self._blocks.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _hand_over(self) -> None:
        if self._lines:
            self._blocks.put(b"".join(self._lines))
            self._lines, self._bytes = [], 0
        if self._stopped.is_set():
            raise _StoppedError

    def _run(self) -> None:
        try:
            with self._database.transaction(self._about, read_only=True) as cursor:
                self._connection = cursor.connection
                cursor.copy_expert(self._query, self)
                self._hand_over()
            self._blocks.put(None)
        except _StoppedError:
            return
        except BatchlineError as e:
            self._blocks.put(e)
        except Exception as e:
            self._blocks.put(SourceError(f"{self._about} cannot be read: {type(e).__name__}."))
            raise
