"""A table as the place of results: upsert, append or replace, each slice exactly once.

A part is spooled (`sql_part`) while the slice runs. `stage` writes it in one transaction of the target together with a
row of `_batchline_slices`, whose primary key (batch, slice) lets a slice in once, whoever does it again; so `publish`
has nothing left to do. With `replace` the rows go to a shadow table, see `sql_replace`. Errors go to `TABLE_errors`.
Where the target refuses a row the transaction is made again with the rows one by one, see `sql_refused`.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import pyarrow as pa
from psycopg2 import sql

from batchline.batch import Output, Staged, show_batch_id
from batchline.data import sql_refused, sql_replace, table_names
from batchline.data.contract import ROW, Manifest, Places, SinkContext
from batchline.data.sql_database import SINK, Database, Table, Text, find_oid, find_table, is_unique, one
from batchline.data.sql_part import ERROR_COLUMNS, TablePart, copy
from batchline.data.sql_types import Column, read_columns, sql_type, takes
from batchline.errors import SinkError, SinkUnavailableError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

SLICES = "_batchline_slices"
_TRIES = 3

_MAKE_SLICES = (
    "CREATE TABLE {} (batch text, slice int, rows bigint NOT NULL, errors bigint NOT NULL,"
    " at timestamptz NOT NULL DEFAULT now(), refused bigint[], PRIMARY KEY (batch, slice))"
)
"""`refused`: numbers within the batch of the rows that the table refused."""
_ADD_REFUSED = "ALTER TABLE {} ADD COLUMN IF NOT EXISTS refused bigint[]"

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
        self._keyed = context.key is not None
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
            slices = table.beside(SLICES)
            if "refused" not in {c.name for c in read_columns(cursor, find_oid(cursor, slices) or 0)}:
                cursor.execute(sql.SQL(_ADD_REFUSED).format(slices.id))
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
        key = self._key if self._keyed else None
        return TablePart(self.store, self.about, batch=self.batch, number=number, key=key, schema=schema)

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

    def store(self, part: TablePart) -> Sequence[int]:
        """Write a part in one transaction, unless this slice is there already.

        Returns:
            The rows that the table refused, as offsets within the part; they are among the errors.

        Raises:
            SinkError, SinkUnavailableError: nothing was written.
        """
        ways: list[Callable[[Cursor, TablePart, Table], Sequence[int]]] = [
            self._put_whole,
            partial(self._put_each, at_once=False),
            partial(self._put_each, at_once=True),
        ]
        while True:
            try:
                return self._insist(part, ways.pop(0))
            except SinkError as e:
                if not ways or not part.rows or not sql_refused.is_of_a_row(e):
                    raise

    def _insist(self, part: TablePart, put: Callable[[Cursor, TablePart, Table], Sequence[int]]) -> Sequence[int]:
        for attempt in range(1, _TRIES):
            try:
                return self._once(part, put)
            except SinkUnavailableError:
                # Among others a deadlock with another writer of the same rows. Whether a lost commit took place, the
                # fence will tell.
                time.sleep(random.uniform(0.05, 0.2) * attempt)
        return self._once(part, put)

    def _once(self, part: TablePart, put: Callable[[Cursor, TablePart, Table], Sequence[int]]) -> Sequence[int]:
        table = self._target
        slices, row = table.beside(SLICES).id, [sql.Literal(self.batch), sql.Literal(part.number)]
        with self._database.transaction(self.about) as cursor:
            fence = sql.SQL(
                "INSERT INTO {} (batch, slice, rows, errors) VALUES ({}, {}, {}, {}) ON CONFLICT DO NOTHING"
            )
            cursor.execute(fence.format(slices, *row, sql.Literal(part.rows), sql.Literal(part.errors)))
            if not cursor.rowcount:
                known = sql.SQL("SELECT refused FROM {} WHERE batch = {} AND slice = {}")
                cursor.execute(known.format(slices, *row))
                return part.offsets(one(cursor)[0] or [])
            refused = put(cursor, part, table) if part.rows else []
            if refused:
                note = sql.SQL(
                    "UPDATE {} SET rows = rows - {n}, errors = errors + {n}, refused = {}"
                    " WHERE batch = {} AND slice = {}"
                )
                every = part.numbers
                numbers = sql.Literal([every[at] for at in refused])
                cursor.execute(note.format(slices, numbers, *row, n=sql.Literal(len(refused))))
            if part.errors:
                copy(cursor, table.beside(self._errors_name(table)).id, ERROR_COLUMNS, part.error_text)
        return refused

    def _put_whole(self, cursor: Cursor, part: TablePart, table: Table) -> Sequence[int]:
        """All rows by one COPY; none is refused, or the statement fails."""
        into = self._into(table)
        if self._mode == "upsert":
            rows = sql.Identifier("pg_temp", "_batchline_rows")
            columns = sql.SQL(", ").join([sql.Identifier(n) for n in part.names])
            cursor.execute(
                sql.SQL("CREATE TEMP TABLE _batchline_rows ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                    columns, table.id
                )
            )
            copy(cursor, rows, part.names, part.row_text)
            cursor.execute(self._merge(table, rows, part.names))
        else:
            copy(cursor, into.id, part.names, part.row_text)
        return []

    def _put_each(self, cursor: Cursor, part: TablePart, table: Table, *, at_once: bool) -> Sequence[int]:
        """The rows in small groups, those of a group that fails one by one.

        `at_once`: deferred constraints too, since the commit cannot tell which row it failed for.
        """
        into = self._into(table)
        if at_once:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        conflict = self._on_conflict(part.names) if self._mode == "upsert" else None
        found = sql_refused.put(cursor, into, part, shown=table.name, key=self._key, on_conflict=conflict)
        if found:
            every = part.numbers
            text = part.errors_text([every[f.at] for f in found], [f.key for f in found], [f.why for f in found])
            copy(cursor, table.beside(self._errors_name(table)).id, ERROR_COLUMNS, io.BytesIO(text))
        return [f.at for f in found]

    def _into(self, table: Table) -> Table:
        return self._shadow(table) if self._mode == "replace" else table

    def _merge(self, table: Table, rows: Text, names: tuple[str, ...]) -> Text:
        """Of rows with the same key the last wins."""
        return sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT DISTINCT ON ({key}) {columns} FROM {rows} ORDER BY {key}, ctid DESC"
            " {then}"
        ).format(
            table=table.id, rows=rows, key=sql.Identifier(self._key), then=self._on_conflict(names),
            columns=sql.SQL(", ").join([sql.Identifier(n) for n in names]),
        )  # fmt: skip

    def _on_conflict(self, names: tuple[str, ...]) -> Text:
        changes = [sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(n)) for n in names if n != self._key]
        then = sql.SQL("UPDATE SET {}").format(sql.SQL(", ").join(changes)) if changes else sql.SQL("NOTHING")
        return sql.SQL("ON CONFLICT ({}) DO {}").format(sql.Identifier(self._key), then)

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
        room = table_names.NAME_BYTES - len("_errors")
        name = table.name.encode()[:room].decode(errors="ignore") + "_errors"
        return name if name != table.name else "_" + name[1:]
