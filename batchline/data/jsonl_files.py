"""JSONL: one JSON object a line; a bare list or string is a row of the one column `value`.

Blocks of lines are read by pyarrow at once. A block that it refuses, or counts otherwise, is read line by line, which
finds the rows at fault and leaves the others as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any, cast

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from batchline.data.column_arrays import UNLIKE
from batchline.data.contract import MAYBE_NUMBERS, Rows, marked
from batchline.data.places import OpenFile
from batchline.data.remembered import Remembered
from batchline.data.text_blocks import HEAD_BYTES, Block, behind, blocks, chunks, head
from batchline.data.text_blocks import spans as text_spans
from batchline.data.uris import is_gzip
from batchline.errors import SourceError

BARE = "value"
"""The column of lines that are no objects."""
_HEAD_ROWS = 2000
_MANY_DIGITS = re.compile(rb"[0-9]{19}")

Span = tuple[object, ...]


def schema(file: OpenFile) -> pa.Schema:
    """Columns by the first rows; a column is of the type of most of them. Without rows there are none."""
    return _looked(file)[0]


_known = Remembered[tuple[pa.Schema, bool]](1000)


def _looked(file: OpenFile) -> tuple[pa.Schema, bool]:
    """The columns, and whether the lines are bare (lists or single values instead of objects); remembered."""
    return _known.of(file, lambda: _look(file))


def _look(file: OpenFile) -> tuple[pa.Schema, bool]:
    text, start = head(file)
    whole = start + len(text) < HEAD_BYTES
    lines = _lines(text if whole or b"\n" not in text else text[: text.rindex(b"\n")])[:_HEAD_ROWS]
    columns: dict[str, list[Any]] = {}
    bare: bool | None = None
    for line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        bare = not isinstance(row, dict) if bare is None else bare
        if bare is isinstance(row, dict):
            continue
        named = _exact(line, cast("dict[str, Any]", row)) if isinstance(row, dict) else {BARE: row}
        for name, value in named.items():
            columns.setdefault(name, []).append(value)
    if lines and (not columns or _is_array(lines[0], columns)):
        whole = " It looks like one JSON array: write each of its rows on a line of its own, without commas between."
        told = whole if lines[0].lstrip().startswith(b"[") else ""
        raise SourceError(f"{file.uri}: not one of the first {len(lines)} lines is a JSON object.{told}")
    return pa.schema([_field(name, values) for name, values in columns.items()]), bool(bare)


def _exact(line: bytes, row: dict[str, Any]) -> dict[str, Any]:
    """The row with its whole numbers beyond 64 bits as they stand, which orjson makes floats."""
    if not _MANY_DIGITS.search(line):
        return row
    try:
        exact = json.loads(line)
    except (ValueError, RecursionError):  # thousands of digits
        return row
    return row | {name: value for name, value in exact.items() if _is_beyond(value)}


def _is_beyond(value: object) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _field(name: str, values: list[Any]) -> pa.Field[Any]:
    """Whole numbers, some beyond 64 bits, are text of their digits that numbers may be read from."""
    if any(_is_beyond(value) for value in values):
        if all(value is None or type(value) is int for value in values):
            return pa.field(name, pa.string(), metadata=MAYBE_NUMBERS)
        values = [float(value) if _is_beyond(value) else value for value in values]
    return pa.field(name, _type(values))


def _is_array(line: bytes, columns: dict[str, list[Any]]) -> bool:
    """Whether the first line holds all rows as one list of objects."""
    first = columns[BARE][0] if line.lstrip().startswith(b"[") and BARE in columns else None
    return isinstance(first, list) and any(isinstance(item, dict) for item in cast("list[object]", first))


def spans(file: OpenFile, slice_rows: int) -> Iterator[tuple[Span, int]]:
    """Byte ranges; the whole of a compressed file."""
    for low, high, rows in text_spans(file, None, slice_rows, quoted=False):
        yield (low, high), rows


def read(file: OpenFile, span: Span, rows: int, columns: Sequence[str] | None, batch_rows: int) -> Iterator[Rows]:
    """See `batchline.data.files_source.Reader.read`."""
    del rows  # counted by the caller
    found, bare = _looked(file)
    types = {field.name: field.type for field in found}
    wanted = list(types) if columns is None else list(columns)
    digits = {field.name for field in found if marked(field, MAYBE_NUMBERS)}.intersection(wanted)
    for block in raw_blocks(file, span):
        fast = None if bare or digits else _fast(block, wanted, types)
        got = Rows(fast) if fast is not None else _careful(block, wanted, types, bare=bare, digits=digits)
        yield from cut(got, batch_rows)


def raw_blocks(file: OpenFile, span: Span) -> Iterator[Block]:
    """The lines of a span as they stand."""
    low, high = cast("tuple[int, int]", tuple(span))
    text = chunks(file, low, high)
    return blocks(behind(text, low) if is_gzip(file.uri) else text, file.uri, quoted=False)


def lines_of(block: Block) -> list[bytes]:
    """The lines of a block that are not blank, without their newlines: as many as it has rows."""
    return _lines(block.data)


def cut(rows: Rows, batch_rows: int) -> Iterator[Rows]:
    """The same rows, at most so many at a time."""
    if rows.batch.num_rows <= batch_rows:
        yield rows
        return
    for low in range(0, rows.batch.num_rows, batch_rows):
        part = rows.batch.slice(low, batch_rows)
        yield Rows(part, {at - low: why for at, why in rows.faults.items() if low <= at < low + part.num_rows})


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table as one batch."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _lines(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line and line != b"\r"]


def _fast(block: Block, wanted: list[str], types: dict[str, pa.DataType]) -> pa.RecordBatch | None:
    if not _is_utf8(block.data):
        return None
    known = pa.schema([(name, types[name]) for name in wanted if name in types and not pa.types.is_null(types[name])])
    unexpected = "ignore" if len(known) == len(wanted) else "infer"
    try:
        table = pj.read_json(
            cast("IO[bytes]", pa.BufferReader(block.data)),
            read_options=pj.ReadOptions(use_threads=False, block_size=max(1 << 16, len(block.data) + 1)),
            parse_options=pj.ParseOptions(explicit_schema=known, unexpected_field_behavior=unexpected),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != block.rows:
        return None
    for name in wanted:
        if name not in table.schema.names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return one_batch(table.select(wanted))


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _careful(
    block: Block, wanted: list[str], types: dict[str, pa.DataType], *, bare: bool, digits: Collection[str]
) -> Rows:
    faults: dict[int, str] = {}
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    for at, line in enumerate(_lines(block.data)):
        row: dict[str, Any] = {}
        try:
            got = orjson.loads(line)
            if isinstance(got, dict) and not bare:
                row = cast("dict[str, Any]", got)
                row = {**row, **_digits(line, row, digits)} if digits else row
            elif bare and not isinstance(got, dict):
                row = {BARE: got}
            else:
                faults[at] = (
                    "the line is no JSON object" if not bare else "the line is an object, unlike the first ones"
                )
        except orjson.JSONDecodeError as e:
            faults[at] = (
                f"the line is no JSON: {e}" if _is_utf8(line) else "the line is not UTF-8; save the file as UTF-8"
            )
        for name, column in values.items():
            column.append(row.get(name))
    arrays = [column_of(name, values[name], types.get(name), faults) for name in wanted]
    fields = [
        pa.field(name, array.type, metadata=MAYBE_NUMBERS if name in digits else None)
        for name, array in zip(wanted, arrays, strict=True)
    ]
    return Rows(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), faults)


def _digits(line: bytes, row: dict[str, Any], names: Collection[str]) -> dict[str, str]:
    """The numbers of these columns as texts."""
    exact = _exact(line, row)
    return {name: str(exact[name]) for name in names if type(exact.get(name)) in (int, float)}


def column_of(name: str, values: list[Any], wanted: pa.DataType | None, faults: dict[int, str]) -> pa.Array[Any]:
    """Python's values as one column; whole numbers become floats if one is none, what does not fit becomes a fault."""
    usual = _array(values)
    if usual is not None and (wanted is None or usual.type == wanted or pa.types.is_null(usual.type)):
        return usual
    if wanted is None or pa.types.is_null(wanted):
        wanted = _type(values)
    if usual is not None and pa.types.is_integer(wanted) and pa.types.is_floating(usual.type):
        return usual
    if usual is not None and _may_become(usual.type, wanted) and (fits := _cast(usual, wanted)) is not None:
        return fits
    if pa.types.is_integer(wanted) and _has_fractions(values):
        wanted = pa.float64()
    kept: list[Any] = []
    for at, value in enumerate(values):
        one = None if value is None else _array([value])
        fits = None
        if one is not None and (one.type == wanted or _may_become(one.type, wanted)):
            fits = _cast(one, wanted)
        if fits is None and value is not None:
            faults.setdefault(at, f"column {name}: {_short(value)} is no {wanted}{UNLIKE}")
        kept.append(None if fits is None else fits[0].as_py())
    return pa.array(kept, wanted)


