"""Columns that stand in a file's path, as Hive writes them: `dt=2026-01-01/country=de/part-0.parquet`.

They are text, as they stand: `month=01` keeps its zero, and a numeric input reads numbers from them as from CSV's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from batchline.data.contract import FROM_PATH, MAYBE_NUMBERS, Rows

_NULL = "__HIVE_DEFAULT_PARTITION__"


def values(uri: str) -> dict[str, str | None]:
    """Name -> value of the folders `name=value` of a file's URI; the innermost of a name wins."""
    path = unquote(uri.removeprefix("file://"), errors="replace") if uri.startswith("file://") else uri
    found: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if equals and name:
            found[unquote(name, errors="replace")] = None if value == _NULL else unquote(value, errors="replace")
    return found


def beside(own: pa.Schema, uri: str) -> pa.Schema:
    """The columns of a file, and those of its path that it has not itself."""
    for name in values(uri):
        if name not in own.names:
            own = own.append(pa.field(name, pa.string(), metadata=MAYBE_NUMBERS | FROM_PATH))
    return own


def with_values(rows: Rows, found: Mapping[str, str | None], columns: Sequence[str]) -> Rows:
    """The rows with these columns, in this order: those of `found` from there, the others their own."""
    batch = rows.batch
    arrays: list[pa.Array[Any]] = []
    fields: list[pa.Field[Any]] = []
    for name in columns:
        if name in found:
            arrays.append(pa.repeat(pa.scalar(found[name], pa.string()), batch.num_rows))
            fields.append(pa.field(name, pa.string(), metadata=MAYBE_NUMBERS | FROM_PATH))
        else:
            arrays.append(batch.column(name))
            fields.append(batch.schema.field(name))
    return Rows(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), rows.faults)
