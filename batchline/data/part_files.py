"""One part as a file of record batches: Parquet, CSV or JSONL, written to whatever takes bytes."""

from __future__ import annotations

from typing import IO, Any, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from batchline.data import json_text
from batchline.data.places import Upload
from batchline.data.uris import Format

_GROUP_ROWS = 1 << 18
_GROUP_BYTES = 64 << 20


class Writer(Protocol):
    """Appends record batches of one schema; `finish` writes what closes the file."""

    def write(self, rows: pa.RecordBatch) -> None: ...

    def finish(self) -> None: ...


def writer(kind: Format, upload: Upload, schema: pa.Schema) -> Writer:
    """A writer of that format; it writes to the upload and never closes it."""
    return {"parquet": _Parquet, "csv": _Csv, "jsonl": _Jsonl}[kind](upload, schema)


class _Parquet:
    """Batches are gathered into row groups of some size; floats are not tried as dictionaries, they rarely repeat."""

    def __init__(self, upload: Upload, schema: pa.Schema) -> None:
        texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_integer(field.type)]
        self._schema = schema
        self._file = pq.ParquetWriter(cast("IO[bytes]", upload), schema, use_dictionary=cast("bool", texts or False))
        self._held: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, rows: pa.RecordBatch) -> None:
        self._held.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._held:
            self._file.write_table(pa.Table.from_batches(self._held, self._schema))
        self._held, self._rows, self._bytes = [], 0, 0


class _Csv:
    """Lists are written as JSON text; the header stands in every part."""

    def __init__(self, upload: Upload, schema: pa.Schema) -> None:
        self._schema = pa.schema([(field.name, _csv_type(field.type)) for field in schema])
        self._file = csv.CSVWriter(cast("IO[bytes]", upload), self._schema)

    def write(self, rows: pa.RecordBatch) -> None:
        arrays = [_csv_column(column, field.type) for column, field in zip(rows.columns, self._schema, strict=True)]
        self._file.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def finish(self) -> None:
        self._file.close()


class _Jsonl:
    def __init__(self, upload: Upload, schema: pa.Schema) -> None:
        del schema  # the rows tell their names
        self._upload = upload

    def write(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows:
            self._upload.write(json_text.joined(json_text.lines(rows)))

    def finish(self) -> None:
        """Nothing closes a JSONL file."""


def _csv_type(kind: pa.DataType) -> pa.DataType:
    if _as_json(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return cast("pa.DictionaryType[Any, Any]", kind).value_type
    return pa.float32() if pa.types.is_float16(kind) else kind


def _as_json(kind: pa.DataType) -> bool:
    """Whether CSV's own writer has no words for values of this type."""
    return pa.types.is_nested(kind) or pa.types.is_duration(kind) or _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _csv_column(column: pa.Array[Any], kind: pa.DataType) -> pa.Array[Any]:
    if column.type == kind:
        return column
    if _as_json(column.type):
        told = json_text.texts(column).cast(pa.string())
        if _is_bytes(column.type):
            told = pc.utf8_trim(told, '"')
        return pc.if_else(column.is_null(), pa.scalar(None, pa.string()), told)
    return column.cast(kind)
