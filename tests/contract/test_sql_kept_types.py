"""Keys and kept columns of the types that people's tables have: their values come out as they went in."""

from __future__ import annotations

import io
import json
import uuid
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import stack

from batchline.batch import DataSet, Input, Output
from batchline.data.columns import Mapper
from batchline.data.contract import Places, SinkContext
from batchline.data.part_files import writer
from batchline.data.sql_table import TableSink, TableSource
from batchline.model import ModelSpec, TensorSpec

SPEC = ModelSpec("m", "1", "d", 1, (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", ()),))
LONG = "123456789012345678901234567890.1234567890"
COLUMNS = {
    "id": ("uuid", f"'{uuid.UUID(int=5)}'"),
    "d": ("date", "'2026-11-01'"),
    "e": ("timestamptz", "'2026-11-01 12:00:00.000001+02'"),
    "j": ("jsonb", '\'{"a": [1, "x"]}\''),
    "t": ("text[]", '\'{"a,b",NULL,"c\\"d"}\''),
    "i": ("int[]", "'{1,NULL}'"),
    "b": ("bytea", "'\\x00ff'"),
    "m": ("mood", "'good'"),
    "n": ("numeric", LONG),
    "w": ("numeric(45,5)", "1" * 40 + ".10000"),
    "p": ("numeric(30,2)", "1234567890123456789012345678.10"),
    "x": ("numeric", "2.50"),
}


@pytest.fixture
def people(database_url: str) -> str:
    kinds = ", ".join(f"{name} {kind}" for name, (kind, _) in COLUMNS.items())
    values = ", ".join(value for _, value in COLUMNS.values())
    stack.query(
        database_url,
        f"CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TABLE people ({kinds}, PRIMARY KEY (id));"
        f"INSERT INTO people VALUES ({values}); INSERT INTO people (id, x) VALUES ('{uuid.UUID(int=6)}', 1)",
    )
    return database_url


def scored(url: str, key: str = "id") -> tuple[Mapper, pa.RecordBatch]:
    """All columns kept, `x` fed to the model besides."""
    places = Places("file:///nowhere", databases={"shop": url})
    given = Input(table="people", key=key, columns=["x"], where=None)
    keep = [name for name in COLUMNS if name != key]
    source = TableSource(places, given)
    mapper = Mapper(SPEC, DataSet("m", "1", given, Output(uri="s3://b/x", keep=keep)), source.schema())
    [piece] = source.pieces(10)
    [rows] = source.read(piece, mapper.reads, batch_rows=10, texts=mapper.texts)
    got = mapper.arrays(rows)
    assert np.asarray(got.columns["x"]).tolist() == [[2.5], [1.0]]
    return mapper, mapper.output(rows.batch, got.at, 0, {"y": np.zeros(2, np.float32)})


@pytest.mark.parametrize("made", [False, True])
def test_every_type_goes_from_table_to_table(people: str, *, made: bool) -> None:
    """Into columns of the same types, and into a table that is made for them, whose texts cast back."""
    mapper, out = scored(people)
    if not made:
        stack.query(people, "CREATE TABLE scores AS SELECT *, 0::real AS y FROM people WITH NO DATA;"
                            "ALTER TABLE scores ADD PRIMARY KEY (id)")  # fmt: skip
    places = Places("file:///nowhere", databases={"shop": people})
    sink = TableSink(places, Output(table="scores", mode="upsert"), SinkContext(uuid.UUID(int=7), "id"))
    sink.check(mapper.schema)
    part = sink.open(0, 1, mapper.schema)
    part.write(out)
    assert part.stage().errors == 0
    for name, (kind, _) in COLUMNS.items():
        same = f"SELECT p.{name}::text IS NOT DISTINCT FROM s.{name}::{kind}::text FROM people p JOIN scores s"
        assert stack.query(people, f"{same} ON s.id::uuid = p.id") == [(True,), (True,)], name


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_numbers_keep_their_digits_in_files(people: str, kind: Any) -> None:
    """Numbers that no float holds are texts of all their digits; every other type is written, too."""

    class Upload(io.BytesIO):
        size = 0

    mapper, out = scored(people)
    upload: Any = Upload()
    file = writer(kind, upload, mapper.schema)
    file.write(out)
    file.finish()
    data = upload.getvalue()
    if kind == "jsonl":
        row = json.loads(data.splitlines()[0])
    else:
        table = pq.read_table(io.BytesIO(data)) if kind == "parquet" else pacsv.read_csv(
            io.BytesIO(data), convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys("nwpx", pa.string()))
        )  # fmt: skip
        row = table.to_pylist()[0]
    told = {name: str(row[name]) for name in ("id", "b", "m", "n", "w", "p", "x")}
    assert told == {
        "id": str(uuid.UUID(int=5)), "b": "\\x00ff", "m": "good", "n": LONG, "w": COLUMNS["w"][1], "p": COLUMNS["p"][1],
        "x": "2.50",
    }  # fmt: skip
    assert "2026-11-01" in str(row["d"])
    assert "10:00:00.000001" in str(row["e"])


def test_bytes_go_into_tables(database_url: str) -> None:
    """As bytea, or as its text where the column is one."""
    schema = pa.schema([("id", pa.int64()), ("raw", pa.binary()), ("four", pa.binary(4)), ("told", pa.large_binary())])
    stack.query(database_url, "CREATE TABLE scores (id bigint, raw bytea, four bytea, told text)")
    places = Places("file:///nowhere", databases={"shop": database_url})
    sink = TableSink(places, Output(table="scores", mode="append"), SinkContext(uuid.UUID(int=7), "id"))
    sink.check(schema)
    part = sink.open(0, 1, schema)
    part.write(
        pa.RecordBatch.from_pylist([{"id": 1, "raw": b"\0\xff", "four": b"abcd", "told": b"x"}, {"id": 2}], schema)
    )
    part.stage()
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT raw, four, told FROM scores ORDER BY id")
        found = [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in cursor.fetchall()]
    connection.close()
    assert found == [(b"\0\xff", b"abcd", "\\x78"), (None, None, None)]