def _has_fractions(values: list[Any]) -> bool:
    """Whether some are floats, and no whole number would lose digits as one."""
    return any(type(v) is float for v in values) and all(abs(v) <= 2**53 for v in values if type(v) is int)


def _may_become(have: pa.DataType, want: pa.DataType) -> bool:
    """No text becomes a number, no truth value either, nor the other way round."""
    if pa.types.is_null(have):
        return True
    if pa.types.is_list(have) and pa.types.is_list(want):
        return _may_become(have.value_type, want.value_type)
    numbers = (pa.types.is_integer, pa.types.is_floating)
    return any(is_kind(have) for is_kind in numbers) and any(is_kind(want) for is_kind in numbers)


def _cast(array: pa.Array[Any], wanted: pa.DataType) -> pa.Array[Any] | None:
    try:
        return pc.cast(array, wanted, safe=not pa.types.is_floating(wanted))
    except pa.ArrowInvalid:
        return None


def _array(values: list[Any]) -> pa.Array[Any] | None:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    except OverflowError:
        return _unsigned(values)


def _unsigned(values: list[Any]) -> pa.Array[Any] | None:
    try:
        return pa.array(values, pa.uint64())
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None


def _type(values: list[Any]) -> pa.DataType:
    """The type of all values, else that of most of them."""
    array = _array(values)
    if array is not None:
        return array.type
    counts: dict[pa.DataType, int] = {}
    for value in values:
        one = _array([value])
        if one is not None and not pa.types.is_null(one.type):
            counts[one.type] = counts.get(one.type, 0) + 1
    if pa.int64() in counts and pa.float64() in counts:
        counts[pa.float64()] += counts.pop(pa.int64())
    return max(counts, key=lambda kind: counts[kind]) if counts else pa.string()


def _short(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:37] + "…"
