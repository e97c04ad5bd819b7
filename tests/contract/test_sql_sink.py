"""Tables as places of results: each slice once, replaced as a whole, refused before any work where they do not fit."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pyarrow as pa
import pytest
import stack

from batchline.batch import Output, show_batch_id
from batchline.data.contract import Manifest, Places, SinkContext
from batchline.data.sql_table import TableSink
from batchline.errors import SinkError, SinkUnavailableError

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("score", pa.float32())])
BATCH = uuid.UUID(int=7)
MANIFEST = Manifest(show_batch_id(BATCH), "churn", "d" * 64, 0, 0, 0, [], {})


def sink(
    url: str, mode: Any = None, *, table: str = "scores", key: str | None = "id", batch: uuid.UUID = BATCH
) -> TableSink:
    output = Output(table=table, mode=mode)
    return TableSink(Places("file:///nowhere", databases={"shop": url}), output, SinkContext(batch, key))


def rows(*ids: int, score: float = 0.5, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"id": i, "name": f"n{i}", "score": score} for i in ids], schema=schema)


def write(s: TableSink, number: int, *batches: pa.RecordBatch, attempt: int = 1, schema: pa.Schema = SCHEMA) -> Any:
    part = s.open(number, attempt, schema)
    for batch in batches:
        part.write(batch)
    return part.stage()


def told(url: str, what: str = "id", table: str = "scores") -> list[Any]:
    return [r[0] for r in stack.query(url, f"SELECT {what} FROM {table} ORDER BY 1")]


@pytest.fixture
def scores(database_url: str) -> str:
    stack.query(
        database_url,
        "CREATE TABLE scores (id bigint PRIMARY KEY, name text, score float8, at timestamptz DEFAULT now());"
        "INSERT INTO scores VALUES (1, 'old', 9), (100, 'old', 9)",
    )
    return database_url


@pytest.mark.parametrize("mode", ["upsert", "append", "replace"])
def test_a_missing_table_is_made_of_the_schema(database_url: str, mode: str) -> None:
    """With the results' own columns; the key is its primary key where rows are upserted."""
    more = {
        "at": pa.timestamp("us", "UTC"), "embedding": pa.list_(pa.float32(), 2), "grid": pa.list_(pa.list_(pa.int64())),
        "exact": pa.decimal128(20, 2), "ok": pa.bool_(), "tags": pa.list_(pa.string()),
    }  # fmt: skip
    schema = pa.schema([*SCHEMA, *more.items()])
    s = sink(database_url, mode)
    s.check(schema)
    row = {
        "id": 1, "name": "", "score": float("nan"), "at": datetime(2026, 11, 1, tzinfo=UTC), "embedding": [1.5, None],
        "grid": [[1, 2], [3, 4]], "exact": 2, "ok": True, "tags": ['a"\\', None],
    }  # fmt: skip
    write(s, 0, pa.RecordBatch.from_pylist([row, {"id": 2}], schema=schema), schema=schema)
    s.complete(MANIFEST)
    found = stack.query(database_url, "SELECT * FROM scores ORDER BY id")
    assert found[0][:2] == (1, "")
    assert str(found[0][2]) == "nan"
    assert found[0][4:] == ([1.5, None], [[1, 2], [3, 4]], 2, True, ['a"\\', None])
    assert found[1] == (2, *[None] * 8)
    keys = stack.query(
        database_url, "SELECT count(*) FROM pg_index WHERE indrelid = 'scores'::regclass AND indisprimary"
    )
    assert keys[0][0] == (1 if mode == "upsert" else 0)


def test_upsert_changes_and_adds(scores: str) -> None:
    """Rows of known keys are changed, others added; columns that the results do not have stay as they are."""
    s = sink(scores)
    s.check(SCHEMA)
    before = told(scores, "at")
    staged = write(s, 0, rows(1, 2), rows(3))
    assert (staged.rows, staged.errors) == (3, 0)
    assert stack.query(scores, "SELECT id, name, score FROM scores ORDER BY id") == [
        (1, "n1", 0.5), (2, "n2", 0.5), (3, "n3", 0.5), (100, "old", 9)
    ]  # fmt: skip
    assert before[0] in told(scores, "at")


def test_upsert_of_a_key_that_repeats_keeps_the_last(scores: str) -> None:
    """Two rows of one slice with the same key are no error."""
    s = sink(scores)
    s.check(SCHEMA)
    write(s, 0, rows(5, score=1), rows(5, 6, score=2), rows(5, score=3))
    assert stack.query(scores, "SELECT id, score FROM scores WHERE id IN (5, 6) ORDER BY id") == [(5, 3), (6, 2)]


