"""Columns of PostgreSQL and columns of Arrow: which type is which, and the texts that COPY reads and writes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as pacsv
from psycopg2 import sql

from batchline.data.contract import EXACT_AS_TEXT, MAYBE_NUMBERS
from batchline.errors import SinkError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

pc: Any = pyarrow.compute  # its types know less than it does

_ARROW: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "text": pa.string(),
    "varchar": pa.string(),
    "bpchar": pa.string(),
    "uuid": pa.string(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
}
KEY_TYPES = frozenset({"int2", "int4", "int8", "numeric", *("text", "varchar", "bpchar", "uuid"),
                       "date", "timestamp", "timestamptz"})  # fmt: skip
_EXACT_DIGITS = 15
"""Decimal digits that a float64 holds."""
_DECIMAL_DIGITS = 38


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table as the catalogue has it."""

    name: str
    base: str
    """Name of its type in pg_type, domains resolved: `int4`, `_float8`."""
    shown: str
    """Its type as people write it: `character varying(20)`."""
    cast: str
    """Its type without length, as SQL text that the database wrote."""
    not_null: bool
    filled: bool
    """Has a default, is an identity or is generated."""
    computed: bool
    """Cannot be written to."""
    arrow: pa.DataType
    exact: bool = True
    """Whether Arrow's type holds every digit."""

    @property
    def as_text(self) -> bool:
        """Whether its type has no counterpart, so that it is read as text."""
        return pa.types.is_string(self.arrow) and self.base not in _ARROW

    def as_key(self) -> Column:
        """The column as a key: exact, whatever its type."""
        exact = self.base != "numeric" or not pa.types.is_floating(self.arrow)
        return self if exact else replace(self, arrow=pa.string())

    def read_as_text(self) -> Column:
        """The column as text."""
        return replace(self, arrow=pa.string())

    @property
    def field(self) -> pa.Field[Any]:
        """Name and type, with a mark where numbers lose digits as floats or are read as text."""
        if self.base != "numeric" or pa.types.is_list(self.arrow):
            return pa.field(self.name, self.arrow)
        mark = MAYBE_NUMBERS if pa.types.is_string(self.arrow) else None if self.exact else EXACT_AS_TEXT
        return pa.field(self.name, self.arrow, metadata=mark)

    def selected(self) -> sql.Composable:
        """The column in a SELECT whose values `decode` reads."""
        name = sql.Identifier(self.name)
        return sql.SQL("{}::text").format(name) if self.as_text else name


_CATALOGUE = """
SELECT a.attname, b.typname, e.typname, format_type(a.atttypid, a.atttypmod), format_type(b.oid, -1),
       CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END,
       a.attnotnull, a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a'
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type b ON b.oid = COALESCE(NULLIF(t.typbasetype, 0), t.oid)
LEFT JOIN pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""


def read_columns(cursor: Cursor, oid: int) -> list[Column]:
    """The columns of a table or view, in their order."""
    cursor.execute(_CATALOGUE, (oid,))
    return [
        Column(
            name,
            base,
            shown,
            cast_to,
            not_null,
            filled,
            computed,
            _arrow_of(base, element, modifier),
            exact=base != "numeric" or (modifier >= 4 and (modifier - 4) >> 16 <= _DECIMAL_DIGITS),
        )
        for name, base, element, shown, cast_to, modifier, not_null, filled, computed in cursor.fetchall()
    ]


def _arrow_of(base: str, element: str | None, modifier: int) -> pa.DataType:
    if base == "numeric":
        precision, scale = (modifier - 4) >> 16, (modifier - 4) & 0x7FF
        if modifier >= 4 and scale == 0 and precision <= 18:
            return pa.int64()
        exact = modifier >= 4 and _EXACT_DIGITS < precision <= 38 and scale <= precision
        return pa.decimal128(precision, scale) if exact else pa.float64()
    if element in ("bool", "int2", "int4", "int8", "float4", "float8", "numeric"):
        return pa.list_(_ARROW.get(element, pa.float64()))
    return _ARROW.get(base, pa.string())


def decode(rows: bytes, columns: Sequence[Column]) -> pa.RecordBatch:
    """Rows of COPY's CSV as Arrow.

    Raises:
        ValueError: a value has no counterpart in Arrow; the message names the column.
    """
    names = [c.name for c in columns]
    # Names of columns need not differ for the reader, which knows them by their numbers.
    numbers = [str(n) for n in range(len(names))]
    types = {n: pa.string() if pa.types.is_list(c.arrow) else c.arrow for n, c in zip(numbers, columns, strict=True)}
    try:
        table = pacsv.read_csv(
            cast("IO[bytes]", pa.BufferReader(rows)),
            pacsv.ReadOptions(use_threads=False, block_size=len(rows) + 1, column_names=numbers),
            pacsv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            pacsv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False,
                true_values=["t"], false_values=["f"],
            ),
        )  # fmt: skip
    except pa.ArrowInvalid as e:
        found = re.search(r"column #(\d+): (.*)", str(e), re.DOTALL)
        told = re.sub(r"Row #\d+: ", "", found[2]) if found else str(e)
        named = f"column {names[int(found[1])]!r}: {told}" if found else told
        raise ValueError(named.splitlines()[0]) from e
    batch = table.combine_chunks().to_batches()[0]
    arrays = [
        _lists(c, array) if pa.types.is_list(c.arrow) else array
        for c, array in zip(columns, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema_of(columns))


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema([c.field for c in columns])


def _lists(column: Column, texts: Any) -> pa.Array[Any]:
    """`{1,2}` -> [1, 2]; arrays of one dimension that count from 1."""
    inner = pc.utf8_slice_codeunits(texts, 1, -1)
    flat = pc.and_(pc.starts_with(texts, "{"), pc.invert(pc.match_substring(inner, "{")))
    if not pc.all(flat, min_count=0).as_py():
        raise ValueError(f"column {column.name!r}: an array of more than one dimension")
    parts = pc.split_pattern(pc.if_else(pc.equal(inner, ""), None, inner), ",")
    lengths = pc.fill_null(pc.list_value_length(parts), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    values = pc.list_flatten(parts)
    values = pc.if_else(pc.equal(values, "NULL"), None, values)
    element = cast("pa.ListType[Any]", column.arrow).value_type
    values = pc.equal(values, "t") if pa.types.is_boolean(element) else pc.cast(values, element)
    return pa.ListArray.from_arrays(offsets, values, mask=pc.is_null(texts))


_SQL: dict[pa.DataType, tuple[str, str]] = {
    pa.bool_(): ("boolean", "B"),
    pa.int8(): ("smallint", "I"),
    pa.uint8(): ("smallint", "I"),
    pa.int16(): ("smallint", "I"),
    pa.uint16(): ("integer", "I"),
    pa.int32(): ("integer", "I"),
    pa.uint32(): ("bigint", "I"),
    pa.int64(): ("bigint", "I"),
    pa.uint64(): ("numeric(20)", "I"),
    pa.float16(): ("real", "N"),
    pa.float32(): ("real", "N"),
    pa.float64(): ("double precision", "N"),
    pa.string(): ("text", "S"),
    pa.large_string(): ("text", "S"),
    pa.null(): ("text", "S"),
    pa.date32(): ("date", "D"),
    pa.date64(): ("date", "D"),
    pa.binary(): ("bytea", "Y"),
    pa.large_binary(): ("bytea", "Y"),
}
_TAKES = {
    "B": ("bool",),
    "I": ("int2", "int4", "int8", "numeric", "float4", "float8"),
    "N": ("float4", "float8", "numeric"),
    "D": ("date", "timestamp", "timestamptz"),
    "Y": ("bytea",),
}
"""Kind of the Arrow type -> types of a target's column that take it; texts of any kind a target takes as texts do."""


