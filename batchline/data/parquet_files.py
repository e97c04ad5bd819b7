"""Parquet: planned from footers alone, read a batch of rows at a time whatever the size of files and row groups.

Of a file that lies far away the footer is read once a process, and the column chunks that a span needs are fetched
ahead, several at a time, those that lie side by side by one request.

A span is (first group, end group, first row, end row), rows counted within those groups. A row group larger than a
slice is cut by rows; so that the next slice of it need not decode the ones before again, a reader that stops within
a group is kept for a while, standing where it stopped.
"""

from __future__ import annotations

import io
import logging
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from batchline.data.contract import Rows
from batchline.data.places import OpenFile
from batchline.data.read_ahead import WINDOW_BYTES, Readable, ReadAhead, Window, cut, together
from batchline.data.remembered import Remembered
from batchline.errors import SourceError

log = logging.getLogger("batchline.data")

_BUFFERS_BYTES = 16 << 20
"""For all columns of one reader together."""
_MAX_BUFFER_BYTES = 4 << 20
_MIN_BUFFER_BYTES = 64 << 10
_FOOTER_BYTES = 64 << 10
"""Read from the end at once; a small file comes whole with it."""


def _cost(meta: pq.FileMetaData) -> int:
    return meta.serialized_size


_footers = Remembered[pq.FileMetaData](16 << 20, _cost)
_LARGE_BYTES = 256 << 10
_large: dict[str, tuple[tuple[str, str], pq.FileMetaData]] = {}
"""The last footer of a file at hand that was worth keeping: decoded, one takes many MiB, and tens of ms a slice."""

Span = tuple[object, ...]


