"""One part of a table sink: rows as texts of COPY, spooled until they are stored."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import sql

from batchline.batch import Staged
from batchline.data import json_text
from batchline.data.contract import ROW
from batchline.data.sql_database import Text
from batchline.data.sql_types import encode
from batchline.errors import SinkError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

ERROR_COLUMNS = ("batch", "row", "key", "code", "message")
REFUSED = "refused_by_table"
"""Code of a row that the target does not take."""
_SPOOL_BYTES = 32 * 2**20
"""Of one part in memory; what is beyond goes to a temporary file."""
_READ_BYTES = 2**18
_NUL = "has a NUL character, which PostgreSQL cannot hold"


class TablePart:
    """`batchline.data.contract.Part`."""

    def __init__(
        self,
        store: Callable[[TablePart], Sequence[int]],
        about: str,
        *,
        batch: str,
        number: int,
        key: str | None,
        schema: pa.Schema,
    ) -> None:
        """`store`: writes the part, once; returns the offsets of rows that were refused."""
        self._store = store
        self._about = about
        self._batch = batch
        self.key = key
        self.number = number
        self.names = tuple(schema.names)
        self.rows = self.errors = 0
        self.refused: Sequence[int] = []
        self.row_text: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115
        self.error_text: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115
        self._numbers: list[np.ndarray[Any, np.dtype[np.int64]]] = []

    @property
    def numbers(self) -> list[int]:
        """Of the rows that wait to be stored, within the batch."""
        return np.concatenate(self._numbers).tolist() if self._numbers else []

    def offsets(self, numbers: Sequence[int]) -> list[int]:
        """Where in the part these rows are."""
        return np.flatnonzero(np.isin(self.numbers, numbers)).tolist()

    def write(self, rows: pa.RecordBatch, numbers: Sequence[int] | None = None) -> None:
        """Raises SinkError when there is no room here for what waits to be staged."""
        rows = rows.select(list(self.names))
        at = np.arange(rows.num_rows) + self.rows if numbers is None else np.asarray(numbers, np.int64)
        text = encode(rows)
        if b"\0" in text:
            rows, at = self._without_nuls(rows, at)
            text = encode(rows)
        self._spool(self.row_text, text)
        self._numbers.append(at)
        self.rows += rows.num_rows

    def write_errors(self, errors: pa.RecordBatch) -> None:
        names = errors.schema.names
        key = next((n for n in names if n not in (ROW, "code", "message")), None)
        self._spool_errors(
            errors.column(ROW).to_numpy().tolist(),
            _as_texts(errors.column(key)).to_pylist() if key else [None] * errors.num_rows,
            errors.column("message").to_pylist(),
            errors.column("code").to_pylist(),
        )

    def stage(self) -> Staged:
        """Write all of it in one transaction of the target, or nothing if the slice is there already."""
        size = self.row_text.tell() + self.error_text.tell()
        refused, numbers = self._store(self), self.numbers
        self.refused = [*self.refused, *(numbers[at] for at in refused)]
        self.abort()
        rows, errors = self.rows - len(refused), self.errors + len(refused)
        return Staged(parts=[], rows=rows, errors=errors, bytes=size)

    def abort(self) -> None:
        self.row_text.close()
        self.error_text.close()

    def errors_text(
        self,
        rows: Sequence[int],
        keys: Sequence[str | None],
        messages: Sequence[str],
        codes: Sequence[str] | None = None,
    ) -> bytes:
        """Rows at fault as COPY takes them by `ERROR_COLUMNS`; without codes they are those that the table refused."""
        columns = {
            "batch": pa.array([self._batch] * len(rows), pa.string()),
            "row": pa.array(rows, pa.int64()),
            "key": pa.array(keys, pa.string()),
            "code": pa.array(codes or [REFUSED] * len(rows), pa.string()),
            "message": pa.array(messages, pa.string()),
        }
        return encode(pa.RecordBatch.from_pydict(columns)).replace(b"\0", "\N{REPLACEMENT CHARACTER}".encode())

    def _without_nuls(self, rows: pa.RecordBatch, at: Any) -> tuple[pa.RecordBatch, Any]:
        """The rows that PostgreSQL can hold; the others are errors."""
        bad: dict[int, str] = {}
        for field, column in zip(rows.schema, rows.columns, strict=True):
            for n, value in enumerate(column.to_pylist()):
                if _has_nul(value):
                    bad.setdefault(n, f"column {field.name}: {_NUL}")
        numbers = [int(at[n]) for n in sorted(bad)]
        keys = _as_texts(rows.column(self.key).take(sorted(bad))).to_pylist() if self.key else [None] * len(bad)
        self._spool_errors(numbers, keys, [bad[n] for n in sorted(bad)])
        self.refused = [*self.refused, *numbers]
        good = np.setdiff1d(np.arange(rows.num_rows), np.fromiter(bad, np.int64))
        return rows.take(good), at[good]

    def _spool_errors(self, rows: Sequence[int], *told: Any) -> None:
        self._spool(self.error_text, self.errors_text(rows, *told))
        self.errors += len(rows)

    def _spool(self, into: IO[bytes], text: bytes) -> None:
        try:
            into.write(text)
        except OSError as e:
            raise SinkError(
                f"There is no room on this worker for results that wait to be written: {e.strerror}."
            ) from e


def _has_nul(value: object) -> bool:
    if isinstance(value, list):
        return any(_has_nul(v) for v in cast("list[object]", value))
    return isinstance(value, str) and "\0" in value


def copy(cursor: Cursor, into: Text, names: Sequence[str], text: IO[bytes]) -> None:
    """COPY rows into a table."""
    text.seek(0)
    columns = sql.SQL(", ").join([sql.Identifier(n) for n in names])
    cursor.copy_expert(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(into, columns), text, _READ_BYTES)


def _as_texts(column: pa.Array[Any]) -> pa.Array[Any]:
    """Keys of rows at fault; lists as JSON."""
    if not pa.types.is_nested(column.type):
        return column.cast(pa.string())
    none = pa.scalar(None, pa.string())
    return cast("pa.Array[Any]", pc.if_else(column.is_null(), none, json_text.texts(column).cast(pa.string())))
