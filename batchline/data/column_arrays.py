"""Columns of a record batch as tensors: cast where nothing is lost, and the rows found that do not fit.

Every function takes N values, one a row, and gives arrays over all N rows and the faults by row; what stands in the
arrays at rows at fault is of no meaning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchline.data.bare_columns import bare, bare_type, viewless, viewless_type
from batchline.errors import ModelError
from batchline.model import DTYPES, TensorSpec

Array = NDArray[Any]
Column = Array | list[Array] | list[str]
"""[N, *shape] when all rows have one shape; else a list of one array (or text) a row."""
Faults = dict[int, str]

UNLIKE = ", as the first rows are: make all of one kind"
"""Ends what is told of a value that does not have the type of its column."""
NULLS = ["", "NULL", "null", "NA", "N/A"]
"""Texts of a CSV file that mean no value, but in columns of text, where they are text."""
NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
INEXACT = (r"^\s*[+-]?0[0-9]", r"^\s*[+-]?(?:0[0-9]|[0-9]{16,}\s*$)")
"""Texts that lose something as a whole number, and as a float64."""
_DIGITS = re.compile(r"[+-]?[0-9]{1,30}")
_NO_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
"""Words for what is no finite number, which floats may be."""


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of whatever make."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def kept_type(kind: pa.DataType) -> pa.DataType:
    """The type of a kept column in the output: one that every sink knows."""
    kind = viewless_type(plain_type(kind))
    if isinstance(kind, pa.UuidType):
        return pa.string()
    # what was empty at the start is text
    return pa.string() if pa.types.is_null(kind) else bare_type(kind)


def kept(column: pa.Array[Any]) -> pa.Array[Any]:
    """The values as one of the plain types: UUIDs as texts, others as what they are stored as."""
    column = viewless(column)
    if not isinstance(column, pa.ExtensionArray) or not isinstance(column.type, pa.UuidType):
        return column if bare_type(column.type) == column.type else kept(bare(column))
    stored: pa.Array[Any] = column.storage
    values = cast("list[bytes | None]", stored.to_pylist())
    digits = np.frombuffer(b"".join(v or bytes(16) for v in values).hex().encode(), np.uint8).reshape(-1, 32)
    texts = np.full((len(column), 36), ord("-"), np.uint8)
    for start, low, high in ((0, 0, 8), (9, 8, 12), (14, 12, 16), (19, 16, 20), (24, 20, 32)):
        texts[:, start : start + high - low] = digits[:, low:high]
    nulls = stored.is_null().to_numpy(zero_copy_only=False)
    return pa.array(texts.view("S36").reshape(-1), pa.binary(), mask=nulls).cast(pa.string())


def plain_type(kind: pa.DataType) -> pa.DataType:
    """What a dictionary-encoded type stands for."""
    return cast("pa.DictionaryType[Any, Any]", kind).value_type if pa.types.is_dictionary(kind) else kind


def leaf_fits(kind: pa.DataType, tensor: TensorSpec) -> bool:
    """Whether single values of this type may become the tensor's; each value is looked at later."""
    kind = plain_type(kind)
    if pa.types.is_null(kind):
        return True
    if tensor.dtype == "BYTES":
        return is_text(kind)
    if pa.types.is_boolean(kind):
        return True  # 0 and 1, as one-hot columns are meant
    if tensor.dtype == "BOOL":
        return False
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def list_fits(kind: pa.DataType, tensor: TensorSpec) -> bool:
    """Whether lists of this type have the tensor's axes and values."""
    for want in tensor.shape:
        kind = plain_type(kind)
        if not is_list(kind):
            return False
        if pa.types.is_fixed_size_list(kind) and want not in (None, cast("pa.FixedSizeListType[Any]", kind).list_size):
            return False
        kind = cast("pa.ListType[Any]", kind).value_type
    return leaf_fits(kind, tensor)


