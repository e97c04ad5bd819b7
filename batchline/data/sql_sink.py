"""A table as the place of results: upsert, append or replace, each slice exactly once.

A part is spooled here while the slice runs. `stage` writes it in one transaction of the target together with a row of
`_batchline_slices`, whose primary key (batch, slice) lets a slice in once, whoever does it again; so `publish` has
nothing left to do. With `replace` the rows go to a shadow table, see `sql_replace`. Errors go to `TABLE_errors`.
"""

from __future__ import annotations

import random
import tempfile
import time
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import sql

from batchline.batch import Output, Staged, show_batch_id
from batchline.data import json_text, sql_replace
from batchline.data.contract import ROW, Manifest, Places, SinkContext
from batchline.data.sql_database import SINK, Database, Table, Text, find_oid, find_table, is_unique, one
from batchline.data.sql_types import Column, encode, read_columns, sql_type, takes
from batchline.errors import SinkError, SinkUnavailableError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

SLICES = "_batchline_slices"
_NAME_BYTES = 63
_SPOOL_BYTES = 32 * 2**20
"""Of one part in memory; what is beyond goes to a temporary file."""
_READ_BYTES = 2**18
_TRIES = 3

_MAKE_SLICES = (
    "CREATE TABLE {} (batch text, slice int, rows bigint NOT NULL, errors bigint NOT NULL,"
    " at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (batch, slice))"
)
_MAKE_ERRORS = (
    "CREATE TABLE {} (batch text NOT NULL, row bigint NOT NULL, key text, code text NOT NULL, message text NOT NULL)"
)
_KEPT = "30 days"
"""How long rows of `_batchline_slices` are kept: so late may a worker that was thought dead come back."""