@pytest.mark.parametrize("mode", ["upsert", "append", "replace"])
def test_a_slice_done_twice_is_there_once(scores: str, mode: str) -> None:
    """A later attempt at a slice that was stored finds it done, its errors too; other batches are others."""
    stack.query(scores, "DELETE FROM scores; ALTER TABLE scores DROP CONSTRAINT scores_pkey")
    if mode == "upsert":
        stack.query(scores, "CREATE UNIQUE INDEX ON scores (id)")
    s = sink(scores, mode)
    s.check(SCHEMA)
    for attempt in (1, 2, 3):
        part = s.open(4, attempt, SCHEMA)
        part.write(rows(1, 2, score=attempt))
        part.write_errors(pa.RecordBatch.from_pylist([{"row": 3, "id": 3, "code": "row_error", "message": "no"}]))
        staged = part.stage()
        assert (staged.rows, staged.errors) == (2, 1)
        s.publish(4, staged)
        s.publish(4, staged)
    s.complete(MANIFEST)
    assert told(scores) == [1, 2]
    assert told(scores, "score") == [1, 1]
    errors = stack.query(scores, "SELECT batch, row, key, code, message FROM scores_errors")
    assert errors == [(show_batch_id(BATCH), 3, "3", "row_error", "no")]
    if mode == "append":
        write(sink(scores, mode, batch=uuid.UUID(int=8)), 4, rows(1))
        assert told(scores) == [1, 1, 2]


