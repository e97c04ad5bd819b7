"""What a caller hands over as the rows of a batch, and how it gets to the server."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from batchline.client.calls import Upload, encode
from batchline.client.frames import columns_of, is_array, is_column, is_table, parquet, tells_in_json
from batchline.errors import InvalidRequestError

_INLINE_ROWS = 1000
_INLINE_BYTES = 2**20
_INPUTS = ("uri", "table", "rows", "file_id")


@dataclass(frozen=True, slots=True)
class Given:
    """The `input` of a batch, and the file that is to be uploaded first, whose id it then names."""

    input: dict[str, object]
    upload: Upload | None = None


def given(data: Any, *, named: Collection[str]) -> Given:
    """How to send `data`.

    Args:
        data: a URI (`s3://…`, `file://…`, read by the server); a path of a file here, which is uploaded; a table of
            pandas, polars, pyarrow or whatever else speaks Arrow, uploaded as Parquet; a numpy array or a list of
            rows; or an `input` as the API takes it: `{"table": "public.users", "key": "id"}`.
        named: key, kept and chosen columns; a level of the index of pandas with such a name counts as a column.

    Raises:
        InvalidRequestError: it is none of these, or no such file.
    """
    if isinstance(data, Mapping):
        return Given(_input(cast("Mapping[str, object]", data)))
    if isinstance(data, Upload):
        return Given({}, data)
    if isinstance(data, str) and "://" in data:
        return Given({"uri": data})
    if isinstance(data, str | Path):
        return Given({}, _local(Path(data)))
    if is_column(data):
        raise InvalidRequestError(
            f"A {type(data).__name__} is one column of a table: give a table, such as its to_frame() makes."
        )
    if is_table(data):
        return Given({"format": "parquet"}, Upload("table.parquet", parquet(data, named)))
    if is_array(data) and (len(data) > _INLINE_ROWS or data.nbytes > _INLINE_BYTES // 4 or not tells_in_json(data)):
        return Given({"format": "parquet"}, Upload("table.parquet", parquet(columns_of(data), ())))
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


def _input(data: Mapping[str, object]) -> dict[str, object]:
    if data.keys().isdisjoint(_INPUTS):
        raise InvalidRequestError(
            f"A dict is an `input` as the API takes it, with one of {', '.join(_INPUTS)}; of columns make a table, as"
            " pandas.DataFrame(…) or pyarrow.table(…) do."
        )
    return dict(data)


def _rows(data: Any) -> Sequence[object]:
    if getattr(getattr(data, "dtype", None), "kind", "") in ("m", "M"):  # some of them would become plain numbers
        raise InvalidRequestError(f"An array of {data.dtype} is no array of numbers: make such of it.")
    rows = data.tolist() if hasattr(data, "tolist") else data
    if isinstance(rows, str | bytes) or not isinstance(rows, Sequence):
        kind = type(data).__name__
        todo = "give what its collect() makes" if hasattr(data, "collect") else "give a URI, a path, a table or a list"
        if isinstance(data, Iterator):
            todo = "make a list of it, or write a file"
        raise InvalidRequestError(f"{'An' if kind[0] in 'aeiou' else 'A'} {kind} is no data set: {todo}.")
    if not rows:
        raise InvalidRequestError("There are no rows.")
    return cast("Sequence[object]", rows)