class Handle(io.RawIOBase):
    """An open file as Python's own kind of file, which is what pyarrow reads from."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._file.size - self._at)
        data = self._file.read_at(self._at, left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data


def schema(file: OpenFile) -> pa.Schema:
    """Columns by the footer."""
    return _opened(file, _footer(file), (), None).schema_arrow


def spans(file: OpenFile, slice_rows: int) -> Iterator[tuple[Span, int]]:
    """Neighbouring row groups together up to `slice_rows`; a group much larger than that in parts of equal size."""
    meta = _footer(file)
    begin, gathered = 0, 0
    for group in range(meta.num_row_groups):
        rows = meta.row_group(group).num_rows
        if gathered and gathered + rows > slice_rows * 1.25:
            yield (begin, group, 0, gathered), gathered
            begin, gathered = group, 0
        if rows > slice_rows * 1.25:
            parts = -(-rows // slice_rows)
            cuts = [rows * part // parts for part in range(parts + 1)]
            for low, high in pairwise(cuts):
                yield (group, group + 1, low, high), high - low
            begin = group + 1
        elif rows:
            gathered += rows
        elif not gathered:
            begin = group + 1
    if gathered:
        yield (begin, meta.num_row_groups, 0, gathered), gathered


def read(file: OpenFile, span: Span, rows: int, columns: Sequence[str] | None, batch_rows: int) -> Iterator[Rows]:
    """See `batchline.data.files_source.Reader.read`."""
    del rows  # the span tells
    first, end, low, high = cast("tuple[int, int, int, int]", tuple(span))
    key = (file.uri, file.version, first, end, None if columns is None else tuple(columns))
    cursor = _kept.take(key, low) or _Cursor(file, key, batch_rows)
    try:
        yield from cursor.rows(low, high, batch_rows)
    except BaseException:
        cursor.close()
        raise
    if cursor.at < cursor.total:
        _kept.put(cursor)
    else:
        cursor.close()


_Key = tuple[str, str, int, int, tuple[str, ...] | None]


class _Cursor:
    """A stretch of row groups that is being decoded, and how far."""

    def __init__(self, file: OpenFile, key: _Key, batch_rows: int) -> None:
        self.key = key
        self.at = 0
        self._file = file.again()
        self._rest: pa.RecordBatch | None = None
        _, _, first, end, names = key
        try:
            meta = _footer(self._file)
            groups = list(range(first, end))
            if end > meta.num_row_groups:
                raise SourceError(f"{file.uri} has fewer row groups than were planned.")
            self.total = sum(meta.row_group(group).num_rows for group in groups)
            parquet = _opened(self._file, meta, groups, names)
            # Arrow's threads are as few as cores, and are held while they wait for bytes: small files read side by side
            # would wait for one another.
            threads = file.identity is None or self.total > batch_rows
            self._batches = _batches(parquet, groups, names, batch_rows, file.uri, threads=threads)
        except BaseException:
            self._file.close()
            raise

    def rows(self, low: int, high: int, batch_rows: int) -> Iterator[Rows]:
        """Rows [low, high), passing over those before."""
        while self.at < high:
            batch = self._rest or next(self._batches, None)
            if batch is None:
                raise SourceError(f"{self.key[0]} ends at row {self.at} of its row groups; {self.total} were planned.")
            self._rest = None
            skipped = min(max(0, low - self.at), batch.num_rows)
            taken = min(batch.num_rows - skipped, high - self.at - skipped, batch_rows)
            if skipped + taken < batch.num_rows:
                self._rest = batch.slice(skipped + taken)
            self.at += skipped + taken
            if taken:
                yield Rows(batch.slice(skipped, taken) if taken < batch.num_rows else batch)

    def close(self) -> None:
        """Give the file back."""
        self._rest = None
        self._batches.close()
        self._file.close()


def _batches(
    parquet: pq.ParquetFile,
    groups: list[int],
    names: tuple[str, ...] | None,
    batch_rows: int,
    uri: str,
    *,
    threads: bool,
) -> Generator[pa.RecordBatch, None, None]:
    try:
        for batch in parquet.iter_batches(
            batch_rows, row_groups=groups, columns=None if names is None else list(names), use_threads=threads
        ):
            yield batch if names is None or tuple(batch.schema.names) == names else batch.select(names)
    except (pa.ArrowException, OSError) as e:
        raise _damaged(uri, e) from e


def _footer(file: OpenFile) -> pq.FileMetaData:
    """The footer, read unless it is remembered.

    Raises:
        SourceError: no Parquet, or truncated.
    """
    if file.identity is not None:
        return _footers.of(file, lambda: _read_footer(file))
    held, key = _large.get("last"), (file.uri, file.version)
    if held is not None and held[0] == key:
        return held[1]
    meta = _read_footer(file)
    if meta.serialized_size >= _LARGE_BYTES:
        _large["last"] = (key, meta)
    return meta


def _read_footer(file: OpenFile) -> pq.FileMetaData:
    file.tail(_FOOTER_BYTES)
    if not file.size:
        raise SourceError(f"{file.uri} is empty: it is no Parquet file.")
    try:
        return pq.read_metadata(pa.PythonFile(Handle(file), mode="r"))
    except (pa.ArrowException, OSError) as e:
        raise _damaged(file.uri, e) from e


def _opened(
    file: OpenFile, meta: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str] | None
) -> pq.ParquetFile:
    """A reader of some row groups and columns.

    Raises:
        SourceError: no Parquet, or a column is not there.
    """
    share = _BUFFERS_BYTES // max(1, len(columns) if columns is not None else meta.num_columns)
    source = file if file.identity is None else ReadAhead(file, _windows(meta, groups, columns))
    try:
        parquet = pq.ParquetFile(
            pa.PythonFile(Handle(source), mode="r"),
            metadata=meta,
            buffer_size=min(_MAX_BUFFER_BYTES, max(_MIN_BUFFER_BYTES, share)),
            pre_buffer=False,
        )
        # Never of `meta.schema`: that and the footer refer to each other, and each slice's would stay until a full
        # collection, of a file of 20 M rows 300 MiB of them.
        names = Counter(parquet.schema_arrow.names)
    except (pa.ArrowException, OSError) as e:
        raise _damaged(file.uri, e) from e
    for name in columns or ():
        if name not in names:
            raise SourceError(f"{file.uri} has no column {name!r}.")
        if names[name] > 1:
            raise SourceError(f"{file.uri} has two columns named {name!r}: rename one.")
    return parquet


def _windows(meta: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str] | None) -> list[Window]:
    """What Arrow will read of these groups, in that order: chunk by chunk, large ones of a group side by side."""
    if not groups:
        return []
    first = meta.row_group(groups[0])
    paths = [first.column(at).path_in_schema for at in range(meta.num_columns)]
    wanted = [
        at
        for at, path in enumerate(paths)
        if columns is None or any(path == name or path.startswith(name + ".") for name in columns)
    ]
    small: list[tuple[int, int]] = []
    windows: list[Window] = []
    for group in groups:
        chunks = [_chunk(meta.row_group(group).column(at)) for at in wanted]
        if sum(end - start for start, end in chunks) <= _BUFFERS_BYTES:
            small += sorted(chunks)
            continue
        windows += together(small)
        small = []
        parts = [cut(start, end, WINDOW_BYTES) for start, end in chunks]
        windows += [part for row in zip_longest(*parts) for part in row if part is not None]
    return windows + together(small)


def _chunk(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Where the pages of a column begin and end."""
    start, dictionary = column.data_page_offset, column.dictionary_page_offset
    if column.has_dictionary_page and dictionary is not None and 0 < dictionary < start:
        start = dictionary
    return start, start + column.total_compressed_size


def _damaged(uri: str, e: Exception) -> SourceError:
    log.warning("cannot read %s: %s", uri, e)
    return SourceError(f"{uri} is no Parquet file that can be read: it is truncated, damaged or of another format.")


class _Kept:
    """The reader that stopped within a row group last; one a process, as one slice runs at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cursor: _Cursor | None = None

    def take(self, key: _Key, low: int) -> _Cursor | None:
        with self._lock:
            cursor, self._cursor = self._cursor, None
        if cursor is None:
            return None
        if cursor.key == key and cursor.at <= low:
            return cursor
        cursor.close()
        return None

    def put(self, cursor: _Cursor) -> None:
        with self._lock:
            before, self._cursor = self._cursor, cursor
        if before is not None:
            before.close()


_kept = _Kept()
