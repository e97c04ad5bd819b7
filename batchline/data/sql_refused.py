"""Which rows of a part a table refuses, and why: found only when it has refused the part as a whole.

The rows are copied as texts into a temporary table and go from there into the target in small groups; those of a group
that fails go one by one, each in a subtransaction. The loop runs in the database (a DO block of PL/pgSQL).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import sql

from batchline.data.sql_database import Table, Text, find_oid
from batchline.data.sql_part import TablePart, copy
from batchline.data.sql_types import read_columns
from batchline.errors import SinkError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

_GROUP_ROWS = 32
_MOST_TOLD = 500
"""Characters of a message: it may quote a value."""
_OF_A_ROW = ("22", "23", "54")
_RAISED = "P0001"
_TELLING = ("22", "23503", "23505", "23P01", "P0001")
"""States whose detail says more; that of others is the whole row."""


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """One row that the target does not take."""

    at: int
    """Offset within the part."""
    key: str | None
    why: str


def is_of_a_row(error: SinkError) -> bool:
    """Whether the database refused a value, a constraint or a trigger, and not the statement."""
    code = error.__cause__.pgcode if isinstance(error.__cause__, psycopg2.Error) else None
    return code is not None and (code.startswith(_OF_A_ROW) or code == _RAISED)


_TEMPORARY = """
CREATE TEMP TABLE _batchline_like ON COMMIT DROP AS SELECT {columns} FROM {into} WITH NO DATA;
CREATE TEMP TABLE _batchline_texts (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {texts}) ON COMMIT DROP;
CREATE TEMP TABLE _batchline_refused (
  n int PRIMARY KEY, state text, message text, detail text, name text, rule text, place text) ON COMMIT DROP
"""

_CAUGHT = "data_exception OR integrity_constraint_violation OR program_limit_exceeded OR raise_exception"

_LOOP = """
#variable_conflict use_column
DECLARE
  _batchline_low int := 1;
  _batchline_row int;
  _batchline_state text;
  _batchline_message text;
  _batchline_detail text;
  _batchline_name text;
  _batchline_rule text;
  _batchline_place text;
BEGIN
  WHILE _batchline_low <= {count} LOOP
    BEGIN
      {group};
    EXCEPTION WHEN {caught} THEN
      FOR _batchline_row IN _batchline_low..least(_batchline_low + {more}, {count}) LOOP
        BEGIN
          {row};
        EXCEPTION WHEN {caught} THEN
          GET STACKED DIAGNOSTICS
            _batchline_state = RETURNED_SQLSTATE, _batchline_message = MESSAGE_TEXT,
            _batchline_detail = PG_EXCEPTION_DETAIL, _batchline_name = COLUMN_NAME, _batchline_rule = CONSTRAINT_NAME,
            _batchline_place = TABLE_NAME;
          INSERT INTO pg_temp._batchline_refused
            VALUES (_batchline_row, _batchline_state, _batchline_message, _batchline_detail, _batchline_name,
              _batchline_rule, _batchline_place);
        END;
      END LOOP;
    END;
    _batchline_low := _batchline_low + {more} + 1;
  END LOOP;
  FOR _batchline_row IN
    SELECT n FROM pg_temp._batchline_refused
    WHERE name = '' AND place = '' AND (state LIKE '22%' OR state IN ('23502', '23514'))
  LOOP
    {tries}
  END LOOP;
END
"""

# A value that does not fit its type or its domain: the database names no column, so that each is tried by itself.
_TRY = """
    BEGIN
      INSERT INTO pg_temp._batchline_like ({column}) SELECT {value} FROM pg_temp._batchline_texts
        WHERE n = _batchline_row;
    EXCEPTION WHEN {caught} THEN
      UPDATE pg_temp._batchline_refused SET name = {name} WHERE n = _batchline_row;
      CONTINUE;
    END;
