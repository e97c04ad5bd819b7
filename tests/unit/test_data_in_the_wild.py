"""Files as other people make them: each is read right to the last digit, or refused with what to do."""

from __future__ import annotations

import gzip
import json
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchline.batch import Chunk, DataSet, Input, Output
from batchline.data import open_sink, open_source
from batchline.data.column_arrays import to_arrow
from batchline.data.columns import Mapper, check
from batchline.data.contract import Places, SinkContext
from batchline.errors import ModelError, SourceError
from batchline.model import ModelSpec, TensorSpec

BATCH = uuid.UUID(int=9)


def echo(dtype: str, *shape: int | None) -> ModelSpec:
    """A model that gives back what it takes."""
    inputs, outputs = (TensorSpec("x", dtype, shape),), (TensorSpec("y", dtype, shape),)
    return ModelSpec("echo", "1", "0" * 64, 1, inputs, outputs)


def places(root: Path) -> Places:
    return Places(f"file://{root}/blobs", (str(root),))


def scored(spec: ModelSpec, root: Path, *, name: str, key: str | None = "id", keep: str = "", into: Any = "") -> Any:
    """The key and the output of each row, or why it has none; with `into`, the part in that format."""
    given = Input(uri=f"file://{root}/{name}", key=key)
    output = Output(uri=f"file://{root}/out", format=into or "jsonl", keep=[keep] if keep else [])
    wanted = DataSet(spec.name, spec.version, given, output)
    source = open_source(given, places(root))
    if faults := check(spec, wanted, source.schema()):
        raise SourceError(faults[0].message)
    mapper = Mapper(spec, wanted, source.schema())
    sink = open_sink(output, places(root), SinkContext(BATCH, key))
    sink.check(mapper.schema)
    rows: list[Any] = []
    for number, piece in enumerate(source.pieces(1000)):
        part = sink.open(number, 1, mapper.schema)
        for read in source.read(piece, mapper.reads, batch_rows=500, texts=mapper.texts):
            mapped = mapper.arrays(read)
            out = mapper.output(read.batch, mapped.at, len(rows), {"y": mapped.columns["x"]})
            part.write(out)
            good = range(read.batch.num_rows) if mapped.at is None else mapped.at.tolist()
            each: dict[int, Any] = {at: tuple(row.values()) for at, row in zip(good, out.to_pylist(), strict=True)}
            each |= mapped.faults
            rows += [each[at] for at in range(read.batch.num_rows)]
        sink.publish(number, part.stage())
    if not into:
        return [row[-1] if key is None and isinstance(row, tuple) else row for row in rows]
    return next((root / "out").glob(f"part-*.{into}"))


def written(root: Path, data: str | bytes, name: str = "a.csv") -> str:
    (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return name


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("00123\n4\n", ["00123", "4"]),
        ("12345678901234567890\n12345678901234567891\n", ["12345678901234567890", "12345678901234567891"]),
        ("9007199254740993\n-1\n", [9007199254740993, -1]),
        ("0.1234567890123456789\n0\n", [0.1234567890123456789, 0.0]),
        ("NA\nUS\n", ["NA", "US"]),
        ("NA\n7\n", [None, 7]),
        ("2024-01-01T10:00:00+02:00\n2024-01-01T10:00:00Z\n", [datetime(2024, 1, 1, h, tzinfo=UTC) for h in (8, 10)]),
    ],
)
def test_a_csv_key_is_the_one_of_the_file(tmp_path: Path, given: str, told: list[Any]) -> None:
    """What would lose zeros or digits as a number is a text."""
    name = written(tmp_path, "id,x\n" + "".join(f"{line},1.5\n" for line in given.split()))
    assert scored(echo("FP32"), tmp_path, name=name) == [(key, 1.5) for key in told]


