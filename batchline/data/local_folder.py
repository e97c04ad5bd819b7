"""A folder of this machine that takes parts: written under a hidden name, synced, renamed when they are published."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from batchline.data.local_place import below, open_below
from batchline.data.uris import has_wildcards, local_path, local_uri
from batchline.errors import BatchlineError, SinkError, SinkUnavailableError

_TEMP = ".tmp"
_GATHER_BYTES = 1 << 20


class LocalUpload:
    """One file that is being written; see `batchline.data.places.Upload`."""

    def __init__(self, folder: LocalFolder, name: str) -> None:
        self.closed = False
        self.size = 0
        self._folder = folder
        self._name = name
        self._temp = f".{name}.{secrets.token_hex(6)}{_TEMP}"
        self._uri = f"{folder.uri}{name}"
        try:
            self._fd = folder.open_file(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except OSError as e:
            raise told(self._uri, e) from e
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def write(self, data: bytes | memoryview, /) -> int:
        count = len(data)
        self._pending.append(bytes(data))
        self._pending_bytes += count
        if self._pending_bytes >= _GATHER_BYTES:
            self.flush()
        self.size += count
        return count

    def flush(self) -> None:
        data = memoryview(b"".join(self._pending))
        self._pending, self._pending_bytes = [], 0
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as e:
            raise told(self._uri, e) from e

    def close(self) -> None:
        self.closed = True

    def stage(self) -> dict[str, str]:
        self.flush()
        try:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._folder.sync()
        except OSError as e:
            raise told(self._uri, e) from e
        return {"temp": self._temp, "name": self._name}

    def finish(self) -> None:
        self._folder.publish(self.stage())

    def abort(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._pending = []
        self._folder.remove(self._temp)


class LocalFolder:
    """A file:// URI below the roots; made when it is first written to. See `batchline.data.places.Folder`."""

    def __init__(self, uri: str, roots: Sequence[str], *, hidden: str | None) -> None:
        if has_wildcards(uri):
            raise SinkError(f"{uri} has wildcards: an output is one folder.")
        self.uri = uri.rstrip("/") + "/"
        path = local_path(uri, SinkError)
        self._root, self._parts = below(
            [os.path.realpath(root) for root in roots],
            path,
            os.path.realpath(hidden) if hidden else None,
            uri,
            SinkError,
        )

    def probe(self) -> None:
        upload = self.create("check")
        try:
            upload.write(b"\n")
            upload.flush()
        finally:
            upload.abort()

    def create(self, name: str) -> LocalUpload:
        try:
            make_folder(self._root, self._parts)
        except OSError as e:
            raise told(self.uri, e) from e
        return LocalUpload(self, name)

    def publish(self, record: Mapping[str, str]) -> None:
        temp, name = record["temp"], record["name"]
        try:
            fd = open_below(self._root, self._parts, os.O_RDONLY | os.O_DIRECTORY)
            try:
                try:
                    os.rename(temp, name, src_dir_fd=fd, dst_dir_fd=fd)
                except FileNotFoundError:
                    os.stat(name, dir_fd=fd, follow_symlinks=False)
                os.fsync(fd)
            finally:
                os.close(fd)
        except FileNotFoundError as e:
            raise SinkError(f"{self.uri}{name} was written and is gone before it was published.") from e
        except OSError as e:
            raise told(self.uri + name, e) from e

    def discard(self, record: Mapping[str, str]) -> None:
        self.remove(record["temp"])

    def put(self, name: str, data: bytes) -> None:
        upload = self.create(name)
        try:
            upload.write(data)
            self.publish(upload.stage())
        except BatchlineError:
            upload.abort()
            raise

    def sweep(self, mark: str) -> None:
        try:
            fd = open_below(self._root, self._parts, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        except OSError as e:
            raise told(self.uri, e) from e
        try:
            for name in os.listdir(fd):  # noqa: PTH208 - of a descriptor
                if name.startswith(".") and name.endswith(_TEMP) and mark in name:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=fd)
        except OSError as e:
            raise told(self.uri, e) from e
        finally:
            os.close(fd)

    def open_file(self, name: str, flags: int) -> int:
        """A descriptor of a file in this folder; raises OSError."""
        return open_below(self._root, [*self._parts, name], flags)

    def remove(self, name: str) -> None:
        """Remove a file of this folder if it is there."""
        try:
            fd = open_below(self._root, self._parts, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.unlink(name, dir_fd=fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return
        except OSError as e:
            raise told(self.uri, e) from e

    def sync(self) -> None:
        """Make the folder's names durable; raises OSError."""
        fd = open_below(self._root, self._parts, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class LocalRoot:
    """The folder of the blob store; see `batchline.data.places.Root`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def folder(self, path: str) -> LocalFolder:
        try:
            Path(self._path).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise told("The blob store", e) from e
        return LocalFolder(local_uri(f"{self._path}/{path}"), (self._path,), hidden=None)

    def remove(self, key: str) -> None:
        path, _, name = key.rpartition("/")
        self.folder(path).remove(name)

    def keys(self, *, before: float) -> Iterator[str]:
        for folder, _, names in os.walk(self._path):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime >= before:
                        continue
                    if name.startswith("."):
                        path.unlink()  # an upload that nobody finished
                    else:
                        yield str(path.relative_to(self._path))


def make_folder(root: str, parts: Sequence[str]) -> None:
    """Make the folders `root/parts…` that are not there, following no link; raises OSError."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=fd)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
    finally:
        os.close(fd)


def told(uri: str, e: OSError) -> BatchlineError:
    """What the system says of writing a file, in our words."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SinkError(f"{uri} cannot be written: the disk is full. Make room, then retry the batch.")
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP):
        return SinkError(f"{uri} may not be written: the server lacks the permission.")
    if e.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENOENT):
        return SinkError(f"{uri} cannot be written: it or a part of its path is no folder.")
    if e.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE):
        return SinkUnavailableError(f"{uri} cannot be written now ({os.strerror(e.errno)}).")
    return SinkError(f"{uri} cannot be written ({os.strerror(e.errno or 0)}).")
