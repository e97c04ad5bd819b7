"""CSV as RFC 4180 has it: a line of names, commas, double quotes, newlines within quotes; empty values are null.

Blocks of rows are read by pyarrow with the types that the first rows have. A block with a value that does not fit is
read again as text, which finds the rows at fault; a row with too few or too many values is a fault of that row.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from batchline.data.column_arrays import INEXACT, NULLS, NUMBER, cast_each, numbers_of
from batchline.data.contract import MAYBE_NUMBERS, UNTYPED, Rows
from batchline.data.jsonl_files import cut, one_batch
from batchline.data.places import OpenFile
from batchline.data.remembered import Remembered
from batchline.data.text_blocks import HEAD_BYTES, Block, RowScanner, behind, blocks, chunks, head
from batchline.data.text_blocks import spans as text_spans
from batchline.data.uris import is_gzip
from batchline.errors import SourceError
from batchline.model import TensorSpec

_LOOK_ROWS = 2000
_LOOK_AGAIN = re.compile(rb"(?<![.0-9])(?:0[0-9]|[0-9]{16})")
_DOUBLE = TensorSpec("", "FP64", ())
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

Span = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Header:
    names: list[str]
    end: int
    """Byte offset of the first row."""
    types: dict[str, pa.DataType]
    """By the first rows; a column that is empty there has none."""
    maybe_numbers: frozenset[str]
    """Columns of text whose first rows are numbers at least as often as words."""


def schema(file: OpenFile) -> pa.Schema:
    """Columns by the header, types by the first rows."""
    header = _header(file)
    marks = {name: UNTYPED | MAYBE_NUMBERS if name in header.maybe_numbers else UNTYPED for name in header.names}
    return pa.schema([pa.field(n, header.types.get(n, pa.null()), metadata=marks[n]) for n in header.names])


def spans(file: OpenFile, slice_rows: int) -> Iterator[tuple[Span, int]]:
    """Byte ranges; the whole of a compressed file."""
    if not file.size:
        return
    for low, high, rows in text_spans(file, _header(file).end, slice_rows, quoted=True):
        yield (low, high), rows


def read(
    file: OpenFile,
    span: Span,
    rows: int,
    columns: Sequence[str] | None,
    batch_rows: int,
    *,
    texts: Collection[str] = (),
) -> Iterator[Rows]:
    """See `batchline.data.files_source.Reader.read`."""
    del rows  # counted by the caller
    header = _header(file)
    wanted = header.names if columns is None else list(columns)
    for name in wanted:
        if name not in header.names:
            raise SourceError(f"{file.uri} has no column {name!r}: its header names {', '.join(header.names)[:200]}.")
    header = replace(header, types=header.types | dict.fromkeys(texts, pa.string()))
    low, high = cast("tuple[int, int]", tuple(span))
    text = chunks(file, low, high)
    if is_gzip(file.uri):
        text = behind(text, low)
    for block in blocks(text, file.uri, quoted=True):
        yield from cut(_read_block(block, file.uri, header, wanted), batch_rows)


_headers = Remembered[_Header](1000)


def _header(file: OpenFile) -> _Header:
    """What the first rows tell, looked at unless it is remembered.

    Raises:
        SourceError: there is no line of names, or one name stands twice.
    """
    return _headers.of(file, lambda: _looked(file))


def _looked(file: OpenFile) -> _Header:
    text, start = head(file)
    at_end = start + len(text) < HEAD_BYTES
    scanner = RowScanner(file.uri, quoted=True)
    ends = scanner.feed(text).tolist() if text else []
    if at_end and text and scanner.finish():
        ends.append(len(text))
    if not ends:
        raise SourceError(f"{file.uri} is empty: a CSV file begins with a line of column names.")
    names = _names(text[: ends[0]], file.uri)
    sample = Block(text[ends[0] : ends[-1]], len(ends) - 1)
    types: dict[str, pa.DataType] = {}
    numbers: list[str] = []
    if sample.rows:
        table, _ = _parse(sample, names, pacsv.ConvertOptions(null_values=NULLS))
        types = {field.name: _type(field.type) for field in table.schema if not pa.types.is_null(field.type)}
        for name, texts in _inexact(sample, names, types):
            types[name] = pa.string()
            table = table.set_column(names.index(name), name, texts)
        texts = [name for name, kind in types.items() if pa.types.is_string(kind)]
        numbers = [name for name in texts if _maybe_numbers(table.column(name).slice(0, _LOOK_ROWS))]
    return _Header(names, ends[0] + start, types, frozenset(numbers))


def _inexact(sample: Block, names: list[str], types: dict[str, pa.DataType]) -> Iterator[tuple[str, Any]]:
    """Columns that look like numbers and would be others as such, and their texts: `007`, or more digits than fit."""
    numbers = {name: kind for name, kind in types.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)}
    if not numbers or not _LOOK_AGAIN.search(sample.data):
        return
    texts = pacsv.ConvertOptions(column_types=dict.fromkeys(numbers, pa.string()), include_columns=list(numbers))
    table, _ = _parse(sample, names, texts)
    for name, kind in numbers.items():
        if pc.any(pc.match_substring_regex(table.column(name), INEXACT[pa.types.is_floating(kind)])).as_py():
            yield name, table.column(name)


def _type(found: pa.DataType) -> pa.DataType:
    """What pyarrow takes for bytes is text of another encoding; its rows become faults."""
    return pa.string() if pa.types.is_binary(found) else found


def _maybe_numbers(values: pa.ChunkedArray[Any]) -> bool:
    given = cast("list[str | bytes | None]", values.to_pylist())
    texts = [text.decode("latin-1") if isinstance(text, bytes) else text for text in given]
    texts = [text for text in texts if text not in (None, *NULLS)]
    found = sum(NUMBER.fullmatch(text or "") is not None for text in texts)
    return 0 < len(texts) <= 2 * found


def _names(line: bytes, uri: str) -> list[str]:
    try:
        names, *more = csv.reader(io.StringIO(line.decode().strip("\r\n"), newline=""), strict=True)
    except (csv.Error, UnicodeDecodeError, ValueError) as e:
        told = "is not UTF-8; save the file as UTF-8" if isinstance(e, UnicodeDecodeError) else "is no CSV header"
        raise SourceError(f"{uri}: the first line {told}.") from e
    if more:
        raise SourceError(f"{uri}: its lines end in CR alone; save the file with LF or CRLF.")
    if len(names) == 1 and (found := [told for sign, told in _SEPARATORS.items() if sign in names[0]]):
        raise SourceError(f"{uri}: the values of the first line stand between {found[0]}; save the file with commas.")
    return [name.strip() for name in names]


def _parse(block: Block, names: list[str], convert: pacsv.ConvertOptions) -> tuple[pa.Table, dict[int, str]]:
    """The rows that have as many values as there are names, and what is wrong with the others, by row of the block."""
    wrong: dict[int, str] = {}

    def note(row: pacsv.InvalidRow) -> Literal["skip"]:
        number = cast("int", row.number) - 1
        wrong[number] = f"the line has {row.actual_columns} values, the header {row.expected_columns}"
        return "skip"

    table = pacsv.read_csv(
        cast("IO[bytes]", pa.BufferReader(block.data)),
        # pyarrow numbers the rows only when it works in one thread
        read_options=pacsv.ReadOptions(
            column_names=names, use_threads=False, block_size=max(1 << 16, len(block.data) + 1)
        ),
        parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        convert_options=convert,
    )
    return table, wrong


def _read_block(block: Block, uri: str, header: _Header, wanted: list[str]) -> Rows:
    types = {name: header.types[name] for name in wanted if name in header.types}
    convert = pacsv.ConvertOptions(column_types=types, include_columns=wanted, null_values=NULLS)
    faults: dict[int, str] = {}
    batch, wrong = _fast(block, header, convert) or _careful(block, uri, header, wanted, faults)
    if wrong:
        batch, faults = _with_gaps(batch, wrong, faults)
    if batch.num_rows != block.rows:
        raise SourceError(
            f"{uri}: of {block.rows} rows {batch.num_rows} can be told apart: a quotation mark or a CR stands alone."
        )
    return Rows(_marked(batch), faults)


def _fast(block: Block, header: _Header, convert: pacsv.ConvertOptions) -> tuple[pa.RecordBatch, dict[int, str]] | None:
    """The rows by the types of the first ones; None if a value does not fit, or may be too large a number."""
    try:
        table, wrong = _parse(block, header.names, convert)
    except pa.ArrowInvalid:
        return None
    batch = one_batch(table)
    return None if any(_has_infinite(column) for column in batch.columns) else (batch, wrong)


def _marked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Texts marked as what numbers may be read from: in the rows before they may have been numbers."""
    fields = [f.with_metadata(MAYBE_NUMBERS) if pa.types.is_string(f.type) else f for f in batch.schema]
    return pa.RecordBatch.from_arrays(batch.columns, schema=pa.schema(fields))


