"""Tables as data sets: what is cut, what is read, what is refused."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence

import psycopg2
import pyarrow as pa
import pytest
import stack
from system import until

from batchline.batch import Condition, Input, Piece
from batchline.data.contract import Places
from batchline.data.sql_table import TableSource
from batchline.errors import SourceError, SourceUnavailableError


def source(url: str, table: str = "people", key: str = "id", **more: object) -> TableSource:
    return TableSource(Places("file:///nowhere", databases={"shop": url}), Input(table=table, key=key, **more))


def rows(source: TableSource, pieces: Sequence[Piece], columns: list[str] | None = None, n: int = 1000) -> list[dict]:
    return [r for p in pieces for b in source.read(p, columns, batch_rows=n) for r in b.batch.to_pylist()]


@pytest.fixture
def people(database_url: str) -> str:
    """1,000 people with whole numbers as keys, gaps between them."""
    stack.query(
        database_url,
        "CREATE TABLE people (id bigint PRIMARY KEY, name text, age float8, member bool);"
        "INSERT INTO people SELECT g * 3, 'p' || g, g / 7.0, g % 2 = 0 FROM generate_series(1, 1000) g",
    )
    return database_url


def test_pieces_cover_every_row_once_in_order_of_the_key(people: str) -> None:
    """Pieces are exact, ordered and of the size asked for; what they hold together is the table."""
    s = source(people)
    pieces = list(s.pieces(300))
    assert [p.rows for p in pieces] == [300, 300, 300, 100]
    assert {p.uri for p in pieces} == {"table:public.people"}
    for piece in pieces:
        batches = list(s.read(piece, ["id"], batch_rows=128))
        assert sum(b.batch.num_rows for b in batches) == piece.rows
        assert max(b.batch.num_rows for b in batches) <= 128
    assert [r["id"] for r in rows(s, pieces, ["id"])] == [g * 3 for g in range(1, 1001)]


def test_columns_come_as_asked_for(people: str) -> None:
    """Only the columns that were named, in that order, with the types of the table."""
    s = source(people)
    assert s.schema() == pa.schema(
        [("id", pa.int64()), ("name", pa.string()), ("age", pa.float64()), ("member", pa.bool_())]
    )
    piece = next(s.pieces(2))
    (block,) = s.read(piece, ["age", "name"], batch_rows=10)
    assert block.batch.schema.names == ["age", "name"]
    assert block.batch.to_pylist() == [{"age": 1 / 7, "name": "p1"}, {"age": 2 / 7, "name": "p2"}]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", "g % 40"),
        ("smallint", "g % 40"),
        ("numeric(30,3)", "g % 40"),
        ("numeric", "123456789012345678901234567890 + g % 40"),
        ("text", "(g % 40)::text"),
        ("char(12)", "(g % 40)::text"),
        ("uuid", "md5((g % 40)::text)::uuid"),
        ("date", "'2026-03-29'::date + g % 40"),
        ("timestamp", "'2026-03-29 00:30'::timestamp + (g % 40) * '0.000001 s'::interval"),
        ("timestamptz", "'2026-03-29 00:30+00'::timestamptz + (g % 40) * '90 s'::interval"),
    ],
)
def test_keys_of_every_kind_with_duplicates(database_url: str, kind: str, value: str) -> None:
    """Rows with the same key stay in one piece, and each piece has as many rows as it was planned with."""
    stack.query(
        database_url,
        f"CREATE TABLE people (id {kind}, n int); INSERT INTO people SELECT {value}, g FROM generate_series(1, 1000) g",
    )
    s = source(database_url)
    pieces = list(s.pieces(90))
    assert sum(p.rows for p in pieces) == 1000
    assert all(p.rows % 25 == 0 for p in pieces)
    assert len(pieces) >= 10
    seen = [rows(s, [p], ["n", "id"]) for p in pieces]
    assert [len(block) for block in seen] == [p.rows for p in pieces]
    assert sorted(r["n"] for block in seen for r in block) == list(range(1, 1001))
    owners: dict[object, int] = {}
    for number, block in enumerate(seen):
        assert all(owners.setdefault(r["id"], number) == number for r in block)
    assert rows(s, pieces) == rows(s, pieces)


def test_the_order_within_a_key_is_the_same_at_every_reading(database_url: str) -> None:
    """A row keeps its place in its piece also when rows have moved on disk: poison rows are named by their places."""
    stack.query(
        database_url,
        "CREATE TABLE people (id int, f float8, tags json);"
        "INSERT INTO people SELECT 1, g, '[1]' FROM generate_series(1, 500) g",
    )
    s = source(database_url)
    (piece,) = s.pieces(10)
    before = rows(s, [piece])
    stack.query(database_url, "UPDATE people SET id = 1 WHERE f > 100 AND f < 200")
    assert rows(s, [piece]) == before


def test_views_and_empty_tables(people: str) -> None:
    """A view is cut as a table is; a table without rows has no pieces."""
    stack.query(people, "CREATE VIEW old AS SELECT id, age FROM people WHERE age > 100; CREATE TABLE none (id int)")
    s = source(people, "public.old")
    assert sum(p.rows for p in s.pieces(100)) == 300
    assert list(source(people, "none").pieces(10)) == []


def test_names_are_taken_by_the_letter(database_url: str) -> None:
    """Names with capitals, spaces and quotes are names, never SQL."""
    stack.query(
        database_url,
        'CREATE SCHEMA "My Data"; CREATE TABLE "My Data"."a""; b" ("I d" int, "x""{}%s" float4);'
        'INSERT INTO "My Data"."a""; b" VALUES (1, 2.5)',
    )
    s = source(database_url, 'My Data."a""; b"', "I d")
    assert rows(s, list(s.pieces(5))) == [{"I d": 1, 'x"{}%s': 2.5}]


def test_conditions_choose_rows(people: str) -> None:
    """Each operator, with values of the column's type; all conditions must hold."""
    stack.query(people, "UPDATE people SET name = NULL WHERE id <= 30")

    def ids(*where: Condition) -> list[int]:
        s = source(people, where=list(where))
        return [r["id"] for r in rows(s, list(s.pieces(7)), ["id"])]

    assert ids(Condition("id", "<=", 9)) == [3, 6, 9]
    assert ids(Condition("id", ">", "2994")) == [2997, 3000]
    assert ids(Condition("id", "in", [3, "12", 13])) == [3, 12]
    assert ids(Condition("name", "is null"), Condition("member", "=", True)) == [6, 12, 18, 24, 30]
    assert ids(Condition("name", "in", ["p500", "x'; DROP TABLE people; --"])) == [1500]
    assert ids(Condition("age", ">=", 1000 / 7.0)) == [3000]
    assert ids(Condition("id", "in", [])) == []
    assert len(ids(Condition("name", "is not null"), Condition("member", "!=", False))) == 495


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (Condition("nope", "=", 1), "no column 'nope'"),
        (Condition("id", "=", "abc"), "where: 'id'"),
        (Condition("id", "=", 2.5), "where: 'id'"),
        (Condition("id", "="), "needs a value"),
        (Condition("id", "is null", 1), "takes no value"),
        (Condition("id", "in", 3), "takes a list"),
        (Condition("id", ">", [3]), "takes a list"),
        (Condition("name", "=", "a\0b"), "cannot be sent"),
        (Condition("name", "=", "\ud800"), "cannot be sent"),
        (Condition("id", "in", ["1", "x"]), "where: 'id'"),
    ],
)
def test_conditions_that_make_no_sense_are_named(people: str, condition: Condition, told: str) -> None:
    """A wrong condition is the data set's fault, found when it is planned, and never SQL."""
    with pytest.raises(SourceError, match=told):
        source(people, where=[condition]).schema()


