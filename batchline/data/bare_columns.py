"""Columns of an uncommon make as the plain lists and values that they stand for: tensors, list views, extensions."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def bare_type(kind: pa.DataType) -> pa.DataType:
    """The type that `bare` gives."""
    if isinstance(kind, pa.FixedShapeTensorType):
        found: pa.DataType = kind.value_type
        for count in reversed(_axes(kind)[0]):
            found = pa.list_(found, count)
        return found
    if isinstance(kind, pa.BaseExtensionType):
        return bare_type(kind.storage_type)
    if pa.types.is_list_view(kind):
        return pa.list_(kind.value_type)
    if pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_type)
    return kind


def bare(column: pa.Array[Any]) -> pa.Array[Any]:
    """N values as what they are stored as; tensors as lists as deep as they have axes, in the order they are read."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        return _nested(cast("pa.ExtensionArray[Any]", column).storage, column.type)
    if isinstance(column, pa.ExtensionArray):
        return bare(column.storage)
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        return _listed(column)
    return column


def viewless_type(kind: pa.DataType) -> pa.DataType:
    """The type that `viewless` gives."""
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.string() if pa.types.is_string_view(kind) else pa.binary()
    if pa.types.is_dictionary(kind):
        found = cast("pa.DictionaryType[Any, Any]", kind)
        values = cast("Any", viewless_type(found.value_type))
        return pa.dictionary(found.index_type, values, ordered=cast("Any", found.ordered))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(viewless_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(viewless_type(cast("pa.ListType[Any]", kind).value_type))
    return kind


def viewless(column: pa.Array[Any]) -> pa.Array[Any]:
    """The values without views of texts and bytes at any depth, of which Arrow casts and takes none."""
    wanted = viewless_type(column.type)
    return column if wanted == column.type else pa.array(column.to_pylist(), wanted)


def some(batch: pa.RecordBatch, at: NDArray[np.int64]) -> pa.RecordBatch:
    """Rows of a batch by their offsets."""
    taken = [viewless(column).take(pa.array(at, pa.int64())) for column in batch.columns]
    fields = [field.with_type(column.type) for field, column in zip(batch.schema, taken, strict=True)]
    return pa.RecordBatch.from_arrays(taken, schema=pa.schema(fields))


def _listed(column: pa.Array[Any]) -> pa.Array[Any]:
    """Views of lists as lists, by hand: Arrow's own cast loses values of views that are not in order."""
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    counted = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(np.where(nulls, 0, counted)))).astype(np.int64)
    values: pa.Array[Any] = cast("Any", column).flatten()
    mask = pa.array(nulls) if column.null_count else None
    if pa.types.is_large_list_view(column.type):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values, mask=mask)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=mask)


def _axes(kind: pa.FixedShapeTensorType[Any]) -> tuple[list[int], list[int]]:
    """The axes as they are read, and of which axis of the storage each is."""
    stored = list(kind.shape)
    order = list(kind.permutation or range(len(stored)))
    return [stored[at] for at in order], order


def _nested(storage: pa.Array[Any], kind: pa.FixedShapeTensorType[Any]) -> pa.Array[Any]:
    shape, order = _axes(kind)
    size = math.prod(shape)
    flat = cast("pa.FixedSizeListArray[Any, Any]", storage)
    values: pa.Array[Any] = flat.values.slice(flat.offset * size, len(flat) * size)
    if order != sorted(order):
        places = np.arange(size).reshape(list(kind.shape)).transpose(order).reshape(-1)
        values = values.take(pa.array((np.arange(len(flat))[:, None] * size + places).reshape(-1), pa.int64()))
    for count in reversed(shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, count)
    return pa.FixedSizeListArray.from_arrays(values, shape[0], mask=flat.is_null() if flat.null_count else None)