class TableSink:
    """`batchline.data.contract.Sink` over one table or partitioned table of PostgreSQL."""

    def __init__(self, places: Places, output: Output, context: SinkContext) -> None:
        """Asks nothing of the database yet.

        Raises:
            SinkError: the database has no such name, or no table is given.
        """
        if not output.table:
            raise SinkError("The output names no table.")
        self._text = output.table
        self._mode = output.mode or "upsert"
        self._database = Database.named(places.databases, output.database, SINK)
        self._key = context.key or ROW
        self.batch = show_batch_id(context.batch)
        self.about = f"Table {output.table}"

    def check(self, schema: pa.Schema) -> None:
        """Compare the target with the schema, or create it; make `_batchline_slices` and `TABLE_errors`.

        A table that is created has the columns of the schema, and for `upsert` the key as its primary key.
        """
        with self._database.transaction(self.about) as cursor:
            table = find_table(cursor, self._database, self._text)
            # One at a time: of two that create the same table the later fails.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('batchline'), hashtext(%s))", (table.schema,))
            table = find_table(cursor, self._database, self._text)
            if table.oid is None:
                self._create(cursor, table, schema)
            else:
                self._compare(cursor, table, schema)
            self._make(cursor, table, SLICES, _MAKE_SLICES)
            self._make(cursor, table, self._errors_name(table), _MAKE_ERRORS)
            if self._mode == "replace":
                if not self._creates(cursor, table):
                    raise SinkError(
                        f"{self.about}: replace fills a new table beside it, and Batchline's user may not create"
                        f" tables in {table.schema!r}; let it, or use upsert."
                    )
                sql_replace.make_shadow(cursor, table, self._shadow(table))

    def open(self, number: int, attempt: int, schema: pa.Schema) -> TablePart:  # noqa: ARG002
        """Begin a part; nothing is asked of the database before `stage`."""
        return TablePart(self, number, schema)

    def publish(self, number: int, staged: Staged) -> None:
        """Nothing: `stage` has published."""

    def discard(self, number: int, staged: Staged) -> None:
        """Nothing: what one attempt has written stands for all, and any later one finds it done."""

    def complete(self, manifest: Manifest) -> None:  # noqa: ARG002
        """With `replace`: let the new rows take the place of the old, in one transaction."""
        if self._mode == "replace":
            with self._database.transaction(self.about) as cursor:
                table = self._found(cursor)
                sql_replace.swap(cursor, table, self._shadow(table), table.beside(SLICES), self.batch)

    def sweep(self) -> None:
        """Drop the shadow of a batch that was not completed, and forget slices of old batches."""
        with self._database.transaction(self.about) as cursor:
            table = find_table(cursor, self._database, self._text)
            cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._shadow(table).id))
            if find_oid(cursor, table.beside(SLICES)) is not None:
                cursor.execute(
                    sql.SQL("DELETE FROM {} WHERE at < now() - interval {}").format(
                        table.beside(SLICES).id, sql.Literal(_KEPT)
                    )
                )

    def store(self, part: TablePart) -> None:
        """Write a part in one transaction, unless this slice is there already.

        Raises:
            SinkError, SinkUnavailableError: nothing was written.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                with self._database.transaction(self.about) as cursor:
                    self._store(cursor, part)
                return
            except SinkUnavailableError:
                # Among others a deadlock with another writer of the same rows. Whether a lost commit took place, the
                # fence will tell.
                if attempt == _TRIES:
                    raise
                time.sleep(random.uniform(0.05, 0.2) * attempt)

    def _store(self, cursor: Cursor, part: TablePart) -> None:
        table = self._target
        fence = sql.SQL("INSERT INTO {} (batch, slice, rows, errors) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING")
        cursor.execute(fence.format(table.beside(SLICES).id), (self.batch, part.number, part.rows, part.errors))
        if not cursor.rowcount:
            return
        if part.rows:
            columns = sql.SQL(", ").join([sql.Identifier(n) for n in part.names])
            if self._mode == "upsert":
                rows = sql.Identifier("pg_temp", "_batchline_rows")
                cursor.execute(
                    sql.SQL(
                        "CREATE TEMP TABLE _batchline_rows ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
                    ).format(columns, table.id)
                )
                _copy(cursor, rows, part.names, part.row_text)
                cursor.execute(self._merge(table, rows, part.names))
            else:
                into = self._shadow(table) if self._mode == "replace" else table
                _copy(cursor, into.id, part.names, part.row_text)
        if part.errors:
            into = table.beside(self._errors_name(table))
            _copy(cursor, into.id, ("batch", "row", "key", "code", "message"), part.error_text)

    def _merge(self, table: Table, rows: Text, names: tuple[str, ...]) -> Text:
        """Of rows with the same key the last wins."""
        key = sql.Identifier(self._key)
        others = [sql.Identifier(n) for n in names if n != self._key]
        changes = sql.SQL(", ").join([sql.SQL("{0} = EXCLUDED.{0}").format(n) for n in others])
        then = sql.SQL("UPDATE SET {}").format(changes) if others else sql.SQL("NOTHING")
        return sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT DISTINCT ON ({key}) {columns} FROM {rows} ORDER BY {key}, ctid DESC"
            " ON CONFLICT ({key}) DO {then}"
        ).format(
            table=table.id, rows=rows, key=key, then=then,
            columns=sql.SQL(", ").join([sql.Identifier(n) for n in names]),
        )  # fmt: skip

    @cached_property
    def _target(self) -> Table:
        with self._database.transaction(self.about, read_only=True) as cursor:
            return self._found(cursor)

    def _found(self, cursor: Cursor) -> Table:
        table = find_table(cursor, self._database, self._text)
        if table.oid is None:
            raise SinkError(f"{self.about} is gone from the database {self._database.name!r}; put it back and retry.")
        return table

    def _create(self, cursor: Cursor, table: Table, schema: pa.Schema) -> None:
        definitions = [
            sql.SQL("{} {}{}").format(
                sql.Identifier(f.name),
                sql.SQL(sql_type(f.type, f.name)[0]),
                sql.SQL(" PRIMARY KEY" if self._mode == "upsert" and f.name == self._key else ""),
            )
            for f in schema
        ]
        make = sql.SQL("CREATE TABLE {} ({})").format(table.id, sql.SQL(", ").join(definitions))
        self._may_create(cursor, table, make.as_string(cursor))
        cursor.execute(make)

    def _make(self, cursor: Cursor, table: Table, name: str, text: str) -> None:
        """Create one of our own tables beside the target, if it is not there."""
        ours = table.beside(name)
        if find_oid(cursor, ours) is None:
            make = sql.SQL(text).format(ours.id)
            self._may_create(cursor, table, make.as_string(cursor))
            cursor.execute(make)

    def _creates(self, cursor: Cursor, table: Table) -> bool:
        cursor.execute(
            "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %s", (table.schema,)
        )
        found = cursor.fetchone()
        if found is None:
            raise SinkError(f"{self.about}: there is no schema {table.schema!r}; create it.")
        return bool(found[0])

    def _may_create(self, cursor: Cursor, table: Table, statement: str) -> None:
        if not self._creates(cursor, table):
            raise SinkError(
                f"{self.about}: Batchline's user may not create tables in {table.schema!r}. Let it, or create what is"
                f" missing and grant SELECT, INSERT, UPDATE and DELETE on it: {statement};"
            )

    def _compare(self, cursor: Cursor, table: Table, schema: pa.Schema) -> None:
        if table.kind not in ("r", "p"):
            raise SinkError(f"{self.about} is a view or a foreign table; results go to tables.")
        columns = {c.name: c for c in read_columns(cursor, table.oid or 0)}
        for field in schema:
            self._compare_column(columns.get(field.name), field)
        names = set(schema.names)
        for column in columns.values():
            if column.not_null and not column.filled and column.name not in names:
                raise SinkError(
                    f"{self.about}: its column {column.name!r} must not be null and the results have none of that"
                    " name: give it a default, or keep an input column of that name."
                )
        needed = ["INSERT", *({"upsert": ["SELECT", "UPDATE"], "replace": ["SELECT", "DELETE"]}.get(self._mode, []))]
        for privilege in needed:
            cursor.execute("SELECT has_table_privilege(%s, %s)", (table.oid, privilege))
            if not one(cursor)[0]:
                raise SinkError(f"{self.about}: Batchline's user lacks {privilege}; grant it.")
        if self._mode == "upsert":
            self._need_unique_key(cursor, table)

    def _compare_column(self, column: Column | None, field: pa.Field[pa.DataType]) -> None:
        wanted = sql_type(field.type, field.name)[0]
        if column is None:
            raise SinkError(f"{self.about} has no column {field.name!r}; add it: {field.name} {wanted}.")
        if column.computed:
            raise SinkError(f"{self.about}: its column {field.name!r} is generated and cannot be written to.")
        if not takes(column, field.type):
            raise SinkError(
                f"{self.about}: its column {field.name!r} is {column.shown}, which does not take {field.type}; make it"
                f" {wanted}."
            )

    def _need_unique_key(self, cursor: Cursor, table: Table) -> None:
        if not is_unique(cursor, table.oid or 0, self._key):
            index = sql.SQL("CREATE UNIQUE INDEX ON {} ({})").format(table.id, sql.Identifier(self._key))
            raise SinkError(
                f"{self.about}: upsert needs a unique index on its key alone; create it: {index.as_string(cursor)};"
            )

    def _shadow(self, table: Table) -> Table:
        return table.beside(f"_batchline_{self.batch.removeprefix('batch_')}")

    def _errors_name(self, table: Table) -> str:
        room = _NAME_BYTES - len("_errors")
        return table.name.encode()[:room].decode(errors="ignore") + "_errors"


class TablePart:
    """`batchline.data.contract.Part`: rows as texts of COPY, spooled until `stage`."""

    def __init__(self, sink: TableSink, number: int, schema: pa.Schema) -> None:
        self._sink = sink
        self.number = number
        self.names = tuple(schema.names)
        self.rows = self.errors = 0
        self.row_text: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115
        self.error_text: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115

    def write(self, rows: pa.RecordBatch) -> None:
        """Raises SinkError when there is no room here for what waits to be staged."""
        self._spool(self.row_text, rows.select(list(self.names)))
        self.rows += rows.num_rows

    def write_errors(self, errors: pa.RecordBatch) -> None:
        names = errors.schema.names
        key = next((n for n in names if n not in (ROW, "code", "message")), None)
        count = errors.num_rows
        columns = {
            "batch": pa.array([self._sink.batch] * count, pa.string()),
            "row": errors.column(ROW),
            "key": _as_texts(errors.column(key)) if key else pa.nulls(count, pa.string()),
            "code": errors.column("code"),
            "message": errors.column("message"),
        }
        self._spool(self.error_text, pa.RecordBatch.from_pydict(columns))
        self.errors += count

    def stage(self) -> Staged:
        """Write all of it in one transaction of the target, or nothing if the slice is there already."""
        size = self.row_text.tell() + self.error_text.tell()
        self._sink.store(self)
        self.abort()
        return Staged(parts=[], rows=self.rows, errors=self.errors, bytes=size)

    def abort(self) -> None:
        self.row_text.close()
        self.error_text.close()

    def _spool(self, into: IO[bytes], rows: pa.RecordBatch) -> None:
        text = encode(rows)
        if b"\0" in text:
            raise SinkError(f"{self._sink.about}: {_with_nul(rows)} has a NUL character, which PostgreSQL cannot hold.")
        try:
            into.write(text)
        except OSError as e:
            raise SinkError(
                f"There is no room on this worker for results that wait to be written: {e.strerror}."
            ) from e


def _as_texts(column: pa.Array[Any]) -> pa.Array[Any]:
    """Keys of rows at fault; lists as JSON."""
    if not pa.types.is_nested(column.type):
        return column.cast(pa.string())
    none = pa.scalar(None, pa.string())
    return cast("pa.Array[Any]", pc.if_else(column.is_null(), none, json_text.texts(column).cast(pa.string())))


def _with_nul(rows: pa.RecordBatch) -> str:
    """The first column with such a text, and the first row, by the value of the first column."""
    for field, column in zip(rows.schema, rows.columns, strict=True):
        for at, value in enumerate(column.to_pylist()):
            if "\0" in str(value):
                return (
                    f"column {field.name!r} of the row whose {rows.schema.names[0]} is {rows.column(0)[at].as_py()!r}"
                )
    return "a text"


def _copy(cursor: Cursor, into: Text, names: tuple[str, ...], text: IO[bytes]) -> None:
    text.seek(0)
    columns = sql.SQL(", ").join([sql.Identifier(n) for n in names])
    cursor.copy_expert(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(into, columns), text, _READ_BYTES)