def test_a_csv_key_that_turns_out_to_be_more_than_a_number_is_a_fault(tmp_path: Path) -> None:
    """Behind the rows that the type was taken from: neither zeros nor digits are lost, nobody else is harmed."""
    lines = [f"{n},1" for n in range(1, 150_000)]
    lines[140_000], lines[140_002], lines[140_004] = "007,1", "X1,1", "12345678901234567890,1"
    got = scored(echo("FP32"), tmp_path, name=written(tmp_path, "id,x\n" + "\n".join(lines)))
    assert [row for row in got if isinstance(row, str)] == [
        "column id: '007' is more than the int64 that the first rows are",
        "column id: 'X1' is no int64, as the first rows are: make all of one kind",
        "column id: '12345678901234567890' is no int64, as the first rows are: make all of one kind",
    ]
    assert got[140_001] == (140_002, 1.0)
    assert len(got) == len(lines)


@pytest.mark.parametrize(
    "texts", [["01234", "2"], ["1", "2"], ["1.50", "2"], ["2024-01-01"], ["True"], ["NA", "", "x"]]
)
def test_csv_texts_of_a_model_that_reads_texts_are_those_of_the_file(tmp_path: Path, texts: list[str]) -> None:
    """Whatever they look like: CSV has no types."""
    name = written(tmp_path, "x,k\n" + "".join(f'"{text}",1\n' for text in texts))
    assert scored(echo("BYTES"), tmp_path, name=name, key=None) == texts


@pytest.mark.parametrize(
    ("dtype", "texts", "told"),
    [
        (
            "INT64",
            ["9007199254740993", "2.0", "foo", "1.5"],
            [9007199254740993, 2, "is no number", "is no whole number"],
        ),
        ("UINT64", ["18446744073709551615", "007", "-1"], [2**64 - 1, 7, "is no whole number"]),
        ("INT8", ["127", "128", "1e1"], [127, "is no whole number", 10]),
        ("FP64", ["1e400", "-1e400", "inf", "1e300"], ["too large", "too large", float("inf"), 1e300]),
        ("FP64", ["1_000", "٣", "+3", ".5", "5.", " 6 "], ["is no number", "is no number", 3.0, 0.5, 5.0, 6.0]),
        ("FP32", ["1e39", "x", "2"], ["cannot hold", "is no number", 2.0]),
    ],
)
def test_csv_numbers_are_exact_or_faults(tmp_path: Path, dtype: str, texts: list[str], told: list[Any]) -> None:
    """Among words, in company of fractions, at the edge of the type."""
    name = written(tmp_path, "x,k\n" + "".join(f'"{text}",1\n' for text in texts))
    got = scored(echo(dtype), tmp_path, name=name, key=None)
    for have, want in zip(got, told, strict=True):
        assert want in have if isinstance(want, str) else have == want


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("a;b\n1;2\n", "stand between semicolons"),
        ("sep=;\na;b\n", "stand between semicolons"),
        ("a\tb\n1\t2\n", "stand between tabs"),
        ("a,b\r1,2\r3,4\r", "end in CR alone"),
        ('"a","b"\r"1","2"\r', "end in CR alone"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "is gzip: let its name end in .gz"),
        (b"PK\x03\x04rest", "ZIP archive or an Excel file"),
        (b"PAR1\n\nPAR1", "is Parquet"),
        (b"\x28\xb5\x2f\xfd\n", "zstd"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("", "is empty"),
    ],
)
def test_what_is_no_csv_of_commas_is_refused_with_what_to_do(tmp_path: Path, data: str | bytes, told: str) -> None:
    """Never a batch of no rows."""
    with pytest.raises(SourceError, match=told):
        scored(echo("FP32", 2), tmp_path, name=written(tmp_path, data), key=None)


def test_blank_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    """As those behind it are."""
    assert scored(echo("FP32", 2), tmp_path, name=written(tmp_path, "\r\n\n a,b\n\n1,2\n"), key=None) == [[1.0, 2.0]]


@pytest.mark.parametrize("array", ['[{"x":1},\n{"x":2}]\n', '[{"x":1},{"x":2}]'])
def test_a_json_array_is_refused_with_what_to_do(tmp_path: Path, array: str) -> None:
    """JSONL has a row a line."""
    with pytest.raises(SourceError, match=r"JSON array: write each of its rows on a line"):
        scored(echo("FP32"), tmp_path, name=written(tmp_path, array, "a.jsonl"), key=None)