def sql_type(kind: pa.DataType, column: str) -> tuple[str, str]:
    """The type of a column that is made for an Arrow type, and its kind; `[]` behind a type is an array.

    Raises:
        SinkError: there is none.
    """
    if _is_list(kind):
        return sql_type(_element(kind), column)[0].removesuffix("[]") + "[]", "A"
    if pa.types.is_dictionary(kind):
        return sql_type(cast("Any", kind).value_type, column)
    if pa.types.is_decimal(kind):
        decimal = cast("pa.Decimal128Type[Any, Any]", kind)
        return f"numeric({decimal.precision},{decimal.scale})", "N"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp", "D"
    if pa.types.is_fixed_size_binary(kind):
        return "bytea", "Y"
    if kind in _SQL:
        return _SQL[kind]
    raise SinkError(f"The column {column!r} is {kind}, for which SQL tables have no type.")


def takes(column: Column, kind: pa.DataType) -> bool:
    """Whether a target's column takes values of an Arrow type; one of which nothing is known goes anywhere."""
    if pa.types.is_null(kind):
        return True
    _, family = sql_type(kind, column.name)
    if family == "A":
        return column.base.startswith("_")
    if column.base in ("text", "varchar", "bpchar"):
        return True
    return family not in _TAKES or column.base in _TAKES[family]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _element(kind: pa.DataType) -> pa.DataType:
    return cast("pa.ListType[Any]", kind).value_type


_WRITE = pacsv.WriteOptions(include_header=False)


def encode(rows: pa.RecordBatch) -> bytes:
    """Rows as CSV for COPY: nulls empty, texts in quotes, lists as array literals."""
    out = io.BytesIO()
    arrays: list[Any] = [_text(array) for array in rows.columns]
    pacsv.write_csv(pa.RecordBatch.from_arrays(arrays, names=rows.schema.names), out, _WRITE)
    return out.getvalue()


def _text(array: Any) -> Any:
    if pa.types.is_dictionary(array.type):
        return _text(array.dictionary_decode())
    if sql_type(array.type, "")[1] == "Y":
        return pa.array([None if value is None else f"\\x{value.hex()}" for value in array.to_pylist()], pa.string())
    if array.type == pa.float16():
        return array.cast(pa.float32())
    return _literals(array) if _is_list(array.type) else array


def _literals(array: Any) -> Any:
    """[1, null] -> `{1,NULL}`; lists of lists in the same way."""
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(_element(array.type)))
    values = _text(array.flatten())
    nested = _is_list(_element(array.type))
    if pa.types.is_string(values.type) and not nested:
        escaped = pc.replace_substring(pc.replace_substring(values, "\\", "\\\\"), '"', '\\"')
        values = pc.binary_join_element_wise('"', escaped, '"', "")
    values = pc.fill_null(values.cast(pa.string()), "NULL")
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, values, mask=array.is_null()), ",")
    return pc.binary_join_element_wise("{", joined, "}", "")
