"""Rows that a table refuses fail alone: the others land, counts are exact, and the errors part says which column."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pyarrow as pa
import pytest
import stack

from batchline.batch import Output, show_batch_id
from batchline.data.contract import Places, SinkContext
from batchline.data.sql_table import TableSink
from batchline.errors import SinkError

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("score", pa.float64())])
BATCH = uuid.UUID(int=7)
MODES = pytest.mark.parametrize("mode", ["upsert", "append", "replace"])
CODE = "refused_by_table"


def sink(url: str, mode: Any, key: str | None = "id") -> TableSink:
    output = Output(table="scores", mode=mode)
    return TableSink(Places("file:///nowhere", databases={"shop": url}), output, SinkContext(BATCH, key))


def batch(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, r, strict=True)) for r in rows], schema=SCHEMA)


def stored(s: TableSink, rows: pa.RecordBatch, first: int = 0, number: int = 0) -> Any:
    """Check, write and stage; returns what was staged and the numbers of the rows that were refused."""
    s.check(SCHEMA)
    part = s.open(number, 1, SCHEMA)
    part.write(rows, range(first, first + rows.num_rows))
    return part.stage(), list(part.refused)


def there(url: str, mode: str, what: str = "id") -> list[Any]:
    """With replace the new rows stand in the shadow until the batch is complete."""
    name = f"_batchline_{show_batch_id(BATCH).removeprefix('batch_')}" if mode == "replace" else "scores"
    return [r[0] for r in stack.query(url, f'SELECT {what} FROM "{name}" ORDER BY 1')]


def faults(url: str) -> list[Any]:
    return stack.query(url, "SELECT row, key, code, message FROM scores_errors ORDER BY row")


@MODES
@pytest.mark.parametrize(
    ("columns", "bad", "told"),
    [
        ("id int PRIMARY KEY, name text, score float8", (2**40, "x", 0.5),
         r'column id: value "1099511627776" is out of range for type integer'),
        ("id bigint PRIMARY KEY, name varchar(3), score float8", (7, "long", 0.5),
         r"column name: value too long for type character varying\(3\)"),
        ("id bigint PRIMARY KEY, name text NOT NULL, score float8", (7, None, 0.5), "column name: must not be null"),
        ("id bigint PRIMARY KEY, name text, score float8, CHECK (score < 50)", (7, "x", 60),
         r'column score: .* violates check constraint "scores_score_check"'),
        ("id bigint PRIMARY KEY, name text, score numeric(5, 2)", (7, "x", 1e9),
         r"column score: numeric field overflow. A field with precision 5, scale 2 .*"),
        ("id bigint PRIMARY KEY, name text, score numeric(5, 2)", (7, "x", float("inf")),
         "column score: numeric field overflow.*"),
        ("id bigint PRIMARY KEY, name date, score float8", (7, "soon", 0.5),
         'column name: invalid input syntax for type date: "soon"'),
        ("id bigint PRIMARY KEY, name text, score float8 CHECK (score <> 'NaN')", (7, "x", float("nan")),
         "column score: .*check constraint.*"),
        ("id bigint PRIMARY KEY, name text, score float8", (7, "a\0b", 0.5),
         "column name: has a NUL character, which PostgreSQL cannot hold"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_fails_alone(database_url: str, mode: str, columns: str, bad: Any, told: str) -> None:
    """Its number, key and column are told among the errors; all other rows of the slice are there."""
    stack.query(database_url, f"CREATE TABLE scores ({columns})")
    good = "2026-11-01" if " date" in columns else "a"
    row = [(1, good, 0.25), bad, (3, good, 0.75)]
    staged, refused = stored(sink(database_url, mode), batch(*row), first=40)
    assert (staged.rows, staged.errors, refused) == (2, 1, [41])
    assert there(database_url, mode) == [1, 3]
    [(number, key, code, message)] = faults(database_url)
    assert (number, key, code) == (41, str(bad[0]), CODE)
    assert re.fullmatch(told, message)


def test_many_rows_at_fault_are_found_among_many(database_url: str) -> None:
    """Every hundredth of 3,000, and of a key that repeats the last one that fits wins."""
    stack.query(database_url, "CREATE TABLE scores (id bigint PRIMARY KEY, name text, score float8 CHECK (score < 50))")
    rows = [(n, "x", 99.0 if n % 100 == 7 else 1.0) for n in range(3000)]
    rows += [(5, "first", 2.0), (5, "last", 3.0), (5, "bad", 99.0)]
    staged, refused = stored(sink(database_url, "upsert"), batch(*rows))
    assert refused == [*range(7, 3000, 100), 3002]
    assert (staged.rows, staged.errors) == (2972, 31)
    assert there(database_url, "upsert") == [n for n in range(3000) if n % 100 != 7]
    assert stack.query(database_url, "SELECT name FROM scores WHERE id = 5") == [("last",)]
    assert [r[0] for r in faults(database_url)] == refused


@MODES
def test_a_later_attempt_learns_which_rows_were_refused(database_url: str, mode: str) -> None:
    """The slice is in once, its errors too, and both attempts count the same, though the table would take all now."""
    stack.query(database_url, "CREATE TABLE scores (id bigint PRIMARY KEY, name text, score float8 CHECK (score < 50))")
    s = sink(database_url, mode)
    rows = batch((1, "a", 1), (2, "b", 60), (3, "c\0", 1), (4, "d", 1))
    first = stored(s, rows, first=10)
    stack.query(database_url, "ALTER TABLE scores DROP CONSTRAINT scores_score_check")
    second = stored(s, rows, first=10)
    assert first == second
    assert (first[0].rows, first[0].errors, sorted(first[1])) == (2, 2, [11, 12])
    assert there(database_url, mode) == [1, 4]
    assert [r[0] for r in faults(database_url)] == [11, 12]


def test_rows_that_others_forbid_fail_alone(database_url: str) -> None:
    """Duplicates where rows are appended, foreign keys, deferred ones too, a trigger's refusal."""
    stack.query(
        database_url,
        "CREATE TABLE names (name text PRIMARY KEY); INSERT INTO names VALUES ('a'), ('b');"
        "CREATE TABLE scores (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED, score float8,"
        " name text REFERENCES names DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO scores VALUES (1, 0, 'a');"
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.score = 13 THEN"
        " RAISE EXCEPTION 'not %', NEW.score; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON scores FOR EACH ROW EXECUTE FUNCTION no()",
    )
    rows = [(1, "a", 1), (2, "b", 1), (2, "b", 2), (3, "z", 1), (4, "a", 13), (5, "b", 1)]
    staged, refused = stored(sink(database_url, "append"), batch(*rows))
    assert (staged.rows, staged.errors, refused) == (2, 4, [0, 2, 3, 4])
    assert there(database_url, "append") == [1, 2, 5]
    told = [message for *_, message in faults(database_url)]
    assert "Key (id)=(1) already exists" in told[0]
    assert "Key (id)=(2) already exists" in told[1]
    assert told[2].startswith("column name: ")
    assert 'Key (name)=(z) is not present in table "names"' in told[2]
    assert told[3] == "not 13"


