"""A data set in files: all files of a URI in order of their names, read by the format's own reader."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Protocol

import pyarrow as pa

from batchline.batch import Piece
from batchline.data import csv_files, jsonl_files, parquet_files, path_columns
from batchline.data.contract import FROM_PATH, Rows, marked, typeless
from batchline.data.local_place import changed
from batchline.data.places import BLOB, Listed, OpenFile, Place
from batchline.data.read_ahead import mapped
from batchline.data.uris import Format
from batchline.errors import SourceError

Span = tuple[object, ...]


class Reader(Protocol):
    """One format: a module beside this one."""

    def schema(self, file: OpenFile) -> pa.Schema:
        """Columns of one file, of type null as far as it has no rows to tell their types by; see `typeless`."""
        ...

    def spans(self, file: OpenFile, slice_rows: int) -> Iterator[tuple[Span, int]]:
        """What `Piece.span` and `Piece.rows` will be."""
        ...

    def read(
        self, file: OpenFile, span: Span, rows: int, columns: Sequence[str] | None, batch_rows: int
    ) -> Iterator[Rows]:
        """The rows of a span; see `batchline.data.contract.Source.read`. CSV's takes `texts` besides."""
        ...


_SMALL_BYTES = 1 << 20

READERS: dict[Format, Reader] = {"jsonl": jsonl_files, "csv": csv_files, "parquet": parquet_files}


class FilesSource:
    """See `batchline.data.contract.Source`."""

    def __init__(self, place: Place, uri: str, kind: Format, *, blobs: str | None = None) -> None:
        """`blobs`: URI of the blob store's root, with a slash, when `uri` is of a blob."""
        self.at_once = place.at_once
        self._place = place
        self._uri = uri
        self._kind: Format = kind
        self._reader = READERS[kind]
        self._blobs = blobs
        self._schema: pa.Schema | None = None

    def schema(self) -> pa.Schema:
        if self._schema is None:
            self._schema = self._first_schema()
        return self._schema

    def _first_schema(self) -> pa.Schema:
        """Of the first file that has rows; of the first file if none has."""
        first: pa.Schema | None = None
        for listed in self._list():
            file = self._open(listed)
            try:
                found = self._reader.schema(file)
            finally:
                file.close()
            check_names(found, file.uri)
            if not typeless(found):
                return found if self._blobs else path_columns.beside(found, listed.uri)
            first = first or found
        if first is None:
            raise SourceError(f"{self._shown(self._uri)}: there is no such file.")
        return first

    def pieces(self, slice_rows: int) -> Iterator[Piece]:
        def planned(listed: Listed) -> tuple[Listed, list[Piece] | None]:
            return listed, list(self._pieces_of(listed, slice_rows)) if self._is_soon_planned(listed) else None

        if self._place.at_once > 1:
            for listed, pieces in mapped(planned, self._list(), at_once=self._place.at_once):
                yield from self._pieces_of(listed, slice_rows) if pieces is None else pieces
            return
        for listed in self._list():
            yield from self._pieces_of(listed, slice_rows)

    def _is_soon_planned(self, listed: Listed) -> bool:
        """Whether little is read and held of it: a footer, or all of a small file."""
        return self._kind == "parquet" or (listed.size is not None and listed.size <= _SMALL_BYTES)

    def _pieces_of(self, listed: Listed, slice_rows: int) -> Iterator[Piece]:
        file = self._open(listed)
        try:
            for span, rows in self._reader.spans(file, slice_rows):
                yield Piece(self._stored(listed.uri), file.version, span, rows)
            file.verify()
        finally:
            file.close()

    def read(
        self, piece: Piece, columns: Sequence[str] | None, *, batch_rows: int, texts: Collection[str] = ()
    ) -> Iterator[Rows]:
        in_path = {f.name for f in self._schema or () if marked(f, FROM_PATH)}
        names = [f.name for f in self._schema] if columns is None and self._schema and in_path else columns
        if names is None or in_path.isdisjoint(names):
            yield from self._read(piece, names, batch_rows, texts)
            return
        found = path_columns.values(piece.uri)
        if missing := [name for name in names if name in in_path and name not in found]:
            raise SourceError(f"{piece.uri}: its path has no folder {missing[0]}=…, unlike the first file's.")
        # one of the file's own columns at least, which tells the number of rows
        own = [n for n in names if n not in in_path] or [f.name for f in self._schema or () if f.name not in in_path][
            :1
        ]
        for rows in self._read(piece, own, batch_rows, texts):
            yield path_columns.with_values(rows, {name: found[name] for name in in_path.intersection(names)}, names)

    def _read(
        self, piece: Piece, columns: Sequence[str] | None, batch_rows: int, texts: Collection[str]
    ) -> Iterator[Rows]:
        # a blob is asked for: that it has gone is told in other words than that it has changed
        file = self._open(Listed(self._real(piece.uri), None if self._blobs else piece.version))
        try:
            if file.version != piece.version:
                raise changed(file.uri)
            done = 0
            read = partial(csv_files.read, texts=texts) if self._kind == "csv" else self._reader.read
            for rows in read(file, piece.span, piece.rows, columns, batch_rows):
                done += rows.batch.num_rows
                yield rows
            file.verify()
            if done != piece.rows:
                raise SourceError(f"{file.uri} has {done} rows where {piece.rows} were planned: it cannot be trusted.")
        finally:
            file.close()

    def _list(self) -> Iterator[Listed]:
        return iter((Listed(self._uri),)) if self._blobs else self._place.list(self._uri, self._kind)

    def _open(self, listed: Listed) -> OpenFile:
        try:
            file = self._place.open(*listed)
        except SourceError as e:
            if self._blobs:
                raise SourceError("The uploaded rows of this batch are gone: submit it again.") from e
            raise
        file.uri = self._shown(listed.uri)
        return file

    def _shown(self, uri: str) -> str:
        return "the uploaded file" if self._blobs else uri

    def _stored(self, uri: str) -> str:
        return BLOB + uri.removeprefix(self._blobs) if self._blobs else uri

    def _real(self, uri: str) -> str:
        return self._blobs + uri.removeprefix(BLOB) if self._blobs else uri


def check_names(schema: pa.Schema, uri: str) -> None:
    """Raise SourceError if two columns have one name."""
    seen: set[str] = set()
    for name in schema.names:
        if name in seen:
            raise SourceError(f"{uri} has two columns named {name!r}: rename one.")
        seen.add(name)
