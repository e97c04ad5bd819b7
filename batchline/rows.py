"""The rows of a job as arrays: read from JSON against a model's spec, packed into bytes for the store, and back.

Packed form (msgpack): `[count, {tensor: [dtype, shapes, data]}]`, where `data` is little-endian, row-major, and
`shapes` is one shape (all rows alike: [count, *shape] in one block) or a list of one shape a row (back to back).
Text rows are `{"text": ["TEXT", [], [strings]]}`.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from batchline.decoding import escape
from batchline.errors import Fault, InvalidRequestError, MalformedError
from batchline.model import DTYPES, ModelSpec, TensorSpec

Array = NDArray[Any]
Column = Array | list[Array] | list[str]
"""[count, *shape] when all rows have one shape; else a list of one array (or text) a row."""

TEXT = "text"
MAX_FAULTS = 100
"""Faults told at once; a body with more is told the first ones."""

_LARGE_BYTES = 1 << 20
"""Rows of larger inputs are counted before they are read: millions of empty ones would take seconds."""


@dataclass(frozen=True, slots=True)
class RowBlock:
    """The input rows of one job: `count` rows, a column for each tensor."""

    count: int
    columns: dict[str, Column]


def pack(block: RowBlock) -> bytes:
    """Rows as bytes; `unpack` is the inverse."""
    packed = {name: _pack_column(column) for name, column in block.columns.items()}
    return msgspec.msgpack.encode((block.count, packed))


def _pack_column(column: Column) -> tuple[str, object, object]:
    if isinstance(column, np.ndarray):
        if column.dtype == object:
            return "BYTES", column.shape[1:], [str(v) for v in column.ravel()]
        return column.dtype.name, column.shape[1:], np.ascontiguousarray(column).tobytes()
    if column and isinstance(column[0], str):
        return "TEXT", [], column
    arrays = cast("list[Array]", column)
    if arrays[0].dtype == object:
        return "BYTES", [list(a.shape) for a in arrays], [str(v) for a in arrays for v in a.ravel()]
    return arrays[0].dtype.name, [list(a.shape) for a in arrays], b"".join(a.tobytes() for a in arrays)


def unpack(data: bytes) -> RowBlock:
    """Bytes as rows; numeric columns are views on `data`, not copies."""
    count, packed = msgspec.msgpack.decode(data)
    return RowBlock(count, {name: _unpack_column(count, *entry) for name, entry in packed.items()})


def _unpack_column(count: int, dtype: str, shapes: list[Any], data: Any) -> Column:
    if dtype == "TEXT":
        return data
    flat: Array = np.array(data, dtype=object) if dtype == "BYTES" else np.frombuffer(data, dtype=dtype)
    if not shapes or not isinstance(shapes[0], list):
        return flat.reshape((count, *shapes))
    arrays: list[Array] = []
    at = 0
    for shape in cast("list[list[int]]", shapes):
        size = math.prod(shape)
        arrays.append(flat[at : at + size].reshape(shape))
        at += size
    return arrays


_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""Data types -> the letters of `struct`, which refuses what does not fit."""


class _Packer(NamedTuple):
    """Packs the rows of a tensor with one fixed axis without an array in between."""

    decoder: msgspec.json.Decoder[list[list[Any]]]
    row: struct.Struct


@functools.lru_cache(maxsize=1024)
def _packer(tensor: TensorSpec) -> _Packer | None:
    if tensor.dtype not in _CODES or len(tensor.shape) != 1 or tensor.shape[0] is None:
        return None
    row = struct.Struct(f"<{tensor.shape[0]}{_CODES[tensor.dtype]}")
    return _Packer(_list_decoder(tensor.dtype, 1, allow_missing=False), row)


def read(raw: bytes | memoryview, spec: ModelSpec, *, max_rows: int) -> tuple[int, bytes]:
    """Read the `inputs` of a request and pack them: their count, and what `pack(parse(...))` gives.

    Plain rows, one flat list each, take a short way: for a single one numpy takes longer than all else together.

    Raises:
        MalformedError, InvalidRequestError: as `parse` does.
    """
    plain = len(raw) <= _LARGE_BYTES and len(spec.inputs) == 1 and spec.text is None
    packer = _packer(spec.inputs[0]) if plain else None
    if packer is not None:
        try:
            rows = packer.decoder.decode(raw)
            _check_count(len(rows), max_rows)
            data = b"".join([packer.row.pack(*row) for row in rows])
        except (msgspec.DecodeError, ValueError, OverflowError, RecursionError, struct.error):
            pass  # odd or at fault: the long way tells
        else:
            tensor = spec.inputs[0]
            column = (DTYPES[tensor.dtype], tensor.shape, data)
            return len(rows), msgspec.msgpack.encode((len(rows), {tensor.name: column}))
    block = parse(raw, spec, max_rows=max_rows)
    return block.count, pack(block)