def stack(columns: Sequence[pa.Array[Any]], tensor: TensorSpec, *, allow_missing: bool) -> tuple[Array, Faults]:
    """Columns of N single values, n of them, as one array [N, n]."""
    names = list(range(len(columns)))
    out = np.empty((len(columns[0]), len(columns)), DTYPES[tensor.dtype])
    faults: Faults = {}
    wide: list[int] = []
    for at, column in zip(names, columns, strict=True):
        if pa.types.is_floating(column.type) and tensor.is_float and not column.null_count:
            with np.errstate(over="ignore"):
                out[:, at] = column.to_numpy(zero_copy_only=False)
            wide.append(at)
            continue
        out[:, at], bad = leaves(column, tensor, allow_missing=allow_missing)
        faults |= {row: f"{at}\0{why}" for row, why in bad.items() if row not in faults}
    if wide and out.dtype != np.float64 and np.isinf(out).any():
        for at in wide:
            lost = np.isinf(out[:, at]) & ~np.isinf(columns[at].to_numpy(zero_copy_only=False))
            faults |= {int(row): f"{at}\0{_too_large(tensor)}" for row in np.flatnonzero(lost) if row not in faults}
    return out, faults


def leaves(column: pa.Array[Any], tensor: TensorSpec, *, allow_missing: bool) -> tuple[Array, Faults]:
    """N single values as an array [N]."""
    if pa.types.is_dictionary(column.type):
        column = cast("pa.DictionaryArray[Any, Any]", column).dictionary_decode()
    faults: Faults = {}
    nulls = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    missing = tensor.is_float and allow_missing
    if nulls is not None and not missing:
        faults = dict.fromkeys(np.flatnonzero(nulls).tolist(), "there is no value")
    if tensor.dtype == "BYTES":
        return np.array(["" if v is None else v for v in column.to_pylist()], dtype=object), faults
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan if tensor.is_float else 0).astype(DTYPES[tensor.dtype]), faults
    if pa.types.is_decimal(column.type):
        column, bad = _plain_numbers(column, tensor)
        faults = bad | faults
    if pa.types.is_boolean(column.type) and tensor.dtype != "BOOL":
        column = column.cast(pa.uint8())
    if nulls is not None:
        floats = pa.types.is_floating(column.type) or missing
        column = column.cast(pa.float64(), safe=False) if floats else column  # rounded, as without nulls
        filled = pc.fill_null(column, pa.scalar(math.nan if floats else 0).cast(column.type))
        column = cast("pa.Array[Any]", filled)
    values = column.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        out = values.astype(DTYPES[tensor.dtype], copy=False)
    for row in np.flatnonzero(_misfits(values, out, tensor)).tolist():
        faults.setdefault(row, _misfit(values[row], tensor))
    return out, faults


def _plain_numbers(column: pa.Array[Any], tensor: TensorSpec) -> tuple[pa.Array[Any], Faults]:
    """Decimals as float64, or as whole numbers of the tensor's own size, where float64 would not be exact."""
    if tensor.is_float:
        return column.cast(pa.float64()), {}
    whole, misfits = cast_each(column, pa.uint64() if tensor.dtype == "UINT64" else pa.int64())
    if not misfits:
        return whole, {}
    filled = cast("pa.Array[Any]", pc.fill_null(whole, pa.scalar(0).cast(whole.type)))
    return filled, {at: f"{column[at].as_py()} {_not_whole(tensor)}" for at in misfits}


def numbers_of(texts: pa.Array[Any], tensor: TensorSpec) -> tuple[pa.Array[Any], Faults]:
    """N texts as float64, or as whole numbers where the tensor takes such; what is empty has no value.

    What is no number, or one that float64 cannot hold, is a fault.
    """
    values = _given(texts)
    whole = pa.uint64() if tensor.dtype == "UINT64" else pa.int64()
    try:
        if not tensor.is_float:
            return values.cast(whole), {}
        floats = values.cast(pa.float64())
        if not pc.any(pc.is_inf(floats)).as_py():
            return floats, {}
    except pa.ArrowInvalid:
        pass
    faults: Faults = {}
    found: list[float | None] = []
    for at, text in enumerate(cast("list[str | None]", values.to_pylist())):
        number = None if text is None else _number(text) if tensor.is_float else _whole(text, whole)
        if number is None and text is not None:
            faults[at] = f"{text[:40]!r} {_why_none(text, tensor)}"
        found.append(number)
    return pa.array(found, pa.float64() if tensor.is_float else whole), faults


def _number(text: str) -> float | None:
    """The number that a text is, None if it is none or larger than any; `_` and other scripts' digits are no number."""
    if _NO_NUMBER.fullmatch(text):
        return float(text)
    number = float(text) if NUMBER.fullmatch(text) else math.inf
    return None if math.isinf(number) else number