def test_jsonl_objects_whose_one_column_is_named_value_are_objects(tmp_path: Path) -> None:
    """The name that stands for bare lines makes none of them."""
    name = written(tmp_path, '{"value": 1}\n{"value": 2.5}\n[3]\n', "a.jsonl")
    assert scored(echo("FP32"), tmp_path, name=name, key=None) == [1.0, 2.5, "the line is no JSON object"]


def test_unsigned_numbers_of_jsonl_are_exact(tmp_path: Path) -> None:
    """Beyond int64."""
    name = written(tmp_path, "".join(f'{{"id":{n},"x":{n}}}\n' for n in (2**64 - 1, 0)), "a.jsonl")
    assert scored(echo("UINT64"), tmp_path, name=name) == [(2**64 - 1, 2**64 - 1), (0, 0)]


@pytest.mark.parametrize(
    ("dtype", "column", "told"),
    [
        ("INT64", pa.array([Decimal(9007199254740993), Decimal(-1)], pa.decimal128(20, 0)), [9007199254740993, -1]),
        ("UINT64", pa.array([Decimal(2**64 - 1), Decimal(1)], pa.decimal128(38, 0)), [2**64 - 1, 1]),
        ("INT64", pa.array([Decimal("1.5"), Decimal(2)], pa.decimal128(20, 2)), ["is no whole number", 2]),
        (
            "INT64",
            pa.array(np.array([-np.inf, np.inf, 3], np.float16)),
            ["is no whole number", "is no whole number", 3],
        ),
        ("FP32", pa.array([1.5, 1e300]), [1.5, "cannot hold"]),
    ],
)
def test_parquet_numbers_are_exact_or_faults(tmp_path: Path, dtype: str, column: Any, told: list[Any]) -> None:
    """Decimals beyond what float64 tells apart; infinities of float16."""
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    got = scored(echo(dtype), tmp_path, name="a.parquet", key=None)
    for have, want in zip(got, told, strict=True):
        assert want in have if isinstance(want, str) else have == want


