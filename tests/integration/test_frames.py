"""Tables of pandas, polars, pyarrow and numpy of odd types, live: what the model gives by hand, or a named refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import small_models
from onnx import TensorProto, helper
from system import System, running_system

from batchline.batch import BatchStatus
from batchline.client import AsyncClient, Batch, Client
from batchline.errors import InvalidRequestError

WITHIN_S = 60.0
NAN, INF = float("nan"), float("inf")
SHAPES: dict[str, tuple[int, list[Any]]] = {
    "one": (TensorProto.FLOAT, []),
    "f16": (TensorProto.FLOAT16, []),
    "i64": (TensorProto.INT64, []),
    "u64": (TensorProto.UINT64, []),
    "flag": (TensorProto.BOOL, []),
    "word": (TensorProto.STRING, []),
    "vec": (TensorProto.FLOAT, [4]),
    "mat": (TensorProto.FLOAT, [2, 3]),
    "free": (TensorProto.FLOAT, ["T"]),
}
"""Models that give their one input `x` as `y`."""
TYPES = {"one": pa.float32(), "f16": pa.float16(), "i64": pa.int64(), "u64": pa.uint64()} | {
    "flag": pa.bool_(), "word": pa.string(), "vec": pa.list_(pa.float32()), "free": pa.list_(pa.float32()),
    "mat": pa.list_(pa.list_(pa.float32())),
}  # fmt: skip


def same(path: Path, kind: int, shape: list[Any], *, output: str = "y") -> Path:
    """x [N, *shape] -> y = x."""
    node = helper.make_node("Identity", ["x"], [output])
    return small_models.write(path, [node], {"x": (kind, ["N", *shape])}, {output: (kind, ["N", *shape])})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames")


@pytest.fixture(scope="module")
def system(folder: Path) -> Iterator[System]:
    models = {name: same(folder / f"{name}.onnx", *shape) for name, shape in SHAPES.items()}
    models["fails"] = same(folder / "fails.onnx", TensorProto.FLOAT, [], output="error")
    with running_system(folder, models, durable=False, env={"BATCHLINE_SLICE_ROWS": "300"}) as system:
        yield system


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[Client]:
    with Client(",".join(system.urls), system.key) as client:
        yield client


@dataclass(frozen=True)
class Case:
    """A table, and what the model is given by hand: `x` of all rows but the bad ones."""

    model: str
    data: Callable[[], Any]
    x: Any
    bad: Mapping[int, str] = field(default_factory=dict[int, str])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    others: Mapping[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    """Key and kept columns, as they come back."""


def column(values: Any) -> Callable[[], pd.DataFrame]:
    return lambda: pd.DataFrame({"x": values})


def arrow(values: Any, kind: pa.DataType) -> Callable[[], pa.Table]:
    return lambda: pa.table({"x": pa.array(values, kind)})


NONE = "column x: there is no value"
FOUR = [[1.5, 2, 3, 4], [5, 6, 7, 8]]
CUBE = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
UTC_DAY, VIENNA = datetime(2026, 1, 1, tzinfo=UTC), "Europe/Vienna"

CASES = {
    "categories of numbers": Case("one", column(pd.Categorical([3, 1, 3])), [3, 1, 3]),
    "categories of texts": Case("word", column(pd.Categorical(["b", "a", None])), ["b", "a"], {2: NONE}),
    "nullable integers": Case(
        "i64", column(pd.array([1, 2**62 + 1, None], dtype="Int64")), [1, 2**62 + 1], {2: NONE}
    ),
    "nullable truth": Case("one", column(pd.array([True, None, False], dtype="boolean")), [1, 0], {1: NONE}),
    "truth as truth": Case("flag", column([True, False, None]), [True, False], {2: NONE}),
    "nullable texts": Case("word", column(pd.array(["", None, "ä"], dtype="string")), ["", "ä"], {1: NONE}),
    "decimals": Case("one", column([Decimal("1.25"), Decimal("3.1415926535897932384626")]), [1.25, 3.141592653589793]),
    "decimals as whole numbers": Case(
        "i64", column([Decimal(2**53 + 1), Decimal("3.5"), None]), [2**53 + 1],
        {1: "column x: 3.5 is no whole number within the range of INT64", 2: NONE},
    ),
    "half precision": Case("f16", arrow(np.array([1.5, NAN, 65504], np.float16), pa.float16()), [1.5, NAN, 65504]),
    "beyond half precision": Case("f16", column([0.1, 7e4]), [0.1],
                                  {1: "column x: FP16 cannot hold a number this large"}),
    "unsigned beyond signed": Case("u64", column(np.array([2**64 - 1, 5], np.uint64)), [2**64 - 1, 5]),
    "unsigned too large": Case(
        "i64", column(np.array([2**63, 5], np.uint64)), [5],
        {0: f"column x: {2**63} is no whole number within the range of INT64"},
    ),
    "NaN of Arrow is a value, null is none": Case("one", arrow([NAN, None, INF], pa.float64()), [NAN, INF], {1: NONE}),
    "NaN is no value of pandas": Case("one", column([NAN, 1.0]), [1.0], {0: NONE}),
    "lists": Case("vec", column([*FOUR, [1, 2, 3], None, [1, 2, None, 4]]), FOUR,
                  {2: "column x: a list has not 4 values", 3: NONE, 4: NONE}),
    "arrays in cells": Case("vec", column([np.array(row, np.float32) for row in FOUR]), FOUR),
    "lists of fixed size": Case("vec", arrow([*FOUR, None], pa.list_(pa.float16(), 4)), FOUR, {2: NONE}),
    "large lists": Case("vec", arrow(FOUR, pa.large_list(pa.float64())), FOUR),
    "views of lists": Case("vec", lambda: arrow([[0] * 4, *FOUR], pa.list_view(pa.float32()))().slice(1), FOUR),
    "nested lists": Case("mat", column(CUBE.tolist()), CUBE),
    "polars arrays": Case("mat", lambda: pl.DataFrame({"x": CUBE}), CUBE),
    "tensors of Arrow": Case("mat", lambda: pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(CUBE)}), CUBE),
    "large texts": Case("word", arrow(["a", None], pa.large_string()), ["a"], {1: NONE}),
    "views of texts": Case("word", arrow(["a", "long enough to lie elsewhere"], pa.string_view()),
                           ["a", "long enough to lie elsewhere"]),
    "run lengths": Case("one", lambda: pa.table({"x": pa.RunEndEncodedArray.from_arrays([2, 3], [1.0, 2.0])}),
                        [1, 1, 2]),
    "sparse": Case("one", column(pd.arrays.SparseArray([0.0, 1.5])), [0, 1.5]),
    "dictionaries that differ by chunk": Case(
        "word",
        lambda: pa.table({"x": pa.chunked_array([pa.array(c).dictionary_encode() for c in ("ab", "ca")])}),
        ["a", "b", "c", "a"],
    ),
    "chunks and slices": Case(
        "one", lambda: pa.concat_tables([pa.table({"x": [float(i)]}) for i in range(700)]).slice(3, 650),
        np.arange(3, 653),
    ),
    "views of memory": Case(
        "free", lambda: pd.DataFrame({"a": np.arange(10.0)[::2], "b": np.arange(10.0)[::-2]}),
        np.stack([np.arange(10)[::2], np.arange(10)[::-2]], axis=1),
    ),
    "300 columns": Case("free", lambda: pd.DataFrame(CUBE.reshape(-1)[0] + np.arange(600.0).reshape(2, 300)),
                        np.arange(600).reshape(2, 300)),
    "names that need quotes": Case(
        "free", lambda: pd.DataFrame([[1.5, 2.5]], columns=['a"b\\ \'c', "ö.x/Ω\n"]), [[1.5, 2.5]]
    ),
    "names with dots": Case("free", lambda: pl.DataFrame({"a.b": [1.0], "a": [2.0], "a.c": [3.0]}), [[2, 1]],
                            options={"columns": ["a", "a.b"]}),
    "names that are numbers": Case("free", lambda: pd.DataFrame(np.arange(4.0).reshape(2, 2)), [[0, 1], [2, 3]]),
    "names of two levels": Case(
        "free", lambda: pd.DataFrame([[1.0, 2.0]], columns=pd.MultiIndex.from_product([["a"], ["x", "y"]])), [[1, 2]]
    ),
    "no rows": Case("free", lambda: pl.DataFrame(schema={"a": pl.Float64, "b": pl.Float64}), np.empty((0, 2))),
    "keys that repeat": Case("one", lambda: pl.DataFrame({"id": ["a", "a"], "x": [1, 2]}), [1, 2],
                             options={"key": "id"}, others={"id": ["a", "a"]}),
    "a large key": Case("one", lambda: pa.table({"id": pa.array([2**64 - 1, 0], pa.uint64()), "x": [1, 2]}), [1, 2],
                        options={"key": "id"}, others={"id": [2**64 - 1, 0]}),
    "a key called error": Case("one", lambda: pa.table({"error": ["a", "b"], "x": [1.0, None]}), [1], {1: NONE},
                               {"key": "error"}, {"key": ["a", "b"]}),
    "an index as the key, a level as kept": Case(
        "one",
        lambda: pd.DataFrame({"id": [7, 8], "d": ["p", "q"], "x": [1.0, 2.0]}).set_index(["id", "d"]), [1, 2],
        options={"key": "id", "keep": ["d"]}, others={"id": [7, 8], "d": ["p", "q"]},
    ),
    "kept columns of all kinds": Case(
        "one",
        lambda: pd.DataFrame({
            "x": [1.0, 2.0], "at": [UTC_DAY.replace(tzinfo=None)] * 2, "took": pd.to_timedelta([1500, None], unit="ms"),
            "zone": pd.to_datetime([UTC_DAY, None]).tz_convert(VIENNA),
            "month": pd.period_range("2026-01", periods=2, freq="M"),
            "money": [Decimal("1.10"), None], "bytes": [b"a", None], "inner": [{"a": [1]}, None],
        }),
        [1, 2],
        options={"columns": ["x"], "keep": ["at", "took", "zone", "month", "money", "bytes", "inner"]},
        others={"at": ["2026-01-01T00:00:00"] * 2, "took": [1.5, None], "zone": ["2026-01-01T01:00:00+01:00", None],
                "month": ["2026-01", "2026-02"], "money": ["1.10", None], "bytes": ["YQ==", None],
                "inner": [{"a": [1]}, None]},
    ),
    "a map is kept as text": Case(
        "one", lambda: pa.table({"x": [1.0], "m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}), [1],
        options={"columns": ["x"], "keep": ["m"]}, others={"m": ['[["a",1]]']},
    ),
    "an array with NaN": Case("free", lambda: np.array([[1, NAN], [INF, 2]], ">f4"), [[1, NAN], [INF, 2]]),
    "a large array": Case("free", lambda: np.arange(3000).reshape(1500, 2)[::-1],
                          np.arange(3000).reshape(1500, 2)[::-1]),
    "an array of records": Case("free", lambda: np.array([(1, 2.5)], [("a", "i4"), ("b", "f4")]), [[1, 2.5]]),
    "a list of objects": Case("one", lambda: [{"x": 1.5}, {"x": np.float32(0.1)}], [1.5, np.float32(0.1)]),
}  # fmt: skip


@pytest.fixture(scope="module")
def batches(client: Client) -> dict[str, Batch]:
    """Every case under way at once."""
    return {name: client.batch(case.model, case.data(), **case.options) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_table_gives_what_the_model_gives_by_hand(batches: dict[str, Batch], folder: Path, name: str) -> None:
    """Bit for bit and in order; bad rows are null with an error that names the column; types are the model's."""
    case, batch = CASES[name], batches[name]
    done = batch.wait(WITHIN_S)
    assert done.status is BatchStatus.COMPLETED, done.faults
    table = batch.to_arrow()
    kind = helper.tensor_dtype_to_np_dtype(SHAPES[case.model][0])
    with np.errstate(over="ignore"):
        given = np.array(case.x, dtype=object if case.model == "word" else kind)
    (by_hand,) = onnxruntime.InferenceSession(folder / f"{case.model}.onnx").run(["y"], {"x": given})
    good = [row for row in range(table.num_rows) if row not in case.bad]
    assert table.schema.field("y").type == TYPES[case.model]
    found = np.array(table["y"].take(pa.array(good, pa.int64())).to_pylist(), object if case.model == "word" else kind)
    np.testing.assert_array_equal(found.reshape(by_hand.shape), by_hand)
    assert table["row"].to_pylist() == list(range(len(given) + len(case.bad)))
    errors = {row: told["message"] for row, told in enumerate(table["error"].to_pylist()) if told is not None}
    assert errors == case.bad
    assert all(table["y"][row].as_py() is None for row in case.bad)
    assert {other: table[other].to_pylist() for other in case.others} == case.others
    assert table.column_names == ["row", *case.others, "y", "error"]
    assert len(table.to_pandas()) == table.num_rows


