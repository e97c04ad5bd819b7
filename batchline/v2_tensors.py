"""Tensors of the Open Inference Protocol to rows, and outputs back to tensors; JSON and the binary extension."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from batchline import rows
from batchline.decoding import escape, from_decoding
from batchline.errors import BatchlineError, Fault, InvalidRequestError, MalformedError
from batchline.model import DTYPES, ModelSpec, TensorSpec
from batchline.rows import TEXT, RowBlock

Array = NDArray[Any]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class TensorIn(msgspec.Struct, forbid_unknown_fields=True):
    """One input tensor; its values are in `data`, or in the bytes after the JSON."""

    name: str
    shape: list[Size]
    datatype: str
    parameters: dict[str, object] = {}
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class OutputIn(msgspec.Struct, forbid_unknown_fields=True):
    """One wanted output."""

    name: str
    parameters: dict[str, object] = {}


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of an inference request."""

    inputs: list[TensorIn]
    id: str | None = None
    parameters: dict[str, object] = {}
    outputs: list[OutputIn] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output to answer with."""

    tensor: TensorSpec
    binary: bool


_decoder = msgspec.json.Decoder(InferBody)


def split(raw: bytes, header_length: bytes | None) -> tuple[InferBody, memoryview]:
    """Take a request body apart: its JSON, and the bytes of its binary tensors.

    Raises:
        MalformedError, InvalidRequestError: it is none.
    """
    size = len(raw)
    if header_length is not None:
        if not header_length.isdigit() or len(header_length) > 12 or int(header_length) > len(raw):
            raise MalformedError("Inference-Header-Content-Length must be the length of the JSON part of the body.")
        size = int(header_length)
    view = memoryview(raw)
    try:
        return _decoder.decode(view[:size]), view[size:]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise from_decoding(e) from None


def wanted_outputs(body: InferBody, spec: ModelSpec) -> list[Wanted]:
    """Which outputs to answer with, and how.

    Raises:
        InvalidRequestError: an output or a parameter is unknown.
    """
    for name in body.parameters:
        if name != "binary_data_output":
            raise _fault(f"/parameters/{escape(name)}", "is no parameter known here")
    default = _flag(body.parameters, "binary_data_output", "/parameters")
    known = {tensor.name: tensor for tensor in spec.outputs}
    if not body.outputs:
        return [Wanted(tensor, default) for tensor in spec.outputs]
    wanted: list[Wanted] = []
    for i, output in enumerate(body.outputs):
        pointer = f"/outputs/{i}"
        if output.name not in known:
            raise _fault(f"{pointer}/name", f"is no output of {spec.name}; its outputs are {', '.join(known)}")
        if any(want.tensor.name == output.name for want in wanted):
            raise _fault(f"{pointer}/name", f"names {output.name} once more")
        for name in output.parameters:
            if name != "binary_data":
                raise _fault(f"{pointer}/parameters/{escape(name)}", "is no parameter known here")
        binary = _flag(output.parameters, "binary_data", f"{pointer}/parameters", default=default)
        wanted.append(Wanted(known[output.name], binary))
    return wanted


def read_inputs(body: InferBody, tail: memoryview, spec: ModelSpec, *, max_rows: int) -> RowBlock:
    """The rows of a request: every input is [B, *shape].

    Raises:
        InvalidRequestError: a tensor is missing, unknown, or not of the declared type and shape.
    """
    declared = {t.name: t for t in _inputs_of(spec)}
    columns: dict[str, Array] = {}
    count = 0
    for i, given in enumerate(body.inputs):
        pointer = f"/inputs/{i}"
        tensor = declared.get(given.name)
        if tensor is None or given.name in columns:
            raise _fault(f"{pointer}/name", f"must be each of {', '.join(declared)} once, not {given.name}")
        shape = _checked_shape(given, tensor, pointer, spec)
        count = count or shape[0]
        if shape[0] != count or not 1 <= count <= max_rows:
            raise _fault(f"{pointer}/shape", f"must begin with one number of rows for all inputs, 1 to {max_rows}")
        array, tail = _read_tensor(given, tensor, shape, tail, f"{pointer}/data", missing=spec.policy.allow_missing)
        columns[given.name] = array
    if len(tail):
        raise _fault("/inputs", f"{len(tail)} bytes are left after the binary tensors")
    if len(columns) < len(declared):
        raise _fault("/inputs", f"lacks {', '.join(declared.keys() - columns.keys())}")
    if spec.text is not None:
        return RowBlock(count, {TEXT: [str(text) for text in columns[TEXT].ravel()]})
    return RowBlock(count, dict(columns))


def _inputs_of(spec: ModelSpec) -> tuple[TensorSpec, ...]:
    return spec.inputs if spec.text is None else (TensorSpec(TEXT, "BYTES", ()),)


def _checked_shape(given: TensorIn, tensor: TensorSpec, pointer: str, spec: ModelSpec) -> list[int]:
    if given.datatype != tensor.dtype:
        raise _fault(f"{pointer}/datatype", f"must be {tensor.dtype}")
    shape = list(given.shape)
    if spec.text is not None and len(shape) == 2 and shape[1] == 1:
        shape = shape[:1]
    fits = len(shape) == len(tensor.shape) + 1 and all(
        want is None or want == have for want, have in zip(tensor.shape, shape[1:], strict=True)
    )
    if not fits:
        raise _fault(f"{pointer}/shape", f"must be {signature_shape(tensor)}, -1 standing for any size")
    for name in given.parameters:
        if name != "binary_data_size":
            raise _fault(f"{pointer}/parameters/{escape(name)}", "is no parameter known here")
    return shape


def signature_shape(tensor: TensorSpec) -> list[int]:
    """The shape as the protocol's metadata shows it: rows first, -1 for a free axis."""
    return [-1, *(-1 if size is None else size for size in tensor.shape)]