@pytest.mark.parametrize("pandas_there", [True, False])
@pytest.mark.parametrize(
    ("key", "told"),
    [
        (pa.array([uuid.UUID(int=5), None], pa.uuid()), ["00000000-0000-0000-0000-000000000005", None]),
        (pa.array(["NA", " x "], pa.string_view()), ["NA", " x "]),
        (pa.array([b"\xff", b""], pa.large_binary()), ["/w==", ""]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), ["YWI=", "Y2Q="]),
        (pa.array([1_000_000_001, 0], pa.timestamp("ns")), ["1970-01-01T00:00:01.000000001", "1970-01-01T00:00:00"]),
        (pa.array([5_000_000, 0], pa.timestamp("us", "Europe/Berlin")), ["1970-01-01T01:00:05+01:00", "1970-01-01T01:00:00+01:00"]),  # noqa: E501
        (pa.array([253402300799, 0], pa.timestamp("s", "UTC")), ["9999-12-31T23:59:59+00:00", "1970-01-01T00:00:00+00:00"]),  # noqa: E501
        (pa.array([7, 10**9], pa.time64("ns")), ["00:00:00.000000007", "00:00:01"]),
        (pa.array([1500, None], pa.duration("ms")), [1.5, None]),
        (pa.array([Decimal("1.50"), None], pa.decimal256(50, 2)), ["1.50", None]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_a_key_of_any_type_comes_out_of_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Any, told: list[Any], *, pandas_there: bool
) -> None:
    """As exact as it was, whether pandas, which knows nanoseconds, is installed or not."""
    if not pandas_there:
        monkeypatch.setitem(sys.modules, "pandas", None)
    pq.write_table(pa.table({"id": key, "x": pa.array([1.0, 2.0])}), tmp_path / "a.parquet")
    part = scored(echo("FP32"), tmp_path, name="a.parquet", into="jsonl")
    assert [json.loads(line)["id"] for line in part.read_text().splitlines()] == told
    part = scored(echo("FP32"), tmp_path, name="a.parquet", into="csv")
    assert len(part.read_text().splitlines()) == 3
    part = scored(echo("FP32"), tmp_path, name="a.parquet", into="parquet")
    assert pq.read_metadata(part).num_rows == 2


def columns(**given: Any) -> pa.Table:
    return pa.table({name: pa.array(values) if isinstance(values, list) else values for name, values in given.items()})


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (pa.array(["NA"]), pa.array(["NA", " x "], pa.large_string()), ["NA", "NA", " x "]),
        (pa.array(["NA"], pa.large_string()), pa.array(["NA"]).dictionary_encode(), ["NA", "NA"]),
        (
            pa.array([1]),
            pa.array(["2", "x"]),
            [1, 2, "column id: 'x' is no int64, as the first rows are: make all of one kind"],
        ),
        (
            pa.array([1], pa.int32()),
            pa.array([2**40]),
            [1, "column id: '1099511627776' is no int32, as the first rows are: make all of one kind"],
        ),
        (pa.array(["1"]), pa.array([2]), ["1", "2"]),
    ],
)
def test_a_key_of_another_type_in_the_next_file(tmp_path: Path, first: Any, second: Any, told: list[Any]) -> None:
    """Texts stay as they are; what does not fit is a fault of its row."""
    for number, key in enumerate((first, second)):
        pq.write_table(columns(id=key, x=[1.0] * len(key)), tmp_path / f"{number}.parquet")
    got = scored(echo("FP32"), tmp_path, name="*.parquet")
    assert [row[0] if isinstance(row, tuple) else row for row in got] == told


def test_files_of_one_glob_may_order_their_columns_otherwise(tmp_path: Path) -> None:
    """Columns are told by name; a type that is none of the model's and a name that stands twice are refused."""
    pq.write_table(columns(id=[1], a=[1.0], b=[2.0]), tmp_path / "0.parquet")
    pq.write_table(columns(b=[3], id=[2], more=["x"], a=[4]), tmp_path / "1.parquet")
    assert scored(echo("FP32", 2), tmp_path, name="*.parquet") == [(1, [1.0, 2.0]), (2, [4.0, 3.0])]
    twice = pa.Table.from_arrays([pa.array([n]) for n in (1, 2, 3, 4)], names=["id", "a", "b", "a"])
    pq.write_table(twice, tmp_path / "2.parquet")
    with pytest.raises(SourceError, match=r"2\.parquet has two columns named 'a'"):
        scored(echo("FP32", 2), tmp_path, name="*.parquet")
    pq.write_table(columns(id=[1], a=["x"], b=[2.0]), tmp_path / "2.parquet")
    with pytest.raises(SourceError, match=r"column 'a' is string, unlike the rows before"):
        scored(echo("FP32", 2), tmp_path, name="*.parquet")


def test_the_nameless_index_of_pandas_is_no_feature(tmp_path: Path) -> None:
    """Parquet has it as a column."""
    pq.write_table(columns(a=[1.0], b=[2.0], __index_level_0__=[9]), tmp_path / "a.parquet")
    assert scored(echo("FP32", 2), tmp_path, name="a.parquet", key=None) == [[1.0, 2.0]]


def test_empty_row_groups_hold_no_rows(tmp_path: Path) -> None:
    """At the beginning, between others and at the end."""
    some = columns(x=[1.0, 2.0])
    with pq.ParquetWriter(tmp_path / "a.parquet", some.schema) as file:
        for part in (some[:0], some, some[:0], some[:0], some, some[:0]):
            file.write_table(part)
    assert scored(echo("FP32"), tmp_path, name="a.parquet", key=None) == [1.0, 2.0, 1.0, 2.0]