def times(kind: str) -> Callable[[], pd.DataFrame]:
    return lambda: pd.DataFrame({"x": pd.to_datetime([UTC_DAY]).as_unit("us").tz_convert(kind or None)})


REFUSED: dict[str, tuple[str, Callable[[], Any], dict[str, Any], str]] = {
    "times": ("one", times(""), {}, r"'x' is timestamp\[us\]; one takes FP32 \[\]. Make numbers of it"),
    "times of a zone": ("i64", times(VIENNA), {}, r"'x' is timestamp\[us, tz=Europe/Vienna\]; i64 .* Make numbers"),
    "durations": ("one", column([timedelta(1)]), {}, r"'x' is duration\[us\].*Make numbers"),
    "texts": ("one", column(["1", "2"]), {}, r"'x' is large_string.*Make numbers of it, or name other columns"),
    "periods": ("one", column(pd.period_range("2026", periods=1, freq="Y")), {}, r"'x' is large_string.*Make numbers"),
    "numbers for truth": ("flag", column([1, 0]), {}, r"'x' is int64; flag takes BOOL \[\]. Make true and false"),
    "bytes": ("word", column([b"a"]), {}, r"'x' is binary; word takes BYTES \[\]. Make text of it"),
    "objects of fields": ("one", column([{"a": 1}]), {}, r"'x' is struct<a: int64>.*Give each of its values a column"),
    "lists too short": ("vec", arrow([[1, 2, 3]], pa.list_(pa.float32(), 3)), {}, "'x' is fixed.*lists of 4 numbers"),
    "flat lists": ("mat", arrow([[1] * 6], pa.list_(pa.float32(), 6)), {}, "'x' is fixed.*nested lists of 2 x 3"),
    "301 columns": ("vec", lambda: pd.DataFrame(np.ones((1, 301))), {}, r"reads \[4\] of x a row; 301 columns"),
    "no such key": ("one", column([1.0]), {"key": "id"}, r"There is no column 'id'; there are x"),
    "a kept error": ("one", lambda: pa.table({"x": [1.0], "error": ["e"]}), {"columns": ["x"], "keep": ["error"]},
                     r"'error' has the name of what tells of rows that fail: rename it"),
    "an output called error": ("fails", column([1.0]), {}, r"fails has an output 'error', which each line has anyway"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refused(client: Client) -> dict[str, Batch]:
    """Every refused table under way at once."""
    return {name: client.batch(model, data(), **options) for name, (model, data, options, _) in REFUSED.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name_with_what_to_do(refused: dict[str, Batch], name: str) -> None:
    """The column, its type, what the model takes; not one row is scored."""
    done = refused[name].wait(WITHIN_S)
    assert (done.status, done.rows.total) == (BatchStatus.FAILED, 0)
    with pytest.raises(AssertionError, match=REFUSED[name][3]):
        raise AssertionError(done.faults[0].message)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda: pl.DataFrame({"x": [1.0]}).lazy(), r"A LazyFrame is no data set: give what its collect\(\) makes"),
        (lambda: ({"x": 1.0} for _ in range(3)), "A generator is no data set: make a list of it"),
        (lambda: {"x": [1.0]}, r"of columns make a table, as pandas.DataFrame"),
        (lambda: pa.array([1.0]), "A DoubleArray is one column of a table"),
        (lambda: pl.Series("x", [1.0]), "A Series is one column of a table"),
        (lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]), "Two columns are named 'a': rename one"),
        (lambda: pd.DataFrame([[1, 2]], columns=[1, "1"]), "Two columns are named '1': rename one"),
        (lambda: pa.table([[1.0], [2.0]], names=["a", "a"]), "Two columns are named 'a': rename one"),
        (lambda: pd.DataFrame(index=[1, 2]), "The table has no columns"),
        (lambda: pd.DataFrame({"a": [1.0], "x": [2**70]}), "The column 'x' is object: .*too large.* Give it one"),
        (lambda: pd.DataFrame({"a": [1.0, 2.0], "x": [1.5, "a"]}), r"The column 'x' is object: .*'a'.* Give it one"),
        (lambda: pd.DataFrame({"a": [1.0], "x": [1 + 2j]}), "The column 'x' is complex128: "),
        (lambda: pl.DataFrame({"a": [1.0], "x": pl.Series([1], dtype=pl.Int128)}), "The column 'x' is Int128: "),
        (lambda: pl.DataFrame({"x": pl.Series([object()], dtype=pl.Object)}), "The column 'x' is Object: "),
        (lambda: np.array(["2026-01-01"], "M8[ns]"), r"An array of datetime64\[ns\] is no array of numbers"),
        (lambda: np.empty((0, 2)), "There are no rows"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_before_anything_is_sent(data: Callable[[], Any], told: str) -> None:
    """What it is, which column, and what to do; nothing is guessed."""
    with Client("http://127.0.0.1:9", "none") as client, pytest.raises(InvalidRequestError, match=told):
        client.batch("one", data())


def test_the_asynchronous_client_takes_tables(system: System) -> None:
    """The same, awaited; the frame's own values under its keys."""

    async def run() -> pa.Table:
        async with AsyncClient(",".join(system.urls), system.key) as client:
            frame = pl.DataFrame({"id": ["b", "a"], "x": [[1, 2, 3, 4], None]})
            batch = await client.batch("vec", frame, key="id")
            await batch.wait(WITHIN_S)
            return await batch.to_arrow()

    assert asyncio.run(run()).to_pylist() == [
        {"row": 0, "id": "b", "y": [1, 2, 3, 4], "error": None},
        {"row": 1, "id": "a", "y": None, "error": {"code": "invalid_row", "message": NONE}},
    ]
