"""The blob store: uploaded files, inline rows, output files, by key, on file:// or s3://; written whole or not at all.

A key is one or more names with slashes between; keys are made by the server and never by clients.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from batchline.data.contract import Places
from batchline.data.places import BLOB, OpenFile, Root, Upload, blob_place, blob_root
from batchline.errors import SourceError, TooLargeError

CHUNK_BYTES = 4 << 20
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True, slots=True)
class Stored:
    """What was stored."""

    bytes: int
    sha256: str
    """Hex."""


class BlobUpload:
    """A blob that is being written; nobody sees it before `finish`."""

    def __init__(self, upload: Upload, limit_bytes: int | None) -> None:
        self._upload = upload
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            TooLargeError: beyond the limit; what was written is removed.
            SinkError, SinkUnavailableError: as sinks do.
        """
        if self._limit_bytes is not None and self._upload.size + len(data) > self._limit_bytes:
            self.abort()
            raise TooLargeError(f"The file is larger than {self._limit_bytes} bytes.")
        self._hash.update(data)
        self._upload.write(data)

    def finish(self) -> Stored:
        """Make it durable and visible."""
        self._upload.finish()
        return Stored(self._upload.size, self._hash.hexdigest())

    def abort(self) -> None:
        """Leave nothing; safe after anything but `finish`."""
        self._upload.abort()


class Blob:
    """A blob that is open for reading; close it, or use it in `with`."""

    def __init__(self, key: str, file: OpenFile) -> None:
        self.uri = BLOB + key
        """As `Piece.uri` has it."""
        self.version = file.version
        self.size = file.size
        self._file = file

    def chunks(self, start: int = 0, end: int | None = None, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Bytes [start, end), at most `chunk_bytes` at a time.

        Raises:
            SourceError, SourceUnavailableError: as sources do.
        """
        upto = self.size if end is None else min(end, self.size)
        while start < upto and (data := self._file.read_at(start, min(chunk_bytes, upto - start))):
            start += len(data)
            yield data

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) at once."""
        return b"".join(self.chunks(start, end))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Blobs:
    """The store of one deployment; safe to share among threads. Its calls block."""

    def __init__(self, places: Places) -> None:
        self._root: Root = blob_root(places)
        self._place, self._uri = blob_place(places)

    def create(self, key: str, *, limit_bytes: int | None = None) -> BlobUpload:
        """Begin a blob; one of the same key is replaced when it is finished.

        Raises:
            SinkError, SinkUnavailableError: it cannot be written.
        """
        path, _, name = _checked(key).rpartition("/")
        return BlobUpload(self._root.folder(path).create(name), limit_bytes)

    def put(self, key: str, chunks: Iterable[bytes], *, limit_bytes: int | None = None) -> Stored:
        """Write a blob from chunks; raises as `BlobUpload.write`, and whatever the chunks raise, leaving nothing."""
        upload = self.create(key, limit_bytes=limit_bytes)
        try:
            for chunk in chunks:
                upload.write(chunk)
            return upload.finish()
        except BaseException:
            upload.abort()
            raise

    def open(self, key: str) -> Blob:
        """Open a blob.

        Raises:
            SourceError: there is none.
            SourceUnavailableError: may be tried again.
        """
        try:
            file = self._place.open(self._uri + _checked(key))
        except SourceError as e:
            raise SourceError(f"The file {key} is gone.") from e
        file.uri = f"file {key}"
        return Blob(key, file)

    def delete(self, key: str) -> None:
        """Remove a blob if it is there.

        Raises:
            SinkError, SinkUnavailableError: it cannot be removed.
        """
        self._root.remove(_checked(key))

    def garbage(self, *, older_s: float) -> Iterator[str]:
        """Keys of blobs older than that, whether anybody needs them or not: the caller knows. Unsorted."""
        return self._root.keys(before=time.time() - older_s)


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key) or len(key) > 500:
        raise ValueError(f"{key!r} is no key of a blob")
    return key