def test_rows_of_one_slice_may_need_each_other_until_the_commit(database_url: str) -> None:
    """A deferred key to a row that comes later holds, though another row of the slice is refused."""
    stack.query(
        database_url,
        "CREATE TABLE scores (id bigint PRIMARY KEY, score float8 CHECK (score < 50),"
        " name text UNIQUE, parent text DEFAULT '' );"
        "ALTER TABLE scores ADD COLUMN up text GENERATED ALWAYS AS (left(name, 1)) STORED"
        " REFERENCES scores (name) DEFERRABLE INITIALLY DEFERRED",
    )
    rows = [(n, f"q{n}", 1) for n in range(700)] + [(800, "q", 1), (900, "q900", 60)]
    staged, refused = stored(sink(database_url, "append"), batch(*rows))
    assert (staged.rows, refused) == (701, [701])


def test_a_batch_without_a_key_has_rows_at_fault_by_their_numbers(database_url: str) -> None:
    """There is no key to tell, and `row` is among the columns."""
    stack.query(database_url, 'CREATE TABLE scores ("row" smallint, score float8)')
    schema = pa.schema([("row", pa.int64()), ("score", pa.float64())])
    s = sink(database_url, "append", key=None)
    s.check(schema)
    part = s.open(0, 1, schema)
    part.write(pa.record_batch([pa.array([70000, 3]), pa.array([1.0, 2.0])], schema=schema), [70000, 3])
    assert part.stage().errors == 1
    assert part.refused == [70000]
    assert [r[:3] for r in faults(database_url)] == [(70000, None, CODE)]


def test_a_nul_within_a_list_fails_its_row_only(database_url: str) -> None:
    """And the letters of its escape are letters; the key of a row at fault shows it as a replacement character."""
    schema = pa.schema([("id", pa.string()), ("tags", pa.list_(pa.string()))])
    s = sink(database_url, "append")
    s.check(schema)
    part = s.open(0, 1, schema)
    rows = [{"id": "a", "tags": ["x\0"]}, {"id": "b", "tags": ["\\x00", None]}, {"id": "c\0", "tags": None}]
    part.write(pa.RecordBatch.from_pylist(rows, schema=schema))
    part.write_errors(pa.RecordBatch.from_pylist([{"row": 3, "id": "d\0", "code": "invalid_row", "message": "a\0"}]))
    assert (part.stage().errors, part.refused) == (3, [0, 2])
    assert there(database_url, "append", "tags") == [["\\x00", None]]
    assert [r[1] for r in faults(database_url)] == ["a", "c\ufffd", "d\ufffd"]


def test_what_is_wrong_with_the_table_fails_the_slice(database_url: str) -> None:
    """A trigger that cannot run is no fault of a row: nothing is stored, and the slice may be done again."""
    stack.query(
        database_url,
        "CREATE TABLE scores (id bigint PRIMARY KEY, name text, score float8);"
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 FROM nowhere; RETURN NEW; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON scores FOR EACH ROW EXECUTE FUNCTION no()",
    )
    with pytest.raises(SinkError, match="is gone from the database"):
        stored(sink(database_url, "append"), batch((1, "a", 1)))
    stack.query(database_url, "DROP TRIGGER no ON scores")
    assert stored(sink(database_url, "append"), batch((1, "a", 1)))[1] == []
