"""Record batches as JSON texts, a line a row: made by Arrow's kernels, so that no row becomes a Python object.

The kernels let other threads run, which online work beside a batch lives on. Non-finite floats are the strings NaN,
Infinity and -Infinity; float32 has its shortest form. What kernels cannot write, orjson writes value by value.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

Texts: TypeAlias = "pa.Array[Any]"
"""N texts as an Arrow array of type large_string."""

_TEXT = pa.large_string()
_TRAILING = r"(?:(\.\d*[1-9])|\.)0+($|Z|[+-])"
_UNSAFE = r'["\\\x00-\x1f]'


def lines(batch: pa.RecordBatch) -> Texts:
    """One JSON object a row, each with a newline behind it; columns that are null in a row are written as null."""
    if not batch.num_columns:
        return pa.array(["{}\n"] * batch.num_rows, _TEXT)
    pieces: list[Any] = []
    for at, (name, column) in enumerate(zip(batch.schema.names, batch.columns, strict=True)):
        pieces += [_text(f"{',' if at else '{'}{orjson.dumps(name).decode()}:"), texts(column)]
    return _joined(*pieces, _text("}\n"))


def joined(some: Texts) -> bytes:
    """All texts in one, nothing between them."""
    if not len(some):
        return b""
    _, starts, data = some.buffers()
    if starts is None or data is None:
        return b""
    ends = np.frombuffer(memoryview(cast("Any", starts)), np.int64)[some.offset : some.offset + len(some) + 1]
    return data.slice(int(ends[0]), int(ends[-1] - ends[0])).to_pybytes()


def texts(column: pa.Array[Any]) -> Texts:
    """The values of a column as JSON."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return texts(cast("pa.DictionaryArray[Any, Any]", column).dictionary_decode())
    if not column.null_count:
        if _is_number(kind):
            return _numbers(column)
        if pa.types.is_boolean(kind):
            return column.cast(_TEXT)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            plain = column.cast(_TEXT)
            if not pc.any(pc.match_substring_regex(plain, _UNSAFE)).as_py():
                return _joined(_text('"'), plain, _text('"'))
        if pa.types.is_fixed_size_list(kind):
            leaf = cast("pa.FixedSizeListArray[Any]", column).flatten()
            if _is_number(leaf.type) and not leaf.null_count:
                return _lists(leaf, cast("pa.FixedSizeListType[Any]", kind).list_size, len(column))
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_date(kind):
        return _times(column)
    if pa.types.is_duration(kind):
        return _durations(column)
    return pa.array([orjson.dumps(_plain(value), default=_told).decode() for value in column.to_pylist()], _TEXT)


def _text(value: str) -> Any:
    return pa.scalar(value, _TEXT)


def _joined(*pieces: Any) -> Texts:
    return pc.binary_join_element_wise(*pieces, _text(""))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _numbers(column: pa.Array[Any]) -> Texts:
    if not pa.types.is_floating(column.type):
        return column.cast(_TEXT)
    wide = column.cast(pa.float32()) if pa.types.is_float16(column.type) else column
    written = wide.cast(_TEXT)
    values = wide.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        whole = bool((values == np.trunc(values)).any())
    if whole:  # Arrow writes 1.0 as 1
        marked = pc.match_substring_regex(written, "[.en]")
        written = pc.if_else(marked, written, _joined(written, _text(".0")))
    if not np.isfinite(values).all():
        for value, word in ((math.inf, '"Infinity"'), (-math.inf, '"-Infinity"')):
            written = pc.if_else(pc.equal(wide, pa.scalar(value, wide.type)), _text(word), written)
        written = pc.if_else(pc.is_nan(wide), _text('"NaN"'), written)
    return written


def _times(column: pa.Array[Any]) -> Texts:
    """RFC 3339, as exact as they are; Python's own times end with the year 9999 and at microseconds."""
    written = pc.replace_substring(column.cast(_TEXT), " ", "T", max_replacements=1)
    written = pc.replace_substring_regex(written, _TRAILING, r"\1\2")
    if _has_zone(column.type):
        written = pc.replace_substring_regex(pc.replace_substring(written, "Z", "+0000"), r"(\d\d)$", r":\1")
    return _joined(_text('"'), written, _text('"')).fill_null(_text("null"))


def _has_zone(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) and kind.tz is not None


_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _durations(column: pa.Array[Any]) -> Texts:
    """Seconds, as numbers."""
    unit = cast("pa.DurationType[Any]", column.type).unit
    return texts(pc.divide(column.cast(pa.int64()).cast(pa.float64(), safe=False), float(_UNITS[unit])))


def _lists(leaf: pa.Array[Any], size: int, count: int) -> Texts:
    """`count` lists of `size` numbers each."""
    starts = cast("Any", pa.array(np.arange(count + 1, dtype=np.int64) * size))
    rows = pa.LargeListArray.from_arrays(starts, _numbers(leaf))
    return _joined(_text("["), pc.binary_join(rows, _text(",")), _text("]"))


def _plain(value: Any) -> Any:
    """Without numbers that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in cast("dict[Any, Any]", value).items()}
    return value


def _told(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
