"""What a caller hands over as the rows of a batch, and how it gets to the server."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from batchline.client.batch_results import arrow
from batchline.client.calls import Upload, encode
from batchline.errors import InvalidRequestError

_INLINE_ROWS = 1000
_INLINE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Given:
    """The `input` of a batch, and the file that is to be uploaded first, whose id it then names."""

    input: dict[str, object]
    upload: Upload | None = None


def given(data: object, *, key: str | None) -> Given:
    """How to send `data`.

    Args:
        data: a URI (`s3://…`, `file://…`, read by the server); a path of a file here, which is uploaded; a table of
            pandas, polars, pyarrow or whatever else speaks Arrow, uploaded as Parquet; a numpy array or a list of
            rows; or an `input` as the API takes it: `{"table": "public.users", "key": "id"}`.
        key: the column that names a row; an index of pandas with this name counts as a column.

    Raises:
        InvalidRequestError: it is none of these, or no such file.
    """
    if isinstance(data, Mapping):
        return Given(dict(cast("Mapping[str, object]", data)))
    if isinstance(data, Upload):
        return Given({}, data)
    if isinstance(data, str) and "://" in data:
        return Given({"uri": data})
    if isinstance(data, str | Path):
        return Given({}, _local(Path(data)))
    if hasattr(data, "to_frame") and not hasattr(data, "columns"):
        raise InvalidRequestError(f"A {type(data).__name__} is one column of a table: give what its to_frame() makes.")
    if hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__") or _is_pandas(data):
        return Given({"format": "parquet"}, Upload("table.parquet", _parquet(data, key)))
    rows = _rows(data)
    text = encode(rows)
    if len(rows) <= _INLINE_ROWS and len(text) <= _INLINE_BYTES:
        return Given({"rows": rows})
    return Given({"format": "jsonl"}, Upload("rows.jsonl", b"\n".join(map(encode, rows))))


def _local(path: Path) -> Upload:
    if not path.is_file():
        raise InvalidRequestError(
            f"There is no file {str(path)!r} here. What the server shall read itself is named by file:// or s3://."
        )
    if path.suffix.lower() == ".gz":
        return Upload(path.stem, path, gzip=True)
    return Upload(path.name, path)


def _is_pandas(data: object) -> bool:
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")


def _parquet(data: Any, key: str | None) -> bytes:
    pa = arrow()
    import pyarrow.parquet as pq  # noqa: PLC0415 - the SDK loads pyarrow for whoever hands it a table

    try:
        if _is_pandas(data):
            if data.index.nlevels > 1 and key in data.index.names:
                data = data.reset_index(level=key)
            table = pa.Table.from_pandas(data, preserve_index=key is not None and data.index.name == key)
        else:
            table = data if isinstance(data, pa.Table) else pa.table(data)
        out = io.BytesIO()
        # Without the metadata, which may name anything of the program that made the table.
        pq.write_table(_writable(table).replace_schema_metadata(None), out, compression="zstd")
    except (TypeError, ValueError, NotImplementedError) as e:
        raise InvalidRequestError(f"The table cannot be read: {e}.") from e
    return out.getvalue()


def _writable(table: Any) -> Any:
    """The table with the categories of polars as plain texts: Parquet's writer does not know dictionaries of views."""
    pa = arrow()
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type) and pa.types.is_string_view(field.type.value_type):
            kind = pa.dictionary(field.type.index_type, pa.string())
            chunks = [
                pa.DictionaryArray.from_arrays(chunk.indices, pa.array(chunk.dictionary.to_pylist(), pa.string()))
                for chunk in table.column(at).chunks
            ]
            table = table.set_column(at, field.name, pa.chunked_array(chunks, kind))
    return table


def _rows(data: Any) -> Sequence[object]:
    rows = data.tolist() if hasattr(data, "tolist") else data
    if isinstance(rows, str | bytes) or not isinstance(rows, Sequence):
        raise InvalidRequestError(
            f"A {type(data).__name__} is no data set: give a URI, a path, a table or a list of rows."
        )
    if not rows:
        raise InvalidRequestError("There are no rows.")
    return cast("Sequence[object]", rows)