def test_types_and_nulls_come_over(database_url: str) -> None:
    """Each type of PostgreSQL that Arrow has, empty texts beside nulls, arrays, and texts of all others."""
    stack.query(
        database_url,
        "CREATE DOMAIN score AS real; CREATE TYPE mood AS ENUM ('good', 'bad');"
        "CREATE TABLE people (id int, a score, b numeric(8, 2), c numeric(20, 4), d date, e timestamptz, f timestamp,"
        " g uuid, h mood, i float8[], j int[], k text, l boolean[], m jsonb, n numeric(10));"
        "INSERT INTO people (id) VALUES (2);"
        "INSERT INTO people VALUES (1, 'NaN', 1.25, 2.5, '2026-11-01', '2026-11-01 12:00+02', '2026-11-01 12:00:00.25',"
        " '00000000-0000-0000-0000-000000000001', 'bad', '{1,NULL,Infinity}', '{}', E'a\"b,\\nc', '{t,f}',"
        " '{\"x\": 1}', 77),"
        " (3, 0, 0, 0, '1970-01-01', 'epoch', 'epoch', NULL, NULL, '{0.1}', '{1,2}', '', NULL, NULL, NULL)",
    )
    s = source(database_url)
    found = rows(s, list(s.pieces(10)))
    first = {k: str(v) for k, v in found[0].items()}
    assert first == {
        "id": "1", "a": "nan", "b": "1.25", "c": "2.5000", "d": "2026-11-01", "e": "2026-11-01 10:00:00+00:00",
        "f": "2026-11-01 12:00:00.250000", "g": str(uuid.UUID(int=1)), "h": "bad", "i": "[1.0, None, inf]", "j": "[]",
        "k": 'a"b,\nc', "l": "[True, False]", "m": '{"x": 1}', "n": "77",
    }  # fmt: skip
    assert set(found[1].values()) == {2, None}
    assert found[2]["k"] == ""
    assert found[2]["j"] == [1, 2]
    assert s.schema().field("b").type == pa.float64()
    assert s.schema().field("c").type == pa.decimal128(20, 4)
    lone = rows(s, list(s.pieces(10)), ["k"])
    assert [r["k"] for r in lone] == ['a"b,\nc', None, ""]


