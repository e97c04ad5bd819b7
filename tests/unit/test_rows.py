"""Rows from JSON to packed bytes: the short way for plain rows gives what the long way gives."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline import rows
from batchline.errors import BatchlineError
from batchline.model import DTYPES, BatchPolicy, ModelSpec, TensorSpec

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-300, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1.5, 65504, 65519.9, 65520, 3.4028234e38, 3.4028236e38, 1e-46, 2**31, 2**63, 255, 256]),
)
VALUES = st.one_of(NUMBERS, NUMBERS, st.booleans(), st.none(), st.text(max_size=3))


def spec(dtype: str, *, allow_missing: bool = False) -> ModelSpec:
    tensor = TensorSpec("x", dtype, (3,))
    return ModelSpec("m", "1", "e" * 64, 1, (tensor,), (tensor,), BatchPolicy(allow_missing=allow_missing))


def outcome(way: Any, raw: bytes, model: ModelSpec) -> Any:
    """What came of it, errors with their faults."""
    try:
        return way(raw, model)
    except BatchlineError as error:
        return type(error), error.detail, error.faults


def short(raw: bytes, model: ModelSpec) -> tuple[int, bytes]:
    return rows.read(raw, model, max_rows=4)


def long(raw: bytes, model: ModelSpec) -> tuple[int, bytes]:
    block = rows.parse(raw, model, max_rows=4)
    return block.count, rows.pack(block)


@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.one_of(st.lists(NUMBERS, min_size=3, max_size=3), st.lists(VALUES, max_size=4), VALUES), max_size=5),
    st.booleans(),
)
def test_both_ways_pack_the_same_bytes_and_tell_the_same_faults(dtype: str, body: Any, missing: bool) -> None:
    """Any type, any value, any shape: good rows and bad ones."""
    raw, model = json.dumps(body).encode(), spec(dtype, allow_missing=missing)
    assert outcome(short, raw, model) == outcome(long, raw, model)


@given(st.sampled_from(["FP16", "FP32", "FP64"]), st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1))
def test_numbers_are_rounded_as_numpy_rounds(dtype: str, body: list[list[float]]) -> None:
    """To the nearest, ties to even, whole numbers by way of a double as JSON has them."""
    with np.errstate(over="ignore"):
        wanted = np.array([[float(v) for v in row] for row in body], DTYPES[dtype])
    if np.isinf(wanted).any():
        return
    count, packed = rows.read(json.dumps(body).encode(), spec(dtype), max_rows=100)
    assert count == len(body)
    np.testing.assert_array_equal(rows.unpack(packed).columns["x"], wanted)


def test_a_row_as_an_object_takes_the_long_way() -> None:
    """Both forms of a row are the same bytes."""
    assert short(b'[{"x":[1,2,3]},{"x":[4,5,6]}]', spec("FP32")) == short(b"[[1,2,3],[4,5,6]]", spec("FP32"))


@pytest.mark.parametrize("body", [b"[[1,2,1e400]]", b"[[1,2,NaN]]", b"[[1,2,3]", b"[[1,2,3e39]]", b"[]", b"5"])
def test_what_does_not_fit_is_refused(body: bytes) -> None:
    """Nothing infinite is ever packed, and broken JSON is told as such."""
    with pytest.raises(BatchlineError):
        short(body, spec("FP32"))


def test_packed_rows_can_be_read_by_anyone_with_msgpack() -> None:
    """The form is the one that the file's head describes."""
    assert msgspec.msgpack.decode(short(b"[[1,2,3]]", spec("INT8"))[1]) == [1, {"x": ["int8", [3], b"\1\2\3"]}]


COLUMNS = ModelSpec(
    "table", "1", "e" * 64, 1, (TensorSpec("age", "FP32", (1,)), TensorSpec("city", "BYTES", (1,))), (),
)  # fmt: skip


def test_a_list_of_one_may_be_written_as_the_value() -> None:
    """As the columns of a table are, which exporters make [rows, 1]: in objects and plain rows, mixed as one likes."""
    bare, listed = [{"age": 1.5, "city": "Oslo"}, {"age": [2], "city": "x"}], [{"age": [1.5], "city": ["Oslo"]}] * 2
    assert long(json.dumps(bare).encode(), COLUMNS) != long(json.dumps(listed).encode(), COLUMNS)
    listed[1] = {"age": [2.0], "city": ["x"]}
    assert long(json.dumps(bare).encode(), COLUMNS) == long(json.dumps(listed).encode(), COLUMNS)
    tensor = TensorSpec("x", "INT64", (1,))
    model = ModelSpec("m", "1", "e" * 64, 1, (tensor,), (tensor,))
    assert short(b"[7, [8]]", model) == short(b"[[7], [8]]", model) == long(b"[7, 8]", model)


@pytest.mark.parametrize(
    ("row", "pointer", "told"),
    [
        ({"age": "old", "city": "Oslo"}, "/inputs/0/age", "must be a number of FP32"),
        ({"age": None, "city": "Oslo"}, "/inputs/0/age", "must be a number of FP32"),
        ({"age": ["old"], "city": "Oslo"}, "/inputs/0/age/0", "must be a number of FP32"),
        ({"age": 1e39, "city": "Oslo"}, "/inputs/0/age", "must be a number of FP32"),
        ({"age": 1, "city": 2}, "/inputs/0/city", "must be a string: BYTES"),
        ({"age": [1, 2], "city": "x"}, "/inputs/0/age", "has 2 values where age takes 1"),
    ],
)
def test_a_bare_value_that_does_not_fit_is_named(row: dict[str, object], pointer: str, told: str) -> None:
    """By the place where it stands."""
    _, _, faults = outcome(long, json.dumps([row]).encode(), COLUMNS)
    assert [tuple(fault) for fault in faults] == [(pointer, told)]