def _whole(text: str, kind: pa.DataType) -> int | None:
    """The whole number that a text is, exact, None if it is none or outside of the type."""
    digits = _DIGITS.fullmatch(text)
    number = None if digits else _number(text)
    value = int(text) if digits else int(number) if number is not None and number.is_integer() else None
    low, high = (0, 2**64) if kind == pa.uint64() else (-(2**63), 2**63)
    return value if value is not None and low <= value < high else None


def _why_none(text: str, tensor: TensorSpec) -> str:
    if not (NUMBER.fullmatch(text) or _NO_NUMBER.fullmatch(text)):
        return "is no number"
    return "is a number too large for float64" if tensor.is_float else _not_whole(tensor)


def cast_each(column: pa.Array[Any], wanted: pa.DataType) -> tuple[pa.Array[Any], Faults]:
    """N values as another type; what does not fit is null and a fault.

    Raises:
        pa.ArrowNotImplementedError: no value of the one type is ever one of the other.
    """
    if is_text(column.type) and not is_text(wanted):
        column = _given(column)
    try:
        return column.cast(wanted), {}
    except pa.ArrowInvalid:
        pass
    faults: Faults = {}
    kept: list[object] = []
    for at, value in enumerate(column):
        try:
            kept.append(value.cast(wanted).as_py())
        except pa.ArrowInvalid:
            faults[at] = f"{str(value.as_py())[:40]!r} is no {wanted}{UNLIKE}"
            kept.append(None)
    return pa.array(kept, wanted), faults


def exactly(column: pa.Array[Any], wanted: pa.DataType) -> tuple[pa.Array[Any], Faults]:
    """As `cast_each`; texts that would lose zeros or digits as numbers are faults too."""
    found, faults = cast_each(column, wanted)
    if is_text(column.type) and (pa.types.is_integer(wanted) or pa.types.is_floating(wanted)):
        lost = cast("pa.Array[Any]", pc.match_substring_regex(column, INEXACT[pa.types.is_floating(wanted)]))
        for at in np.flatnonzero(lost.fill_null(pa.scalar(False)).to_numpy(zero_copy_only=False)).tolist():
            faults[at] = f"{str(column[at].as_py())[:40]!r} is more than the {wanted} that the first rows are"
    return found, faults


def _given(texts: pa.Array[Any]) -> pa.Array[Any]:
    """Trimmed; what means no value is null."""
    trimmed = pc.utf8_trim_whitespace(texts)
    return cast("pa.Array[Any]", pc.if_else(pc.is_in(trimmed, value_set=pa.array(NULLS)), None, trimmed))


def _misfits(values: Array, out: Array, tensor: TensorSpec) -> NDArray[np.bool_]:
    if tensor.is_float:
        return np.isinf(out) & np.isfinite(values)
    if tensor.dtype == "BOOL" or values.dtype == out.dtype:
        return np.zeros(len(values), bool)
    limits = np.iinfo(out.dtype)
    if values.dtype.kind == "f":
        values = values.astype(np.float64, copy=False)  # in float16 the limits are infinite
        with np.errstate(invalid="ignore"):
            inside = (values >= float(limits.min)) & (values < float(limits.max) + 1)
        return ~(inside & (np.trunc(values) == values))
    return (values < limits.min) | (values > limits.max)


def _misfit(value: object, tensor: TensorSpec) -> str:
    if tensor.is_float:
        return _too_large(tensor)
    return f"{value} {_not_whole(tensor)}"


def _not_whole(tensor: TensorSpec) -> str:
    return f"is no whole number within the range of {tensor.dtype}"


def _too_large(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} cannot hold a number this large"


def lists(column: pa.Array[Any], tensor: TensorSpec, *, allow_missing: bool) -> tuple[Column, Faults]:
    """N lists, as deep as the tensor has axes: [N, *shape], or one array a row where a free axis differs."""
    rows = np.arange(len(column))
    faults: Faults = {}
    while True:
        got = _lists(column, tensor, allow_missing)
        if not isinstance(got, dict):
            break
        faults |= {int(rows[at]): why for at, why in got.items()}
        good = np.setdiff1d(np.arange(len(rows)), list(got))
        rows, column = rows[good], column.take(good)
    if not faults:
        return got, faults
    total = len(rows) + len(faults)
    if isinstance(got, np.ndarray):
        out = np.zeros((total, *got.shape[1:]), got.dtype)
        out[rows] = got
        return out, faults
    spread = [np.zeros(0, DTYPES[tensor.dtype])] * total
    for row, value in zip(rows.tolist(), got, strict=True):
        spread[row] = value
    return spread, faults


