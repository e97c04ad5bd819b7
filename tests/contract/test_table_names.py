"""Names of tables and columns, whatever letters they have: exactly the one that is named is read or written."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg2
import pyarrow as pa
import pytest
import stack
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg2 import sql

from batchline.batch import Input, Output
from batchline.data import table_names
from batchline.data.contract import Manifest, Places, SinkContext
from batchline.data.sql_table import TableSink, TableSource
from batchline.errors import SourceError

LETTERS = st.sampled_from("aZ_0 .\"'%{}$;-()\\ü名\n\t🙂") | st.characters(
    exclude_categories=["Cs"], exclude_characters="\0"
)
NAMES = (
    st.text(LETTERS, min_size=1, max_size=20)
    .map(lambda text: text.encode()[:63].decode(errors="ignore"))
    .filter(lambda text: text and not text.startswith("pg_") and text not in {"row", "code", "message"})
)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def ids(cursor: Any, schema: str, name: str, column: str = "id") -> list[int]:
    cursor.execute(
        sql.SQL("SELECT {0} FROM {1} ORDER BY {0}").format(sql.Identifier(column), sql.Identifier(schema, name))
    )
    return [r[0] for r in cursor.fetchall()]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schema=NAMES, name=NAMES, other=NAMES, columns=st.lists(NAMES, min_size=3, max_size=3, unique=True),
    mode=st.sampled_from(["upsert", "append", "replace"]), bad=st.booleans(),
)  # fmt: skip
@example('100%s "x', "%(a)s", "o'%", ["%s", '$$a".b', "q'%%\\"], "replace", True)
@example("s", "y" * 56, "x" * 56 + "_errors", ["a", "b", "c"], "upsert", True)
def test_exactly_the_named_table_is_read_and_written(  # noqa: PLR0917 - drawn
    database_url: str, schema: str, name: str, other: str, columns: list[str], mode: Any, bad: bool
) -> None:
    """Beside one with another name, with columns of any letters, on the good path and where a row is refused."""
    other = other if other != name else ("o" + other)[:15]
    key, kept, out = columns
    source, target = name, other
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("DROP SCHEMA IF EXISTS {0} CASCADE; CREATE SCHEMA {0}").format(sql.Identifier(schema)))
        for table in (source, target):
            cursor.execute(
                sql.SQL("CREATE TABLE {} ({} int PRIMARY KEY CHECK ({} < 10), {} text, {} float8)").format(
                    sql.Identifier(schema, table), *map(sql.Identifier, (key, key, kept, out))
                )
            )
        cursor.execute(
            sql.SQL("INSERT INTO {} SELECT n, 'x', 1 FROM generate_series(1, 3) n").format(
                sql.Identifier(schema, source)
            )
        )
    connection.close()
    places = Places("file:///nowhere", databases={"shop": database_url})
    try:
        read = TableSource(places, Input(table=f"{quoted(schema)}.{quoted(source)}", key=key))
        [piece] = read.pieces(100)
        assert read.schema().names == [key, kept, out]
        rows = next(iter(read.read(piece, columns, batch_rows=100))).batch
        assert rows.column(0).to_pylist() == [1, 2, 3]
        batch = uuid.UUID(int=7)
        sink = TableSink(places, Output(table=f"{quoted(schema)}.{quoted(target)}", mode=mode), SinkContext(batch, key))
        sink.check(rows.schema)
        part = sink.open(0, 1, rows.schema)
        part.write(rows)
        if bad:
            part.write(pa.RecordBatch.from_pylist([{key: 50, kept: "x", out: 1.0}], rows.schema), [3])
        assert part.stage().errors == bad
        sink.complete(Manifest(str(batch), "m", "d", 3, 3, 0, [], {}))
        sink.sweep()
        with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
            assert ids(cursor, schema, target, key) == ids(cursor, schema, source, key) == [1, 2, 3]
            cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = %s", (schema,))
            assert cursor.fetchone() == (4,)
        connection.close()
    finally:
        with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        connection.close()


@given(st.none() | NAMES, NAMES)
def test_a_quoted_name_means_its_letters(schema: str | None, name: str) -> None:
    """Whatever they are, and what is shown of a table names it again."""
    text = quoted(name) if schema is None else f"{quoted(schema)}.{quoted(name)}"
    assert table_names.parse(text) == (schema, name)
    assert table_names.parse(table_names.shown(schema or "public", name)) == (schema or "public", name)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("scores", (None, "scores")),
        ("Scores", (None, "Scores")),
        ("my scores", (None, "my scores")),
        ("public.My Scores", ("public", "My Scores")),
        ('public."My Scores"', ("public", "My Scores")),
        ('"a.b".c', ("a.b", "c")),
        ('"say ""hi"""', (None, 'say "hi"')),
        ("Größen.名", ("Größen", "名")),
        ("a;b", (None, "a;b")),
    ],
)
def test_plain_and_quoted_names(text: str, meant: Any) -> None:
    """A plain name is taken as it stands, capitals too."""
    assert table_names.parse(text) == meant


@pytest.mark.parametrize(
    "text",
    ["", ".", "a.", ".a", "a.b.c", '"', '""', '"a', 'a"b', '"a"b', '"a\0"', " a", "a ", "(SELECT 1) x", "a\nb",
     "ü" * 32, f'"{"ü" * 32}"', "x; DROP TABLE y"],
)  # fmt: skip
def test_what_is_no_name_of_a_table(text: str) -> None:
    """Is refused before any database is asked."""
    with pytest.raises(ValueError, match="must be"):
        table_names.parse(text)


def test_a_name_is_no_statement(database_url: str) -> None:
    """Between quotes it is the name of a table that is not there."""
    stack.query(database_url, "CREATE TABLE y (id int)")
    source = TableSource(
        Places("file:///nowhere", databases={"shop": database_url}), Input(table='"x"";DROP TABLE y;--"', key="id")
    )
    with pytest.raises(SourceError, match="no such table"):
        source.schema()
    assert stack.query(database_url, "SELECT count(*) FROM y") == [(0,)]