def parse(raw: bytes | memoryview, spec: ModelSpec, *, max_rows: int) -> RowBlock:
    """Read the `inputs` of a request against the model's spec.

    Args:
        raw: a JSON array of rows. A row is a nested list (models with one input), an object `{input: value}`, or a
            string (models with a text front). Where a row of an input is a list of one, the value alone does too.
        spec: what the model takes.
        max_rows: most rows of one job.

    Returns:
        The rows in the order given.

    Raises:
        MalformedError: not JSON.
        InvalidRequestError: with a fault for each bad row, pointers beginning with /inputs.
    """
    try:
        if len(raw) > _LARGE_BYTES:
            _check_count(len(msgspec.json.decode(raw, type=list[msgspec.Raw])), max_rows)
        with np.errstate(over="ignore"):  # what overflows is looked for and told
            block = _fast(raw, spec, max_rows)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
        block = None
    return _careful(raw, spec, max_rows) if block is None else block


@functools.lru_cache(maxsize=1024)
def _value_type(dtype: str, depth: int, *, allow_missing: bool) -> Any:
    leaf: Any = float if dtype.startswith("FP") else bool if dtype == "BOOL" else str if dtype == "BYTES" else int
    if allow_missing and leaf is float:
        leaf = float | None
    for _ in range(depth):
        leaf = list[leaf]
    return leaf


@functools.lru_cache(maxsize=1024)
def _list_decoder(dtype: str, depth: int, *, allow_missing: bool) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(list[_value_type(dtype, depth, allow_missing=allow_missing)])


@functools.lru_cache(maxsize=256)
def _object_decoder(inputs: tuple[TensorSpec, ...], *, allow_missing: bool) -> msgspec.json.Decoder[Any]:
    fields: list[Any] = []
    for i, tensor in enumerate(inputs):
        kind = _value_type(tensor.dtype, len(tensor.shape), allow_missing=allow_missing)
        if tensor.shape == (1,):
            kind |= _value_type(tensor.dtype, 0, allow_missing=allow_missing)
        fields.append((f"f{i}", kind))
    rename = {f"f{i}": t.name for i, t in enumerate(inputs)}
    row = msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True)
    return msgspec.json.Decoder(list[row])


_FIRST = re.compile(rb"\s*\[\s*(.)", re.DOTALL)


def _fast(raw: bytes | memoryview, spec: ModelSpec, max_rows: int) -> RowBlock | None:
    """The common case in few steps; None or an error sends the caller to `_careful`, which explains.

    Raises:
        InvalidRequestError: too many rows or none, told before any work is spent on them.
    """
    first = _FIRST.match(raw)
    kind = first.group(1) if first else b""
    missing = spec.policy.allow_missing
    if spec.text is not None:
        texts = msgspec.json.decode(raw, type=list[str])
        _check_count(len(texts), max_rows)
        return RowBlock(len(texts), {TEXT: texts})
    if kind == b"{":
        rows = _object_decoder(spec.inputs, allow_missing=missing).decode(raw)
        _check_count(len(rows), max_rows)
        columns = {t.name: _column([getattr(r, f"f{i}") for r in rows], t) for i, t in enumerate(spec.inputs)}
    else:
        if len(spec.inputs) != 1:
            return None
        tensor = spec.inputs[0]
        rows = _list_decoder(tensor.dtype, len(tensor.shape), allow_missing=missing).decode(raw)
        _check_count(len(rows), max_rows)
        columns = {tensor.name: _column(rows, tensor)}
    return RowBlock(len(rows), columns)


def _column(values: list[Any], tensor: TensorSpec) -> Column:
    """[N, *shape] or one array a row, checked; ValueError when a row does not fit."""
    dtype = DTYPES[tensor.dtype]
    if tensor.shape == (1,):
        values = [[value] if _is_bare(value, tensor) else value for value in values]
    if None not in tensor.shape:
        return _checked(np.array(values, dtype=dtype), tensor, 1, values)
    arrays = [_checked(np.array(v, dtype=dtype), tensor, 0, v) for v in values]
    return np.stack(arrays) if len({a.shape for a in arrays}) == 1 else arrays


