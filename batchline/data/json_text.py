"""Record batches as JSON texts, a line a row: columns are written whole, by orjson, and joined row by row.

Non-finite floats are the strings NaN, Infinity and -Infinity; float32 has its shortest form.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_WORDS = {True: b'"Infinity"', False: b'"-Infinity"'}


def lines(batch: pa.RecordBatch) -> list[bytes]:
    """One JSON object a row, without newlines; columns that are null in a row are written as null."""
    if not batch.num_columns:
        return [b"{}"] * batch.num_rows
    names = [orjson.dumps(name).replace(b"%", b"%%") for name in batch.schema.names]
    template = b"{" + b",".join(name + b":%b" for name in names) + b"}"
    columns = [texts(column) for column in batch.columns]
    return list(map(template.__mod__, zip(*columns, strict=True)))


def texts(column: pa.Array[Any]) -> list[bytes]:
    """The values of a column as JSON."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return texts(cast("pa.DictionaryArray[Any, Any]", column).dictionary_decode())
    if not column.null_count:
        if pa.types.is_floating(kind):
            return _numbers(_wide(column.to_numpy(zero_copy_only=False)))
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return _split(column.to_numpy(zero_copy_only=False))
        if pa.types.is_fixed_size_list(kind) and not (leaf := _leaf(column)).null_count:
            size = cast("pa.FixedSizeListType[Any]", kind).list_size
            if size and (pa.types.is_floating(leaf.type) or pa.types.is_integer(leaf.type)):
                return _rows(_wide(leaf.to_numpy(zero_copy_only=False)).reshape(-1, size))
    return [orjson.dumps(_plain(value), default=_told) for value in column.to_pylist()]


def _leaf(column: pa.Array[Any]) -> pa.Array[Any]:
    return cast("pa.FixedSizeListArray[Any]", column).flatten()


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _split(values: NDArray[Any]) -> list[bytes]:
    if not len(values):
        return []
    plain: object = values.tolist() if values.dtype == bool else np.ascontiguousarray(values)
    return orjson.dumps(plain, option=_NUMPY)[1:-1].split(b",")


def _numbers(values: NDArray[Any]) -> list[bytes]:
    written = _split(values)
    for at in np.flatnonzero(~np.isfinite(values)).tolist():
        written[at] = b'"NaN"' if np.isnan(values[at]) else _WORDS[bool(values[at] > 0)]
    return written


def _rows(values: NDArray[Any]) -> list[bytes]:
    """[N, n] as N lists."""
    if not len(values):
        return []
    written = orjson.dumps(np.ascontiguousarray(values), option=_NUMPY)[2:-2].split(b"],[")
    written = list(map(b"[%b]".__mod__, written))
    if values.dtype.kind == "f" and not (finite := np.isfinite(values).all(axis=1)).all():
        for at in np.flatnonzero(~finite).tolist():
            written[at] = b"[" + b",".join(_numbers(values[at])) + b"]"
    return written


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
