"""Where files lie: a place lists and opens them, a folder takes new ones; file:// and s3:// in files of their own.

Nothing below the blob store is reachable by a URI: other tenants' uploads are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from batchline.data.contract import Places
from batchline.data.uris import Format, local_uri
from batchline.errors import BatchlineError, SettingsError, SinkError, SourceError
from batchline.settings import Settings

BLOB = "blob:"
"""Scheme of keys of the blob store in `Piece.uri`."""


class Listed(NamedTuple):
    """A file that was found, and what finding it told of its version; see `Place.open`."""

    uri: str
    version: str | None = None
    size: int | None = None


class OpenFile(Protocol):
    """One version of one file, open for reading at any offset; safe for one thread at a time."""

    uri: str
    version: str
    identity: str | None
    """Stands for these very bytes in this process; None where looking again costs nothing, as no request is made."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def tail(self, count: int) -> None:
        """The last `count` bytes are wanted next: have them by one request, and the size with them."""
        ...

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer only at the end.

        Raises:
            SourceError: it changed or is gone.
            SourceUnavailableError: its place does not answer.
        """
        ...

    def verify(self) -> None:
        """Raise SourceError if what the name stands for is not this version any more."""
        ...

    def again(self) -> OpenFile:
        """The same version by itself, to be closed by itself."""
        ...

    def close(self) -> None: ...


class Place(Protocol):
    """A scheme: what its URIs name."""

    at_once: int
    """Files worth opening at a time: more than one where each waits for an answer."""

    def list(self, uri: str, kind: Format) -> Iterator[Listed]:
        """The files that a URI, glob or folder names, sorted by their URIs.

        Raises:
            SourceError: there is none, or it may not be read.
        """
        ...

    def open(self, uri: str, version: str | None = None, size: int | None = None) -> OpenFile:
        """One version of a file.

        Args:
            uri: of the file.
            version: known already: where asking for it costs a request this one is opened unasked, and the first read
                tells if it is no more; elsewhere it is the file that is there which says its version.
            size: of that version, if it is known.

        Raises: as `OpenFile.read_at`.
        """
        ...


class Upload(Protocol):
    """A file that is being written and that nobody sees; what pyarrow takes for a binary file."""

    closed: bool
    size: int

    def write(self, data: bytes | memoryview, /) -> int: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def stage(self) -> dict[str, str]:
        """Make it durable; the record is all that `Folder.publish` needs. It has `name`."""
        ...

    def finish(self) -> None:
        """Make it durable and visible at once; instead of `stage`."""
        ...

    def abort(self) -> None:
        """Leave nothing; safe after anything."""
        ...


class Folder(Protocol):
    """Where parts are written. Raises SinkError and SinkUnavailableError."""

    def probe(self) -> None:
        """Raise unless files can be made here."""
        ...

    def create(self, name: str) -> Upload: ...

    def publish(self, record: Mapping[str, str]) -> None:
        """Make a staged file visible under its name, whole; repeatable."""
        ...

    def discard(self, record: Mapping[str, str]) -> None:
        """Remove a staged file; repeatable."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a small file, whole."""
        ...

    def sweep(self, mark: str) -> None:
        """Remove everything unpublished whose name has `mark` in it."""
        ...


class Root(Protocol):
    """What a scheme adds for blobs."""

    def folder(self, path: str) -> Folder:
        """A folder below the root, empty for the root itself."""
        ...

    def remove(self, key: str) -> None:
        """Remove a blob if it is there."""
        ...

    def keys(self, *, before: float) -> Iterator[str]:
        """Keys of what was written before a time in epoch seconds, unpublished leavings among them."""
        ...


def places_of(settings: Settings) -> Places:
    """What the operator configured.

    Raises:
        SettingsError: an entry that cannot be meant so.
    """
    roots = tuple(part for part in settings.data_roots.split(":") if part)
    if wrong := [root for root in roots if not root.startswith("/")]:
        raise SettingsError(f"BATCHLINE_DATA_ROOTS names {wrong[0]!r}; folders there begin with a slash.")
    databases: dict[str, str] = {}
    for entry in settings.databases.split():
        name, found, dsn = entry.partition("=")
        if not found or not name.isidentifier() or "://" not in dsn:
            raise SettingsError("BATCHLINE_DATABASES is not of the form NAME=postgresql://… NAME=postgresql://…")
        databases[name] = dsn
    if not settings.blobs.startswith(("file://", "s3://")):
        raise SettingsError(f"BATCHLINE_BLOBS is {settings.blobs!r}; write file://FOLDER or s3://BUCKET/PREFIX.")
    return Places(settings.blobs, roots, databases, settings.s3_endpoint_url)


def place_of(uri: str, places: Places) -> Place:
    """The place that a client's URI names.

    Raises:
        SourceError: a scheme that is not spoken, or file:// where the operator allows none.
    """
    if uri.startswith("file://"):
        from batchline.data.local_place import LocalPlace  # noqa: PLC0415 - what one place needs stays its own

        return LocalPlace(_roots(places, uri, SourceError), hidden=_blob_folder(places))
    if uri.startswith("s3://"):
        from batchline.data.s3_place import S3Place  # noqa: PLC0415 - boto3 takes a while to import

        return S3Place(places.s3_endpoint_url, hidden=_blob_prefix(places))
    raise SourceError(f"{uri!r} cannot be read: write file:// or s3://.")


def folder_of(uri: str, places: Places) -> Folder:
    """The folder that a client's output URI names.

    Raises:
        SinkError: as `place_of`.
    """
    if uri.startswith("file://"):
        from batchline.data.local_folder import LocalFolder  # noqa: PLC0415 - as above

        return LocalFolder(uri, _roots(places, uri, SinkError), hidden=_blob_folder(places))
    if uri.startswith("s3://"):
        from batchline.data.s3_folder import S3Folder  # noqa: PLC0415 - as above

        return S3Folder(uri, places.s3_endpoint_url, hidden=_blob_prefix(places))
    raise SinkError(f"{uri!r} cannot be written: write file:// or s3://.")


def blob_place(places: Places) -> tuple[Place, str]:
    """The place of the blob store, and the URI of its root with a closing slash."""
    if folder := _blob_folder(places):
        from batchline.data.local_place import LocalPlace  # noqa: PLC0415 - as above

        return LocalPlace((folder,), hidden=None), local_uri(folder) + "/"
    from batchline.data.s3_place import S3Place  # noqa: PLC0415 - as above

    return S3Place(places.s3_endpoint_url, hidden=None), places.blobs.rstrip("/") + "/"


def blob_root(places: Places) -> Root:
    """Where blobs are written and removed."""
    if folder := _blob_folder(places):
        from batchline.data.local_folder import LocalRoot  # noqa: PLC0415 - as above

        return LocalRoot(folder)
    from batchline.data.s3_folder import S3Root  # noqa: PLC0415 - as above

    return S3Root(places.blobs.rstrip("/") + "/", places.s3_endpoint_url)


def _roots(places: Places, uri: str, error: type[BatchlineError]) -> tuple[str, ...]:
    if not places.data_roots:
        raise error(f"{uri} cannot be used: the operator allows no folder for file:// (BATCHLINE_DATA_ROOTS).")
    return places.data_roots


def _blob_folder(places: Places) -> str | None:
    if not places.blobs.startswith("file://"):
        return None
    return str(Path(places.blobs.removeprefix("file://")).absolute())


def _blob_prefix(places: Places) -> str | None:
    return places.blobs.rstrip("/") + "/" if places.blobs.startswith("s3://") else None