def _with_gaps(
    batch: pa.RecordBatch, wrong: dict[int, str], faults: dict[int, str]
) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Nulls where rows were left out, so that every row keeps its number."""
    total = batch.num_rows + len(wrong)
    is_good = np.ones(total, bool)
    is_good[list(wrong)] = False
    numbers = np.flatnonzero(is_good)
    take = np.zeros(total, np.int64)
    take[numbers] = np.arange(batch.num_rows)
    indices = cast("pa.Int64Array", pa.array(take, mask=~is_good))
    spread = batch.take(indices)
    return spread, wrong | {int(numbers[at]): why for at, why in faults.items()}


def _careful(
    block: Block, uri: str, header: _Header, wanted: list[str], faults: dict[int, str]
) -> tuple[pa.RecordBatch, dict[int, str]]:
    """All as text first, then column by column."""
    texts = dict.fromkeys(wanted, pa.binary())
    try:
        table, wrong = _parse(
            block, header.names, pacsv.ConvertOptions(column_types=texts, include_columns=wanted, null_values=[])
        )
    except pa.ArrowInvalid as e:
        raise SourceError(f"{uri} holds rows that are no CSV: a quotation mark is not closed or doubled.") from e
    raw = one_batch(table)
    arrays = [_typed(name, raw.column(name), header.types.get(name), faults) for name in wanted]
    return pa.RecordBatch.from_arrays(arrays, names=wanted), wrong


def _typed(name: str, raw: pa.Array[Any], wanted: pa.DataType | None, faults: dict[int, str]) -> pa.Array[Any]:
    text = _decoded(name, raw, faults)
    if wanted is None or pa.types.is_string(wanted):
        return text
    found, bad = numbers_of(text, _DOUBLE) if pa.types.is_floating(wanted) else cast_each(text, wanted)
    if bad and pa.types.is_integer(wanted):
        found, bad = cast_each(text, pa.float64())
    for at, why in bad.items():
        faults.setdefault(at, f"column {name}: {why}")
    return found


def _has_infinite(column: pa.Array[Any]) -> bool:
    return pa.types.is_floating(column.type) and bool(pc.any(pc.is_inf(column)).as_py())


def _decoded(name: str, raw: pa.Array[Any], faults: dict[int, str]) -> pa.Array[Any]:
    try:
        return pc.cast(raw, pa.string())
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for at, value in enumerate(cast("list[bytes | None]", raw.to_pylist())):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                faults.setdefault(at, f"column {name}: the text is not UTF-8; save the file as UTF-8")
                texts.append(None)
        return pa.array(texts, pa.string())
