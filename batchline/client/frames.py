"""Tables of pandas, polars, pyarrow or whatever else speaks Arrow as the bytes of a Parquet file.

Values go as they are. What has no plain form is refused with its column: nothing is guessed of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection
from typing import Any, cast

from batchline.client.batch_results import arrow
from batchline.errors import InvalidRequestError

_FOREIGN = (TypeError, ValueError, NotImplementedError, OverflowError, AttributeError, KeyError)
"""What the makers of tables raise of what they cannot tell."""
_TODO = "Give it one plain type, such as numbers, texts or times, or leave it out."


def is_table(data: object) -> bool:
    """Whether it has columns that Arrow can read."""
    return hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__") or _is_pandas(data)


def is_column(data: object) -> bool:
    """Whether it is one column, without a name that a model could know."""
    one = getattr(data, "type", None) is not None and not hasattr(data, "schema") and _module(data) == "pyarrow"
    return (hasattr(data, "to_frame") and not hasattr(data, "columns")) or (one and not hasattr(data, "field"))


def is_array(data: object) -> bool:
    """Whether it is an array of numpy of N rows that `columns_of` takes."""
    if _module(data) != "numpy" or hasattr(data, "mask") or not getattr(data, "size", 0) or not hasattr(data, "dtype"):
        return False
    array: Any = data
    return array.ndim > 0 and (array.dtype.names is not None or array.dtype.kind in "biuf")


def tells_in_json(array: Any) -> bool:
    """Whether JSON has all of its numbers: it knows no NaN, no infinity, and no names of a record's fields."""
    return array.dtype.names is None and (array.dtype.kind != "f" or bool((abs(array) < math.inf).all()))


def columns_of(array: Any) -> Any:
    """N rows of numbers as a table of one column, [N, *shape] as nested lists; of records a column a field.

    Raises:
        InvalidRequestError: a number of a kind that Arrow does not have.
    """
    pa = arrow()
    names = array.dtype.names
    try:
        return pa.table({name: _nested(array[name]) for name in names} if names else {"value": _nested(array)})
    except _FOREIGN as e:
        raise InvalidRequestError(
            f"The array is of {array.dtype}: {_said(e)}. Make another kind of numbers of it."
        ) from e


def _nested(array: Any) -> Any:
    pa = arrow()
    leaf = pa.array(array.ravel().astype(array.dtype.newbyteorder("="), copy=False))
    for count in reversed(array.shape[1:]):
        leaf = pa.FixedSizeListArray.from_arrays(leaf, count)
    return leaf


def parquet(data: Any, named: Collection[str]) -> bytes:
    """The table as Parquet.

    Args:
        data: see `is_table`.
        named: columns that somebody will ask for; levels of the index of pandas are sent if they are among them.

    Raises:
        InvalidRequestError: a column cannot be told; names it, its type and what to do.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 - the SDK loads pyarrow for whoever hands it a table

    out = io.BytesIO()
    table = _plain(_table(data, named))
    try:
        # Without the metadata, which may name anything of the program that made the table.
        pq.write_table(table.replace_schema_metadata(None), out, compression="zstd")
    except _FOREIGN as e:
        raise _unwritable(table, e) from e
    return out.getvalue()


def _is_pandas(data: object) -> bool:
    return _module(data) == "pandas" and hasattr(data, "columns")


def _module(data: object) -> str:
    return type(data).__module__.partition(".")[0]


def _table(data: Any, named: Collection[str]) -> Any:
    pa = arrow()
    if _module(data) != "pyarrow" and hasattr(data, "columns"):
        _check_names([str(name) for name in data.columns])
    try:
        table = (
            _from_pandas(data, named) if _is_pandas(data) else data if isinstance(data, pa.Table) else _foreign(data)
        )
    except _FOREIGN as e:
        raise _unreadable(data, e) from e
    _check_names(table.column_names)
    return table


def _check_names(names: list[str]) -> None:
    if not names:
        raise InvalidRequestError("The table has no columns.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InvalidRequestError(f"Two columns are named {twice[0]!r}: rename one.")


def _from_pandas(data: Any, named: Collection[str]) -> Any:
    levels = [level for level in data.index.names if level in named and level not in data.columns]
    if levels:
        data = data.reset_index(level=levels)
    odd = {name: str(kind) for name, kind in data.dtypes.items() if str(kind).startswith(("Sparse[", "period["))}
    if odd:
        data = data.copy(deep=False)
    for name, kind in odd.items():  # Arrow would take a period for a plain number
        data[name] = data[name].sparse.to_dense() if kind.startswith("Sparse[") else data[name].astype("string")
    return arrow().Table.from_pandas(data, preserve_index=False)


def _foreign(data: Any) -> Any:
    schema = data.schema if _module(data) == "polars" else {}
    if "Object" in map(str, schema.values()):  # polars would send the places of the objects in its memory
        raise TypeError("they are objects of Python")
    return arrow().table(data)


def _unreadable(data: Any, e: Exception) -> InvalidRequestError:
    """The first column that cannot be read by itself."""
    for name in () if _module(data) == "pyarrow" else getattr(data, "columns", ()):
        try:
            one = data[[name]]
            _ = _from_pandas(one, ()) if _is_pandas(data) else _foreign(one)
        except _FOREIGN as why:
            return InvalidRequestError(f"The column {name!r} is {data[name].dtype}: {_said(why)}. {_TODO}")
    return InvalidRequestError(f"The table cannot be read: {_said(e)}.")


def _unwritable(table: Any, e: Exception) -> InvalidRequestError:
    """The first column that Parquet does not take."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - see above

    for name in table.column_names:
        try:
            pq.write_table(table.select([name]), io.BytesIO())
        except _FOREIGN:
            return InvalidRequestError(f"The column {name!r} is {table.schema.field(name).type}. {_TODO}")
    return InvalidRequestError(f"The table cannot be sent: {_said(e)}.")


def _said(e: Exception) -> str:
    return str(e.args[0] if e.args else e).rstrip(".")


def _plain(table: Any) -> Any:
    """The table without what Parquet's writer does not know: run lengths, and dictionaries of views, as polars has."""
    import pyarrow.compute as pc  # noqa: PLC0415 - see above

    pa = arrow()
    for at, field in enumerate(table.schema):
        kind, column = field.type, table.column(at)
        if pa.types.is_run_end_encoded(kind):
            column = cast("Any", pc).run_end_decode(column)
        elif pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
            chunks = [
                pa.DictionaryArray.from_arrays(chunk.indices, pa.array(chunk.dictionary.to_pylist(), pa.string()))
                for chunk in column.chunks
            ]
            column = pa.chunked_array(chunks, pa.dictionary(kind.index_type, pa.string()))
        else:
            continue
        table = table.set_column(at, field.name, column)
    return table