@pytest.mark.parametrize(
    ("column", "value"),
    [("d date", "'infinity'"), ("d timestamptz", "'4000-01-01 BC'"), ("d int[]", "'{{1,2},{3,4}}'")],
)
def test_values_without_counterpart_name_their_column(database_url: str, column: str, value: str) -> None:
    """What Arrow cannot hold is refused with the column's name; other columns can still be read."""
    stack.query(
        database_url, f"CREATE TABLE people (id int, {column}); INSERT INTO people VALUES (1, NULL), (2, {value})"
    )
    s = source(database_url)
    pieces = list(s.pieces(10))
    with pytest.raises(SourceError, match=r"Table people: column 'd'"):
        rows(s, pieces)
    assert len(rows(s, pieces, ["id"])) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"table": "nothing"}, "no such table"),
        ({"key": "nope"}, "no column 'nope'"),
        ({"key": "age"}, "cannot be cut by 'age', which is double precision"),
        ({"table": "a.b.c"}, "must be the name of a table"),
        ({"table": "pg_catalog.pg_authid", "key": "oid"}, "belongs to the database system"),
        ({"table": "pg_authid", "key": "oid"}, "belongs to the database system"),
        ({"key": None}, "needs a key"),
        ({"database": "other"}, "There is no database 'other'; the operator has configured: shop"),
    ],
)
def test_what_cannot_be_read_is_said(people: str, change: dict[str, object], told: str) -> None:
    """The message names the table and what is wrong with it."""
    with pytest.raises(SourceError, match=told):
        source(people, **change).schema()