def _read_tensor(
    given: TensorIn, tensor: TensorSpec, shape: list[int], tail: memoryview, pointer: str, *, missing: bool
) -> tuple[Array, memoryview]:
    size = given.parameters.get("binary_data_size")
    try:
        with np.errstate(over="ignore"):  # what overflows is found below
            if size is None:
                array = _from_json(given.data, tensor, shape, pointer, missing=missing)
            elif memoryview(given.data).nbytes or not isinstance(size, int) or isinstance(size, bool):
                raise _fault(pointer, "must be given either here or as binary_data_size bytes")
            elif not 0 <= size <= len(tail):
                raise _fault(pointer, f"binary_data_size is {size}, and {len(tail)} bytes are left")
            else:
                array = _from_binary(tail[:size], tensor, shape, pointer)
                tail = tail[size:]
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError) as e:
        raise _fault(pointer, f"does not fit {tensor.dtype}: {e}") from None
    if tensor.is_float and not np.isfinite(array).all() and not (missing and not np.isinf(array).any()):
        raise _fault(pointer, f"must be finite numbers of {tensor.dtype}")
    return array, tail


def _from_json(data: msgspec.Raw, tensor: TensorSpec, shape: list[int], pointer: str, *, missing: bool) -> Array:
    if not memoryview(data).nbytes:
        raise _fault(pointer, "is missing")
    values = msgspec.json.decode(data)
    if not isinstance(values, list):
        raise _fault(pointer, "must be an array")
    items = cast("list[Any]", values)
    flat = list(_flatten(items, shape)) if items and isinstance(items[0], list) else items
    if len(flat) != math.prod(shape):
        raise _fault(pointer, f"has {len(flat)} values where the shape has {math.prod(shape)}")
    leaf: Any = {"BOOL": bool, "BYTES": str}.get(tensor.dtype, int)
    if tensor.is_float:
        leaf = float | None if missing else float
    return np.array(msgspec.convert(flat, list[leaf]), dtype=DTYPES[tensor.dtype]).reshape(shape)


def _flatten(items: Any, shape: Sequence[int]) -> Iterator[Any]:
    if not isinstance(items, list) or len(cast("list[Any]", items)) != shape[0]:
        raise ValueError("the nesting is not that of the shape")
    if len(shape) == 1:
        yield from cast("list[Any]", items)
        return
    for item in cast("list[Any]", items):
        yield from _flatten(item, shape[1:])


def _from_binary(data: memoryview, tensor: TensorSpec, shape: list[int], pointer: str) -> Array:
    count = math.prod(shape)
    if tensor.dtype == "BYTES":
        texts = list(itertools.islice(_texts(data), count + 1))
        if len(texts) != count:
            have = "more" if len(texts) > count else str(len(texts))
            raise _fault(pointer, f"has {have} values where the shape has {count}")
        return np.array(texts, dtype=object).reshape(shape)
    dtype = np.dtype(DTYPES[tensor.dtype]).newbyteorder("<")
    if len(data) != count * dtype.itemsize:
        raise _fault(pointer, f"has {len(data)} bytes where the shape has {count * dtype.itemsize}")
    if tensor.dtype == "BOOL":
        return (np.frombuffer(data, dtype="uint8") != 0).reshape(shape)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _texts(data: memoryview) -> Iterator[str]:
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError("it ends within a length")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise ValueError("it ends within a value")
        yield bytes(data[at : at + size]).decode()
        at += size


def write_outputs(outputs: str, wanted: Sequence[Wanted]) -> tuple[list[dict[str, object]], bytes]:
    """Rebuild tensors from the rows of a finished job.

    Args:
        outputs: JSON text, one object `{output: value}` a row.
        wanted: which tensors, in which form.

    Returns:
        The protocol's `outputs`, and the bytes of those wanted in binary, back to back.

    Raises:
        InvalidRequestError: the rows' outputs differ in shape, so that no tensor holds them.
    """
    values: list[dict[str, Any]] = msgspec.json.decode(outputs)
    described: list[dict[str, object]] = []
    parts: list[bytes] = []
    for want in wanted:
        name = want.tensor.name
        if any(name not in row for row in values):
            raise BatchlineError(f"The worker sent no output {name}.")
        column: list[Any] = [row[name] for row in values]
        try:
            array = np.array(column, dtype=DTYPES[want.tensor.dtype])
        except ValueError:
            raise InvalidRequestError(
                f"The rows' outputs {name} differ in shape; submit them apart, or read them from /v1/jobs."
            ) from None
        entry: dict[str, object] = {"name": name, "datatype": want.tensor.dtype, "shape": list(array.shape)}
        if want.binary:
            part = _to_binary(array)
            entry["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            entry["data"] = list(_leaves(column))
        described.append(entry)
    return described, b"".join(parts)


def _to_binary(array: Array) -> bytes:
    if array.dtype == object:
        texts = (str(value).encode() for value in array.ravel())
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _leaves(item)
    else:
        yield value


def pack(block: RowBlock) -> tuple[int, bytes]:
    """The count of rows and their packed bytes."""
    return block.count, rows.pack(block)


def _flag(parameters: dict[str, object], name: str, pointer: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _fault(f"{pointer}/{name}", "must be true or false")
    return value


def _fault(pointer: str, detail: str) -> InvalidRequestError:
    return InvalidRequestError("The request does not fit the model.", faults=(Fault(pointer, detail),))