def _checked(array: Array, tensor: TensorSpec, batch_axes: int, source: Any) -> Array:
    shape = array.shape[batch_axes:]
    fits = len(shape) == len(tensor.shape) and all(
        want is None or want == have for want, have in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(_mismatch(tensor, shape))
    if tensor.is_float and not np.isfinite(array).all():
        exact = np.array(source, dtype="float64")
        if (np.isinf(array) & ~np.isinf(exact)).any():
            raise ValueError(f"{tensor.name} is {tensor.dtype} and cannot hold a number this large")
    return array


def _mismatch(tensor: TensorSpec, shape: Sequence[int]) -> str:
    want = ", ".join("any" if d is None else str(d) for d in tensor.shape)
    return f"{tensor.name} has shape [{', '.join(map(str, shape))}]; the model takes [{want}] for each row"


def _careful(raw: bytes | memoryview, spec: ModelSpec, max_rows: int) -> RowBlock:
    """Read row by row and name every fault."""
    try:
        rows = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise MalformedError("The body is not JSON that can be read.", faults=(Fault("/inputs", str(e)),)) from None
    if not isinstance(rows, list):
        raise _invalid([Fault("/inputs", "must be an array of rows")])
    rows = cast("list[Any]", rows)
    _check_count(len(rows), max_rows)
    faults: list[Fault] = []
    parts: list[dict[str, Array | str]] = []
    for i, row in enumerate(rows):
        part = dict[str, Array | str]()
        for fault in _read_row(row, spec, f"/inputs/{i}", part):
            faults.append(fault)
            if len(faults) >= MAX_FAULTS:
                raise _invalid(faults)
        parts.append(part)
    if faults:
        raise _invalid(faults)
    return RowBlock(len(rows), {name: _join([part[name] for part in parts]) for name in parts[0]})


def _check_count(count: int, max_rows: int) -> None:
    if not 1 <= count <= max_rows:
        raise _invalid([Fault("/inputs", f"has {count} rows; a job takes 1 to {max_rows}")])


def _join(values: list[Any]) -> Column:
    if isinstance(values[0], str):
        return values
    return np.stack(values) if len({v.shape for v in values}) == 1 else values


def _invalid(faults: list[Fault]) -> InvalidRequestError:
    return InvalidRequestError("The rows do not fit the model.", faults=tuple(faults))


def _read_row(row: Any, spec: ModelSpec, pointer: str, into: dict[str, Array | str]) -> Iterator[Fault]:
    if spec.text is not None:
        if isinstance(row, str):
            into[TEXT] = row
        else:
            yield Fault(pointer, f"must be a string: {spec.name} takes text")
        return
    if isinstance(row, dict):
        named = cast("dict[str, Any]", row)
        known = {t.name for t in spec.inputs}
        for extra in named.keys() - known:
            yield Fault(
                f"{pointer}/{escape(extra)}", f"is no input of {spec.name}; its inputs are {', '.join(sorted(known))}"
            )
        for tensor in spec.inputs:
            if tensor.name not in named:
                yield Fault(pointer, f"lacks the input {tensor.name}")
            else:
                yield from _read_value(named[tensor.name], tensor, spec, f"{pointer}/{escape(tensor.name)}", into)
    elif len(spec.inputs) == 1:
        yield from _read_value(row, spec.inputs[0], spec, pointer, into)
    else:
        names = ", ".join(t.name for t in spec.inputs)
        yield Fault(pointer, f"must be an object with the inputs {names}: {spec.name} has more than one")


def _read_value(
    value: Any, tensor: TensorSpec, spec: ModelSpec, pointer: str, into: dict[str, Array | str]
) -> Iterator[Fault]:
    if _is_bare(value, tensor):
        faults, value = list(_leaf_faults(value, tensor, spec, pointer, 0)), [value]
    else:
        faults = list(_leaf_faults(value, tensor, spec, pointer, len(tensor.shape)))
    if not faults:
        try:
            into[tensor.name] = _checked(np.array(value, dtype=DTYPES[tensor.dtype]), tensor, 0, value)
        except (ValueError, OverflowError) as e:
            faults = [Fault(pointer, str(e) if tensor.name in str(e) else f"does not fit {tensor.dtype}: {e}")]
    yield from faults


def _is_bare(value: Any, tensor: TensorSpec) -> bool:
    """Whether it is the value itself where the model takes a list of one, as exporters make of a table's column."""
    return tensor.shape == (1,) and not isinstance(value, list)


def _leaf_faults(value: Any, tensor: TensorSpec, spec: ModelSpec, pointer: str, depth: int) -> Iterator[Fault]:
    if depth:
        if not isinstance(value, list):
            yield Fault(pointer, f"must be an array: {tensor.name} has {len(tensor.shape)} axes a row")
            return
        items = cast("list[Any]", value)
        want = tensor.shape[len(tensor.shape) - depth]
        if want is not None and len(items) != want:
            yield Fault(pointer, f"has {len(items)} values where {tensor.name} takes {want}")
            return
        for i, item in enumerate(items):
            yield from _leaf_faults(item, tensor, spec, f"{pointer}/{i}", depth - 1)
        return
    if not _fits(value, tensor, spec):
        yield Fault(pointer, f"must be {_KINDS.get(tensor.dtype, 'a whole number within the range of')} {tensor.dtype}")


_KINDS = {
    "FP16": "a number of",
    "FP32": "a number of",
    "FP64": "a number of",
    "BOOL": "true or false:",
    "BYTES": "a string:",
}


def _fits(value: Any, tensor: TensorSpec, spec: ModelSpec) -> bool:
    if tensor.is_float:
        if value is None:
            return spec.policy.allow_missing
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return abs(value) <= float(np.finfo(DTYPES[tensor.dtype]).max)
    if tensor.dtype == "BOOL":
        return isinstance(value, bool)
    if tensor.dtype == "BYTES":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    limits = np.iinfo(DTYPES[tensor.dtype])
    return int(limits.min) <= value <= int(limits.max)