def test_rows_without_a_key_are_refused(people: str) -> None:
    """A null has no place in a range: the table is refused, unless a condition leaves such rows out."""
    stack.query(people, "CREATE TABLE loose (id int); INSERT INTO loose VALUES (1), (NULL), (2)")
    with pytest.raises(SourceError, match="some rows have no id"):
        list(source(people, "loose").pieces(10))
    (piece,) = source(people, "loose", where=[Condition("id", "is not null")]).pieces(10)
    assert piece.rows == 2


def test_a_table_that_goes_away_is_named(people: str) -> None:
    """Dropped, or without one of its columns by now: the error says which table, and that it does not help to wait."""
    s = source(people)
    pieces = list(s.pieces(100))
    stack.query(people, "ALTER TABLE people DROP COLUMN age")
    with pytest.raises(SourceError, match=r"Table people: the table, or a column of it, is gone"):
        rows(s, pieces)
    stack.query(people, "DROP TABLE people")
    with pytest.raises(SourceError, match="Table people"):
        rows(s, pieces, ["id"])
    with pytest.raises(SourceError, match="no such table"):
        rows(source(people), pieces, ["id"])


def test_a_statement_timeout_of_the_operator_is_named(people: str) -> None:
    """The database's own limits hold, and the error says which one."""
    stack.query(people, "CREATE VIEW slow AS SELECT id, pg_sleep(id)::text AS s FROM people")
    name = people.rpartition("/")[2]
    stack.query(people, f'ALTER DATABASE "{name}" SET statement_timeout = 100')
    with pytest.raises(SourceError, match="statement_timeout"):
        rows(source(people, "slow"), [Piece("table:public.slow", "", (None, "30"), 10)])


def test_lost_connections_may_be_tried_again(people: str) -> None:
    """A server that does not answer, and a backend that dies under us, are not the table's fault."""
    with pytest.raises(SourceUnavailableError, match="cannot be reached"):
        source("postgresql://nobody@127.0.0.1:1/x").schema()
    stack.query(people, "CREATE VIEW slow AS SELECT id, pg_sleep(id)::text AS s FROM people")
    s = source(people, "slow")
    s.schema()
    killer = threading.Thread(target=_kill_when_busy, args=(people,))
    killer.start()
    with pytest.raises(SourceUnavailableError, match="Table slow"):
        rows(s, [Piece("table:public.slow", "", (None, "30"), 10)])
    killer.join()


def _kill_when_busy(url: str) -> None:
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        while True:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'COPY%%slow%%' AND state = 'active' AND pid <> pg_backend_pid()"
                " AND datname = current_database() AND wait_event = 'PgSleep'"
            )
            if cursor.rowcount:
                return
            connection.commit()


def test_a_wrong_login_is_the_operators_to_mend(people: str) -> None:
    """It does not help to wait; the message carries neither user nor host."""
    host = people.rsplit("/", 1)[0]
    with pytest.raises(SourceError, match="does not let Batchline in") as e:
        source(f"{host}/no_such_database").schema()
    assert "127.0.0.1" not in str(e.value)


def test_reading_may_stop_at_any_row(people: str) -> None:
    """Whoever closes the iterator ends the query at once: no thread, no connection is left."""
    stack.query(
        people,
        "CREATE TABLE wide (id int PRIMARY KEY, t text);"
        "INSERT INTO wide SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g",
    )
    s = source(people, "wide")
    reading = s.read(Piece("table:public.wide", "", (None, "20000"), 20_000), None, batch_rows=100)
    assert next(reading).batch.num_rows == 100
    reading.close()
    assert not [t for t in threading.enumerate() if t.name == "sql-copy"]
    active = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'"
    until(lambda: not stack.query(people, active), within_s=10, what="Postgres sees that nobody reads")


def test_each_piece_is_read_as_the_table_stands(people: str) -> None:
    """Rows that came since the plan are read where their keys fall; rows behind the last key are not."""
    s = source(people)
    pieces = list(s.pieces(500))
    stack.query(people, "INSERT INTO people (id) VALUES (-5), (4), (5000)")
    assert len(rows(s, pieces[:1])) == 502
    assert len(rows(s, pieces[1:])) == 500