def test_attempts_at_the_same_time_store_one(scores: str) -> None:
    """Eight workers that believe the same slice to be theirs."""
    s = sink(scores, "append")
    s.check(SCHEMA)
    parts = [s.open(0, n, SCHEMA) for n in range(8)]
    for part in parts:
        part.write(rows(*range(1000, 1200)))
    threads = [threading.Thread(target=part.stage) for part in parts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(told(scores)) == 202


def test_nothing_is_seen_before_a_part_is_staged(scores: str) -> None:
    """An aborted part leaves nothing, whatever was written to it."""
    s = sink(scores)
    s.check(SCHEMA)
    part = s.open(0, 1, SCHEMA)
    part.write(rows(1, 2))
    part.abort()
    part.abort()
    assert told(scores, "name") == ["old", "old"]
    assert told(scores, "slice", "_batchline_slices") == []


def test_rows_at_fault_keep_a_key_that_is_a_list(database_url: str) -> None:
    """As JSON."""
    schema = pa.schema([("id", pa.list_(pa.int64())), ("score", pa.float32())])
    s = sink(database_url, "append")
    s.check(schema)
    part = s.open(0, 1, schema)
    errors = [{"row": n, "id": key, "code": "invalid_row", "message": "no"} for n, key in enumerate(([1, 2], None))]
    part.write_errors(pa.RecordBatch.from_pylist(errors))
    part.stage()
    assert told(database_url, "(row, key)::text", "scores_errors") == ['(0,"[1,2]")', "(1,)"]


def test_replace_shows_all_or_nothing(scores: str) -> None:
    """Readers see the old rows until complete, then the new; complete may be repeated."""
    s = sink(scores, "replace")
    s.check(SCHEMA)
    s.check(SCHEMA)
    write(s, 0, rows(1, 2))
    write(s, 1, rows(3))
    assert told(scores, "name") == ["old", "old"]
    s.complete(MANIFEST)
    s.complete(MANIFEST)
    s.sweep()
    s.complete(MANIFEST)
    assert told(scores) == [1, 2, 3]
    assert _tables(scores) == {"scores", "scores_errors", "_batchline_slices"}


def _tables(url: str) -> set[str]:
    theirs = stack.query(url, "SELECT relname FROM pg_class WHERE relname LIKE '%batchline%' OR relname LIKE 'scores%'")
    kinds = stack.query(url, "SELECT relname FROM pg_class WHERE relkind = 'r'")
    return {n for (n,) in theirs} & {n for (n,) in kinds}


def test_a_batch_that_does_not_complete_replaces_nothing(scores: str) -> None:
    """The shadow of a failed batch is dropped by sweep; the table is as it was."""
    s = sink(scores, "replace")
    s.check(SCHEMA)
    write(s, 0, rows(1, 2))
    s.sweep()
    s.sweep()
    assert told(scores, "name") == ["old", "old"]
    assert _tables(scores) == {"scores", "scores_errors", "_batchline_slices"}
    with pytest.raises(SinkError, match="run the batch again"):
        s.complete(MANIFEST)


@pytest.mark.parametrize(
    "extra",
    [
        "CREATE VIEW top AS SELECT * FROM scores",
        "CREATE TABLE notes (id bigint REFERENCES scores DEFERRABLE INITIALLY DEFERRED)",
        "ALTER TABLE scores ADD n serial",
        "ALTER TABLE scores ADD n int GENERATED BY DEFAULT AS IDENTITY",
        "ALTER TABLE scores ADD n int GENERATED ALWAYS AS (id + 1) STORED",
        "CREATE INDEX named ON scores (name); ALTER TABLE scores ADD CONSTRAINT low CHECK (score < 10)",
        "ALTER TABLE scores ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT (id) ON scores TO PUBLIC",
        "SELECT 1",
    ],
)
def test_what_hangs_on_a_table_survives_its_replacement(scores: str, extra: str) -> None:
    """Views, keys, indexes with their names, constraints, sequences and grants are as they were."""
    stack.query(scores, "GRANT SELECT ON scores TO PUBLIC")
    stack.query(scores, extra)
    before = _shape(scores)
    for batch in (BATCH, uuid.UUID(int=8)):
        s = sink(scores, "replace", batch=batch)
        s.check(SCHEMA)
        write(s, 0, rows(1, 2, 3))
        s.complete(MANIFEST)
        assert told(scores) == [1, 2, 3]
    assert _shape(scores) == before
    if "VIEW" in extra:
        assert told(scores, table="top") == [1, 2, 3]


def _shape(url: str) -> list[Any]:
    return [
        stack.query(url, "SELECT indexdef FROM pg_indexes WHERE tablename = 'scores' ORDER BY 1"),
        stack.query(url, "SELECT conname, contype FROM pg_constraint WHERE conrelid = 'scores'::regclass ORDER BY 1"),
        stack.query(url, "SELECT has_table_privilege('public', 'scores', 'SELECT'), relrowsecurity FROM pg_class"
                         " WHERE oid = 'scores'::regclass"),
        stack.query(url, "SELECT column_name, data_type, is_nullable, is_identity, is_generated FROM"
                         " information_schema.columns WHERE table_name = 'scores' ORDER BY 1"),
    ]  # fmt: skip


def test_readers_never_see_half_of_a_replacement(scores: str) -> None:
    """A reader in a loop, through two replacements, one of them with a view on the table: 2 rows, 500 or 400."""
    seen: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(stack.query(scores, "SELECT count(*) FROM scores")[0][0])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for batch, count in ((8, 500), (9, 400)):
            s = sink(scores, "replace", batch=uuid.UUID(int=batch))
            s.check(SCHEMA)
            write(s, 0, rows(*range(count)))
            s.complete(MANIFEST)
            stack.query(scores, "CREATE OR REPLACE VIEW top AS SELECT id FROM scores")
    finally:
        stop.set()
        reader.join()
    assert seen <= {2, 500, 400}
    assert told(scores) == list(range(400))


def test_a_reader_that_stays_does_not_hold_up_a_replacement(scores: str) -> None:
    """Where the table cannot be exchanged since somebody reads it, its rows are, and the reader keeps what it saw."""
    s = sink(scores, "replace")
    s.check(SCHEMA)
    write(s, 0, rows(5))
    with psycopg2.connect(scores) as connection, connection.cursor() as cursor:
        connection.set_session(isolation_level="REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM scores")
        s.complete(MANIFEST)
        cursor.execute("SELECT count(*) FROM scores")
        assert cursor.fetchone() == (2,)
    connection.close()
    assert told(scores) == [5]


@pytest.mark.parametrize(
    ("change", "mode", "told"),
    [
        ("ALTER TABLE scores DROP CONSTRAINT scores_pkey", "upsert",
         r'CREATE UNIQUE INDEX ON "public"."scores" \("id"\)'),
        ("ALTER TABLE scores DROP COLUMN score", "append", "has no column 'score'; add it: score real"),
        ("ALTER TABLE scores ALTER score TYPE int", "append", "'score' is integer, which does not take float; make it"),
        ("ALTER TABLE scores ALTER score TYPE int[] USING NULL", "append", "does not take float; make it real"),
        ("ALTER TABLE scores ADD must int NOT NULL DEFAULT 1; ALTER TABLE scores ALTER must DROP DEFAULT", "append",
         "'must' must not be null"),
        ("ALTER TABLE scores DROP score, ADD score float8 GENERATED ALWAYS AS (id) STORED", "append", "is generated"),
        ("ALTER TABLE scores RENAME TO x; CREATE VIEW scores AS SELECT * FROM x", "append", "is a view"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused_when_planned(scores: str, change: str, mode: str, told: str) -> None:
    """The message says what to create or change."""
    stack.query(scores, change)
    with pytest.raises(SinkError, match=told):
        sink(scores, mode).check(SCHEMA)


@pytest.fixture
def clerk(scores: str) -> Any:
    """A URL of the same database for a user who may do nothing yet."""
    name = f"clerk_{scores.rpartition('/')[2]}"
    stack.query(scores, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    host = scores.partition("@")[2]
    yield name, f"postgresql://{name}:x@{host}"
    stack.query(scores, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_permissions_are_asked_for_before_any_work(scores: str, clerk: tuple[str, str]) -> None:
    """What is lacking is named, the statement that would mend it too; with just these rights it works."""
    name, url = clerk
    with pytest.raises(SinkError, match="lacks INSERT; grant it"):
        sink(url).check(SCHEMA)
    stack.query(scores, f"GRANT SELECT, INSERT, UPDATE ON scores TO {name}")
    with pytest.raises(SinkError, match=r"may not create tables in 'public'.*CREATE TABLE .*_batchline_slices"):
        sink(url).check(SCHEMA)
    with pytest.raises(SinkError, match="may not create tables"):
        sink(url, table="others").check(SCHEMA)
    sink(scores).check(SCHEMA)
    stack.query(scores, f"GRANT SELECT, INSERT, DELETE ON _batchline_slices, scores_errors TO {name}")
    s = sink(url)
    s.check(SCHEMA)
    write(s, 0, rows(2))
    s.sweep()
    stack.query(scores, f"GRANT DELETE ON scores TO {name}")
    with pytest.raises(SinkError, match="replace fills a new table"):
        sink(url, "replace").check(SCHEMA)
    stack.query(scores, f"GRANT CREATE ON SCHEMA public TO {name}")
    s = sink(url, "replace", batch=uuid.UUID(int=8))
    s.check(SCHEMA)
    write(s, 0, rows(3))
    s.complete(MANIFEST)
    assert told(scores) == [3]
    stack.query(scores, f"REVOKE INSERT ON scores FROM {name}")
    with pytest.raises(SinkError, match="lacks the permission"):
        write(sink(url, "append"), 1, rows(4))


def test_a_table_dropped_while_the_batch_runs_is_named(scores: str) -> None:
    """The slice fails saying which table is gone; back again, the same part may be staged."""
    s = sink(scores, "append")
    s.check(SCHEMA)
    part = s.open(0, 1, SCHEMA)
    part.write(rows(1))
    stack.query(scores, "ALTER TABLE scores RENAME TO away")
    with pytest.raises(SinkError, match="Table scores is gone"):
        part.stage()
    stack.query(scores, "ALTER TABLE away RENAME TO scores; ALTER TABLE scores DROP CONSTRAINT scores_pkey")
    part.stage()
    assert told(scores) == [1, 1, 100]
    stack.query(scores, "DROP TABLE scores")
    with pytest.raises(SinkError, match="is gone from the database"):
        write(s, 1, rows(1))


def test_a_statement_timeout_and_a_lock_are_told_apart(scores: str) -> None:
    """The operator's limit is named; a table that somebody holds may be tried again."""
    s = sink(scores, "append")
    s.check(SCHEMA)
    name = scores.rpartition("/")[2]
    stack.query(scores, f'ALTER DATABASE "{name}" SET statement_timeout = 200')
    with psycopg2.connect(scores) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE scores")
        with pytest.raises(SinkError, match="statement_timeout"):
            write(s, 0, rows(9))
    connection.close()


def test_an_unreachable_database_may_be_tried_again() -> None:
    """As does every lost connection; whether the commit took place, the fence tells at the next try."""
    s = sink("postgresql://nobody@127.0.0.1:1/x")
    with pytest.raises(SinkUnavailableError):
        s.check(SCHEMA)
    with pytest.raises(SinkError, match="no database 'other'"):
        TableSink(
            Places("x", databases={"a": "", "b": ""}), Output(table="t", database="other"), SinkContext(BATCH, None)
        )
    with pytest.raises(SinkError, match="Name the database"):
        TableSink(Places("x", databases={"a": "", "b": ""}), Output(table="t"), SinkContext(BATCH, None))


def test_rows_without_a_key_are_numbered(database_url: str) -> None:
    """An input without a key is upserted by `row`; a large part is written whole."""
    schema = pa.schema([("row", pa.int64()), ("label", pa.string())])
    s = sink(database_url, key=None)
    s.check(schema)
    part = s.open(0, 1, schema)
    for n in range(0, 300_000, 10_000):
        part.write(pa.RecordBatch.from_pydict({"row": range(n, n + 10_000), "label": ["x" * 120] * 10_000}, schema))
    part.stage()
    found = stack.query(database_url, "SELECT count(*), min(row), max(row), sum(length(label)) FROM scores")
    assert found == [(300_000, 0, 299_999, 36_000_000)]


def test_old_fences_are_forgotten(scores: str) -> None:
    """Sweep keeps the fences of this month: a worker thought dead may come back."""
    s = sink(scores, "append")
    s.check(SCHEMA)
    write(s, 0, rows(2))
    write(s, 1, rows(3))
    stack.query(scores, "UPDATE _batchline_slices SET at = now() - interval '40 days' WHERE slice = 0")
    s.sweep()
    assert told(scores, "slice", "_batchline_slices") == [1]
