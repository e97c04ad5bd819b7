"""Columns to tensors and back: which columns feed which input, what is cast, what is refused and where."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.batch import DataSet, Input, Output
from batchline.data.column_arrays import arrow_type, to_arrow
from batchline.data.columns import Mapped, Mapper, check
from batchline.data.contract import MAYBE_NUMBERS, Rows
from batchline.errors import InvalidRequestError, SourceError
from batchline.model import BatchPolicy, ModelSpec, TensorSpec, TextFront


def model(
    *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), text: bool = False, missing: bool = False
) -> ModelSpec:
    return ModelSpec(
        "churn", "1", "d", 1, inputs, outputs or (TensorSpec("y", "FP32", (2,)),), BatchPolicy(allow_missing=missing),
        TextFront() if text else None,
    )  # fmt: skip


def data(
    columns: list[str] | None = None,
    key: str | None = None,
    keep: tuple[str, ...] = (),
    *,
    uri: str | None = "file:///o",
) -> DataSet:
    return DataSet("churn", "1", Input(uri="file:///i", key=key, columns=columns), Output(uri=uri, keep=list(keep)))


X3 = TensorSpec("x", "FP32", (3,))


def mapped(spec: ModelSpec, wanted: DataSet, batch: pa.RecordBatch, faults: dict[int, str] | None = None) -> Mapped:
    mapper = Mapper(spec, wanted, batch.schema)
    return mapper.arrays(Rows(batch.select(mapper.reads), faults or {}))


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({n: c if isinstance(c, pa.Array) else pa.array(c) for n, c in columns.items()})


def test_columns_given_are_stacked_in_their_order() -> None:
    """[N, n] float32, whole numbers, floats and decimals alike."""
    got = mapped(
        model(X3), data(["c", "a", "b"]), batch(a=[1, 2], b=[0.5, 1.5], c=[Decimal("7.25"), Decimal(8)], d=["x", "y"])
    )
    assert got.at is None
    assert not got.faults
    x = got.columns["x"]
    assert isinstance(x, np.ndarray)
    assert x.dtype == np.float32
    assert x.tolist() == [[7.25, 1, 0.5], [8, 2, 1.5]]


def test_without_columns_all_but_key_and_kept_feed_the_one_input() -> None:
    """The usual table: an id, a label to keep, features."""
    table = batch(id=[1, 2], a=[1.0, 2.0], b=[3.0, 4.0], note=["p", "q"], c=[5.0, 6.0])
    mapper = Mapper(model(X3), data(key="id", keep=("note",)), table.schema)
    assert mapper.reads == ["a", "b", "c", "id", "note"]
    assert mapper.schema.names == ["id", "note", "y"]
    assert mapper.error_schema.names == ["row", "id", "code", "message"]


def test_columns_named_like_the_inputs_feed_them() -> None:
    """Several inputs: scalars, lists and nested lists, each of its name."""
    spec = model(TensorSpec("age", "INT64", ()), TensorSpec("v", "FP32", (2,)), TensorSpec("m", "FP32", (2, 2)))
    got = mapped(spec, data(), batch(v=[[1, 2], [3, 4]], other=["a", "b"], age=[7.0, 8.0], m=[[[1, 2], [3, 4]]] * 2))
    assert np.asarray(got.columns["age"]).tolist() == [7, 8]
    assert np.asarray(got.columns["v"]).shape == (2, 2)
    assert np.asarray(got.columns["m"]).shape == (2, 2, 2)


def test_a_model_with_text_takes_the_one_column_of_text() -> None:
    """Named `text`, or the only one; missing texts are faults."""
    spec = model(TensorSpec("ids", "INT64", (None,)), text=True)
    assert mapped(spec, data(), batch(id=[1, 2], body=["a", "b"])).columns == {"text": ["a", "b"]}
    got = mapped(spec, data(), batch(text=["a", None, "c"], title=["x", "y", "z"]))
    assert got.columns == {"text": ["a", "c"]}
    assert got.faults == {1: "column text: there is no value"}
    assert check(spec, data(), batch(a=["x"], b=["y"]).schema)


@pytest.mark.parametrize(
    ("spec", "wanted", "table", "told"),
    [
        (model(X3), data(["a", "zz", "b"]), batch(a=[1], b=[2]), "There is no column 'zz'; there are a, b."),
        (model(X3), data(["a", "b"]), batch(a=[1], b=[2]), "2 columns were found"),
        (model(X3), data(), batch(a=[1], b=["x"], c=[2]), "The column 'b' is string; churn takes FP32 [3]."),
        (model(X3), data(), batch(a=[1], b=[date(2026, 1, 1)], c=[2]), "The column 'b' is date32"),
        (model(TensorSpec("x", "BOOL", (1,))), data(), batch(a=[1]), "The column 'a' is int64"),
        (model(X3), data(), batch(a=pa.array([[1, 2]], pa.list_(pa.int64(), 2))), "The column 'a' is fixed_size_list"),
        (model(X3), data(key="k"), batch(a=[1]), "There is no column 'k'"),
        (model(X3), data(keep=("k",)), batch(a=[1]), "There is no column 'k'"),
        (model(X3), data(["a", "b", "c"], keep=("y",)), batch(a=[1], b=[1], c=[1], y=[1]), "name of an output"),
        (model(X3), data(["a", "b", "c"], keep=("row",)), batch(a=[1], b=[1], c=[1], row=[1]), "rename it"),
        (model(X3, TensorSpec("z", "FP32", ())), data(), batch(a=[1]), "has the inputs x, z"),
        (model(X3), data([]), batch(a=[1]), "0 columns"),
    ],
)
def test_what_does_not_fit_is_told_by_column(
    spec: ModelSpec, wanted: DataSet, table: pa.RecordBatch, told: str
) -> None:
    """At planning, before anything runs; the mapper refuses as the check does."""
    faults = check(spec, wanted, table.schema)
    assert told in faults[0].message
    assert faults[0].code == "invalid_columns"
    with pytest.raises(InvalidRequestError, match=r".+"):
        Mapper(spec, wanted, table.schema)


def test_faults_stand_at_their_rows() -> None:
    """A null, a number too large, a fault of the source: these rows go, the others keep their places."""
    table = batch(a=[1.0, None, 3.0, 4.0, 5.0], b=[1.0, 2.0, 1e300, 4.0, float("inf")], c=[1, 2, 3, 4, 5])
    got = mapped(model(X3), data(), table, {3: "the line is no JSON"})
    assert got.at is not None
    assert got.at.tolist() == [0, 4]
    assert dict(got.faults) == {
        1: "column a: there is no value",
        2: "column b: FP32 cannot hold a number this large",
        3: "the line is no JSON",
    }
    assert np.asarray(got.columns["x"]).tolist() == [[1, 1, 1], [5, float("inf"), 5]]


def test_true_and_false_are_one_and_zero() -> None:
    """As one-hot columns are meant, which pandas makes as bool; nothing else becomes a bool."""
    spec = model(TensorSpec("x", "FP32", (3,)), missing=True)
    got = mapped(spec, data(), batch(a=[True, False, None], b=[0.5, 1.5, 2.5], c=[False, True, True]))
    np.testing.assert_array_equal(got.columns["x"], np.array([[1, 0.5, 0], [0, 1.5, 1], [np.nan, 2.5, 1]], "f"))
    lists = mapped(model(TensorSpec("x", "INT8", (2,))), data(), batch(a=[[True, False], [True, None]]))
    assert dict(lists.faults) == {1: "column a: there is no value"}
    np.testing.assert_array_equal(lists.columns["x"], np.array([[1, 0]], np.int8))


def test_missing_values_are_nan_where_the_model_says_so() -> None:
    """Only for floats, and only by policy."""
    spec = model(TensorSpec("x", "FP32", (2,)), TensorSpec("n", "INT64", ()), missing=True)
    got = mapped(spec, data(), batch(x=[[1.0, None], [2.0, 3.0]], n=[1, None]))
    assert dict(got.faults) == {1: "column n: there is no value"}
    x = np.asarray(got.columns["x"])
    assert x[0, 0] == 1
    assert np.isnan(x[0, 1])
    stacked = mapped(model(X3, missing=True), data(), batch(a=[1, None], b=[1.0, 2.0], c=[None, 2.0]))
    assert np.isnan(np.asarray(stacked.columns["x"])).tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize(("dtype", "values", "bad"), [
    ("INT8", [1, 127, 128, -129], [2, 3]),
    ("UINT8", [0, 255, -1, 256], [2, 3]),
    ("INT64", [1.0, 2.5, float("nan"), 1e30], [1, 2, 3]),
    ("UINT64", [1, 2, -3], [2]),
])  # fmt: skip
def test_whole_numbers_must_be_whole_and_in_range(dtype: str, values: list[float], bad: list[int]) -> None:
    """Nothing is rounded or wrapped round."""
    got = mapped(model(TensorSpec("x", dtype, ())), data(), batch(x=values))
    assert sorted(got.faults) == bad
    assert np.asarray(got.columns["x"]).tolist() == [v for at, v in enumerate(values) if at not in bad]


def test_large_whole_numbers_are_exact() -> None:
    """int64 with nulls does not pass through floats."""
    got = mapped(model(TensorSpec("x", "INT64", ())), data(), batch(x=[2**63 - 1, None, -(2**63)]))
    assert np.asarray(got.columns["x"]).tolist() == [2**63 - 1, -(2**63)]


def test_lists_of_free_length_are_one_array_a_row() -> None:
    """Where shapes differ; where they are one, one array."""
    spec = model(TensorSpec("x", "FP32", (None, 2)))
    got = mapped(spec, data(), batch(x=[[[1, 2]], [[3, 4], [5, 6]], [], [[7]], None]))
    assert [np.asarray(x).tolist() for x in got.columns["x"]] == [[[1, 2]], [[3, 4], [5, 6]], []]
    assert sorted(got.faults) == [3, 4]
    assert np.asarray(mapped(spec, data(), batch(x=[[[1, 2]], [[3, 4]]])).columns["x"]).shape == (2, 1, 2)


def test_lists_of_the_wrong_length_are_faults() -> None:
    """A row with two of three numbers goes alone; sliced and dictionary-encoded columns are read as any."""
    table = batch(x=[[9.0] * 3, [1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 1e300]]).slice(1)
    got = mapped(model(X3), data(), table)
    assert sorted(got.faults) == [0, 2]
    assert got.columns["x"][0].tolist() == [1, 2, 3]  # pyright: ignore[reportAttributeAccessIssue]
    encoded = batch(a=pa.array([1.5, 2.5]).dictionary_encode(), b=[1, 2], c=[1, 2])
    assert np.asarray(mapped(model(X3), data(), encoded).columns["x"])[:, 0].tolist() == [1.5, 2.5]


def test_text_that_may_be_numbers_is_read() -> None:
    """A CSV column with a few bad values: numbers for the model, text for the output."""
    schema = pa.schema([pa.field("a", pa.string()).with_metadata(MAYBE_NUMBERS), pa.field("k", pa.int64())])
    table = pa.RecordBatch.from_pydict({"a": ["1.5", "x", " 2 ", ""], "k": [1, 2, 3, 4]}, schema=schema)
    got = mapped(model(TensorSpec("a", "FP32", ())), data(key="k"), table)
    assert dict(got.faults) == {1: "column a: 'x' is no number", 3: "column a: there is no value"}
    assert np.asarray(got.columns["a"]).tolist() == [1.5, 2]


def test_text_in_a_later_file_fails_its_rows_only() -> None:
    """CSV has no types: where rows before were numbers, words are faults of their rows, in what feeds the model as in
    what is kept; the key of such a row is null among the errors.
    """
    mapper = Mapper(model(TensorSpec("a", "FP32", ())), data(key="k"), batch(a=[1.0], k=[1]).schema)
    schema = pa.schema([pa.field(name, pa.string()).with_metadata(MAYBE_NUMBERS) for name in ("a", "k")])
    texts = pa.RecordBatch.from_pydict({"a": ["1.5", "x", "2", "3"], "k": [" 7", "8", "nine", "10"]}, schema=schema)
    got = mapper.arrays(Rows(texts))
    assert dict(got.faults) == {
        1: "column a: 'x' is no number",
        2: "column k: 'nine' is no int64, as the first rows are: make all of one kind",
    }
    assert np.asarray(got.columns["a"]).tolist() == [1.5, 3]
    assert got.at is not None
    assert mapper.output(texts, got.at, 0, {"y": np.zeros((2, 2), np.float32)}).column("k").to_pylist() == [7, 10]
    assert mapper.errors(texts, [1, 2], 0, ["c", "c"], ["m", "m"]).column("k").to_pylist() == [8, None]


def test_another_type_in_a_later_file_is_refused_by_name() -> None:
    """Files of one data set must agree as far as the model reads them."""
    mapper = Mapper(model(X3), data(), batch(a=[1], b=[1], c=[1]).schema)
    with pytest.raises(SourceError, match=r"b\.csv: the column 'b' is string"):
        mapper.arrays(Rows(batch(a=[1], b=["x"], c=[1])), where="file:///b.csv")
    assert not mapper.arrays(Rows(batch(a=[1.5], b=[1], c=[1]))).faults


def test_only_the_rows_that_are_asked_for() -> None:
    """A retry does what failed before and passes over the rest."""
    mapper = Mapper(model(X3), data(), batch(a=[1.0], b=[1.0], c=[1.0]).schema)
    rows = Rows(batch(a=[0.0, 1.0, None, 3.0], b=[0.0] * 4, c=[0.0] * 4), {0: "bad", 3: "bad too"})
    got = mapper.arrays(rows, only=[1, 2, 3])
    assert got.at is not None
    assert got.at.tolist() == [1]
    assert sorted(got.faults) == [2, 3]


def test_the_output_has_key_kept_columns_and_outputs() -> None:
    """By the planned schema, for the rows that succeeded; errors have the row's number besides."""
    spec = model(
        X3, outputs=(TensorSpec("y", "FP32", (2,)), TensorSpec("label", "INT64", ()), TensorSpec("t", "BYTES", ()))
    )
    table = batch(a=[1.0] * 3, b=[1.0] * 3, c=[1.0] * 3, id=["p", "q", "r"], note=[1, None, 3])
    mapper = Mapper(spec, data(["a", "b", "c"], "id", ("note",)), table.schema)
    outputs = {"y": np.ones((2, 2), np.float32), "label": np.array([4, 5]), "t": np.array(["u", "v"], object)}
    out = mapper.output(table, [0, 2], 100, outputs)
    assert out.schema == mapper.schema
    assert out.to_pylist()[1] == {"id": "r", "note": 3, "y": [1, 1], "label": 5, "t": "v"}
    errors = mapper.errors(table, [1], 100, ["invalid"], ["no"])
    assert errors.to_pylist() == [{"row": 101, "id": "q", "code": "invalid", "message": "no"}]