def test_ragged_unsigned_outputs_are_exact(tmp_path: Path) -> None:
    """Rows of different length, numbers beyond int64."""
    rows = [[2**64 - 1], [1, 2], []]
    pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.uint64()))}), tmp_path / "a.parquet")
    assert scored(echo("UINT64", None), tmp_path, name="a.parquet", key=None) == rows


@pytest.mark.parametrize("given", [np.zeros((2, 4), np.float32), [np.zeros(3, np.float32), np.zeros(4, np.float32)]])
def test_a_model_that_gives_another_shape_than_it_declares_is_told_so(given: Any) -> None:
    """By the name of the output and both shapes."""
    with pytest.raises(ModelError, match=r"gives y as \[4\] a row and declares \[3\]"):
        to_arrow(given, TensorSpec("y", "FP32", (3,)))


class Lines:
    """Takes result lines as the store does."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def write(self, job_id: uuid.UUID, attempt: int, chunks: Sequence[Chunk]) -> None:
        del job_id, attempt
        self.written += [json.loads(line) for chunk in chunks for line in chunk.lines.splitlines()]

    def sweep(self, batch_id: uuid.UUID) -> None:
        """Nothing is left behind."""


@pytest.mark.parametrize(("key", "told"), [("id", "id"), ("code", "code"), ("message", "message"), ("error", "key")])
def test_a_key_may_have_the_name_of_what_tells_of_errors(tmp_path: Path, key: str, told: str) -> None:
    """Each line has each name once, in the default sink and in the errors part."""
    table = pa.RecordBatch.from_pydict({key: ["k0", "k1"], "x": [1.0, None]})
    default = DataSet("echo", "1", Input(uri="file:///in.jsonl", key=key, columns=["x"]))
    mapper, lines = Mapper(echo("FP32"), default, table.schema), Lines()
    errors = mapper.errors(table, [1], 0, ["invalid_row"], ["no value"])
    part = open_sink(Output(), places(tmp_path), SinkContext(BATCH, key, BATCH), results=lines).open(
        0, 1, mapper.schema
    )
    part.write_errors(errors)
    part.stage()
    assert lines.written == [{"row": 1, told: "k1", "error": {"code": "invalid_row", "message": "no value"}}]
    assert len(set(errors.schema.names)) == 4
    sink = open_sink(Output(uri=f"file://{tmp_path}/out", format="jsonl"), places(tmp_path), SinkContext(BATCH, key))
    part = sink.open(0, 1, mapper.schema)
    part.write_errors(errors)
    sink.publish(0, part.stage())
    (written,) = (tmp_path / "out").glob("errors-*")
    name = key if key in ("id", "error") else "key"
    assert json.loads(written.read_text()) == {"row": 1, name: "k1", "code": "invalid_row", "message": "no value"}


def test_fractions_behind_whole_numbers_are_numbers_beside_words_too(tmp_path: Path) -> None:
    """One word in a stretch of JSON lines is a fault of its row, and of no row around it; it tells what to do."""
    lines = [f'{{"x": {n}}}' for n in range(2500)]
    lines[2100], lines[2101], lines[2102] = '{"x": "w"}', '{"x": 1.5}', f'{{"x": {2**70}}}'
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    wanted = Input(uri=f"file://{tmp_path}/in.jsonl", columns=["x"])
    source = open_source(wanted, places(tmp_path))
    mapper = Mapper(echo("FP32"), DataSet("echo", "1", wanted), source.schema())
    (piece,) = source.pieces(10_000)
    faults: dict[int, str] = {}
    values: list[float] = []
    first = 0
    for rows in source.read(piece, mapper.reads, batch_rows=10_000):
        mapped = mapper.arrays(rows)
        faults |= {first + row: why for row, why in mapped.faults.items()}
        values += list(np.asarray(mapped.columns["x"]).reshape(-1))
        first += rows.batch.num_rows
    assert faults == {2100: 'column x: "w" is no double, as the first rows are: make all of one kind'}
    assert values[2099:2103] == [2099, 1.5, np.float32(2.0**70), 2103]