"""

_FOUND = (
    "SELECT r.n, {key}, state, message, detail, name, rule FROM _batchline_refused r JOIN _batchline_texts USING (n)"
)

_RULES = """
SELECT k.conname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_constraint k
JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) WHERE k.conrelid = %s GROUP BY 1
"""


def put(
    cursor: Cursor, into: Table, part: TablePart, *, shown: str, key: str, on_conflict: Text | None
) -> list[RefusedRow]:
    """Insert all rows that the target takes, within the transaction at hand; returns the others, ascending.

    `into` is the target or its shadow, `shown` the target's name for messages. Rows are upserted by `key` where there
    is the clause `on_conflict`; of those with the same key the last that fits wins.

    Raises:
        psycopg2.Error: what is no fault of one row.
    """
    oid = find_oid(cursor, into) or 0
    casts = {c.name: sql.SQL(c.cast) for c in read_columns(cursor, oid)}
    texts = [sql.Identifier(f"_batchline_{at}") for at in range(len(part.names))]
    values = [sql.SQL("{}::{}").format(t, casts[n]) for t, n in zip(texts, part.names, strict=True)]
    names = [sql.Identifier(n) for n in part.names]
    cursor.execute(
        sql.SQL(_TEMPORARY).format(
            columns=_listed(names), into=into.id, texts=_listed([sql.SQL("{} text").format(t) for t in texts])
        )
    )
    copy(cursor, sql.Identifier("pg_temp", "_batchline_texts"), [f"_batchline_{at}" for at in range(len(texts))],
         part.row_text)  # fmt: skip
    insert = sql.SQL("INSERT INTO {} ({}) SELECT {}{} FROM pg_temp._batchline_texts WHERE n {}{} {}")
    one_of_each, last = sql.SQL(""), sql.SQL("")
    if on_conflict is not None:
        at_key = values[part.names.index(key)]
        one_of_each = sql.SQL("DISTINCT ON ({}) ").format(at_key)
        last = sql.SQL(" ORDER BY {}, n DESC").format(at_key)
    group, row = (
        insert.format(into.id, _listed(names), one_of_each, _listed(values), sql.SQL(which), last,
                      on_conflict or sql.SQL(""))
        for which in (f"BETWEEN _batchline_low AND _batchline_low + {_GROUP_ROWS - 1}", "= _batchline_row")
    )  # fmt: skip
    tries = [
        sql.SQL(_TRY).format(column=name, value=value, caught=sql.SQL(_CAUGHT), name=sql.Literal(text))
        for name, value, text in zip(names, values, part.names, strict=True)
    ]
    loop = sql.SQL(_LOOP).format(
        count=sql.Literal(part.rows), more=sql.Literal(_GROUP_ROWS - 1), group=group, row=row,
        caught=sql.SQL(_CAUGHT), tries=sql.Composed(tries),
    )  # fmt: skip
    cursor.execute(sql.SQL("DO {}").format(sql.Literal(loop.as_string(cursor))))
    return _found(cursor, into, oid, part, shown)


def _found(cursor: Cursor, into: Table, oid: int, part: TablePart, shown: str) -> list[RefusedRow]:
    key = sql.SQL("NULL") if part.key is None else sql.Identifier(f"_batchline_{part.names.index(part.key)}")
    cursor.execute(_RULES, (oid,))
    columns_of: dict[str, list[str]] = dict(cursor.fetchall())
    cursor.execute(sql.SQL(_FOUND + " ORDER BY r.n").format(key=key))
    found: list[RefusedRow] = []
    for n, key_text, state, message, detail, name, rule in cursor.fetchall():
        columns = [name] if name else columns_of.get(rule, [])
        told = _told(state, message.replace(into.name, shown), detail)
        found.append(RefusedRow(n - 1, key_text, _named(columns) + told[:_MOST_TOLD]))
    return found


def _named(columns: list[str]) -> str:
    return f"column{'s' if len(columns) > 1 else ''} {', '.join(columns)}: " if columns else ""


def _told(state: str, message: str, detail: str) -> str:
    if state == "23502":
        return "must not be null"
    more = detail if detail and state.startswith(_TELLING) else ""
    return ". ".join(text.strip().rstrip(".") for text in (message, more) if text)


def _listed(parts: list[sql.Identifier] | list[sql.Composed]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