def test_without_a_key_and_in_the_default_sink_rows_are_numbered() -> None:
    """`row` stands first."""
    table = batch(a=[1.0], b=[1.0], c=[1.0], id=[7])
    for wanted in (data(["a", "b", "c"]), data(["a", "b", "c"], "id", uri=None)):
        mapper = Mapper(model(X3), wanted, table.schema)
        assert mapper.schema.names[0] == "row"
        out = mapper.output(table, None, 41, {"y": np.zeros((1, 2), np.float32)})
        assert out.column("row").to_pylist() == [41]


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    free=st.lists(st.booleans(), min_size=3, max_size=3),
    dtype=st.sampled_from(["FP16", "FP32", "FP64", "INT8", "UINT64", "BOOL"]),
    rows=st.integers(0, 4),
)
def test_outputs_come_back_from_arrow_as_they_were(shape: list[int], free: list[bool], dtype: str, rows: int) -> None:
    """Any shape, fixed or free: the Arrow column has the declared type and the same values."""
    names = {
        "FP16": "float16",
        "FP32": "float32",
        "FP64": "float64",
        "INT8": "int8",
        "UINT64": "uint64",
        "BOOL": "bool",
    }
    values = (np.arange(rows * int(np.prod(shape))) % 100).reshape(rows, *shape).astype(names[dtype])
    tensor = TensorSpec("y", dtype, tuple(None if f else n for n, f in zip(shape, free, strict=False)))
    column = to_arrow(values, tensor)
    assert column.type == arrow_type(tensor)
    assert column.to_pylist() == values.tolist()