def _lists(column: pa.Array[Any], tensor: TensorSpec, allow_missing: bool) -> Array | list[Array] | Faults:
    """The arrays, or the rows at fault, without which it must be asked again."""
    parents = np.arange(len(column))
    shapes = np.zeros((len(column), len(tensor.shape)), np.int64)
    for axis, want in enumerate(tensor.shape):
        if pa.types.is_dictionary(column.type):
            column = cast("pa.DictionaryArray[Any, Any]", column).dictionary_decode()
        if column.null_count:
            nulls = column.is_null().to_numpy(zero_copy_only=False)
            return dict.fromkeys(parents[nulls].tolist(), "there is no value")
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        shapes[parents, axis] = lengths
        wrong = lengths != (shapes[parents, axis] if want is None else want)
        if wrong.any():
            told = "lists of one row differ in length" if want is None else f"a list has not {want} values"
            return dict.fromkeys(parents[wrong].tolist(), told)
        parents = np.repeat(parents, lengths)
        column = cast("pa.ListArray[Any]", column).flatten()
    flat, bad = leaves(column, tensor, allow_missing=allow_missing)
    if bad:
        return {int(parents[at]): why for at, why in bad.items()}
    if not len(shapes):
        return flat.reshape(0, *(want or 0 for want in tensor.shape))
    if (shapes == shapes[0]).all():
        return flat.reshape(len(shapes), *shapes[0].tolist())
    ends = np.cumsum(shapes.prod(axis=1)).tolist()
    starts = [0, *ends[:-1]]
    return [flat[a:b].reshape(s) for a, b, s in zip(starts, ends, shapes.tolist(), strict=True)]


def to_arrow(values: Column, tensor: TensorSpec) -> pa.Array[Any]:
    """Outputs of N rows as one Arrow column of `arrow_type`: single values, lists of fixed size, or nested lists.

    Raises:
        ModelError: they have not the shape that the model declares.
    """
    wanted = arrow_type(tensor)
    rows = values if isinstance(values, list) else [values[0]] if len(values) else []
    for shape in {value.shape for value in rows if not isinstance(value, str)}:
        _check_shape(shape, tensor)
    if isinstance(values, list):
        return pa.array([value if isinstance(value, str) else value.tolist() for value in values], wanted)
    if values.dtype == object:
        return pa.array([str(v) for v in values] if values.ndim == 1 else values.tolist(), wanted)
    leaf = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 1:
        return _as(leaf, wanted)
    if values.ndim == 2 and tensor.shape[0]:
        return _as(pa.FixedSizeListArray.from_arrays(leaf, values.shape[1]), wanted)
    for axis in range(values.ndim - 1, 0, -1):
        count = math.prod(values.shape[:axis])
        leaf = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * values.shape[axis]), leaf)
    return _as(leaf, wanted)


def _as(array: pa.Array[Any], wanted: pa.DataType) -> pa.Array[Any]:
    return array if array.type == wanted else array.cast(wanted)


def _check_shape(shape: tuple[int, ...], tensor: TensorSpec) -> None:
    fits = len(shape) == len(tensor.shape) and all(
        want in (None, 0, have) for have, want in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        declared = ", ".join("any" if axis is None else str(axis) for axis in tensor.shape)
        raise ModelError(
            f"The model gives {tensor.name} as {list(shape)} a row and declares [{declared}]: export it with the shape"
            " that it gives."
        )


_ARROW: dict[str, pa.DataType] = {
    "BOOL": pa.bool_(),
    "UINT8": pa.uint8(),
    "UINT16": pa.uint16(),
    "UINT32": pa.uint32(),
    "UINT64": pa.uint64(),
    "INT8": pa.int8(),
    "INT16": pa.int16(),
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "FP16": pa.float16(),
    "FP32": pa.float32(),
    "FP64": pa.float64(),
    "BYTES": pa.string(),
}


def arrow_type(tensor: TensorSpec) -> pa.DataType:
    """The type that `to_arrow` gives for a tensor."""
    kind = _ARROW[tensor.dtype]
    if len(tensor.shape) == 1 and tensor.shape[0]:
        return pa.list_(kind, tensor.shape[0])
    for _ in tensor.shape:
        kind = pa.list_(kind)
    return kind
