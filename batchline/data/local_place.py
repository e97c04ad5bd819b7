"""Files of this machine, below folders that the operator allows: neither `..` nor a symlink leads out of them.

A path is resolved first and must then lie below a resolved root; it is opened from the root's descriptor, folder by
folder, following no link, so that nobody can put one in between.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchline.data.places import Listed
from batchline.data.uris import (
    Format,
    belongs,
    fixed_folder,
    glob_matcher,
    has_wildcards,
    local_path,
    local_pattern,
    local_uri,
)
from batchline.errors import BatchlineError, SourceError, SourceUnavailableError

MAX_FILES = 1_000_000


class LocalFile:
    """One open file; see `batchline.data.places.OpenFile`."""

    def __init__(self, uri: str, fd: int, place: LocalPlace) -> None:
        self.uri = uri
        self.identity: str | None = None
        self._name = uri
        self._fd = fd
        self._place = place
        found = os.fstat(fd)
        self.size = found.st_size
        self.version = _version(found)

    def tail(self, count: int) -> None:
        """It is at hand."""

    def read_at(self, offset: int, count: int) -> bytes:
        got = self._pread(offset, count)
        if len(got) == count or not got:
            return got
        pieces = [got]
        done = len(got)
        while done < count and (more := self._pread(offset + done, count - done)):
            pieces.append(more)
            done += len(more)
        return b"".join(pieces)

    def _pread(self, offset: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, count, offset)
        except OSError as e:
            raise told(self.uri, e) from e

    def verify(self) -> None:
        again = self._place.open(self._name)
        again.close()
        if again.version != self.version or _version(os.fstat(self._fd)) != self.version:
            raise changed(self.uri)

    def again(self) -> LocalFile:
        copy = LocalFile(self.uri, os.dup(self._fd), self._place)
        copy.version = self.version
        return copy

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LocalPlace:
    """file:// below `roots`, but for what lies below `hidden`."""

    at_once = 1

    def __init__(self, roots: Sequence[str], *, hidden: str | None) -> None:
        self._roots = [os.path.realpath(root) for root in roots]
        self._hidden = os.path.realpath(hidden) if hidden else None

    def list(self, uri: str, kind: Format) -> Iterator[Listed]:
        pattern = local_pattern(uri) if has_wildcards(uri) else local_path(uri)
        if not has_wildcards(uri):
            root, parts = below(self._roots, pattern, self._hidden, uri, SourceError)
            if not Path(root, *parts).is_dir():
                self.open(uri).close()
                return iter((Listed(uri),))
            pattern = pattern.rstrip("/") + "/**"
        found = sorted(self._matches(pattern, kind, uri))
        if not found:
            raise SourceError(f"No file matches {uri}.")
        return (Listed(local_uri(path)) for path in found)

    def _matches(self, pattern: str, kind: Format, uri: str) -> Iterator[str]:
        fixed = fixed_folder(pattern)
        folder = os.path.normpath(fixed).rstrip("/")
        pattern = f"{folder}/{pattern[len(fixed) :]}"
        matcher = glob_matcher(pattern)
        whole_folder = pattern.endswith("/**")
        count = 0
        for path in self._walk(folder or "/", None if "**" in pattern else pattern.count("/"), uri):
            if matcher.fullmatch(path) and (not whole_folder or belongs(path, kind)):
                count += 1
                if count > MAX_FILES:
                    raise SourceError(f"{uri} matches more than {MAX_FILES} files: name fewer.")
                yield path

    def _walk(self, folder: str, depth: int | None, uri: str) -> Iterator[str]:
        """Files below a folder but for hidden ones; `**` (no depth) follows no linked folder, as it may lead round."""
        root, parts = below(self._roots, folder, self._hidden, uri, SourceError)
        try:
            fd = open_below(root, parts, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as e:
            raise told(uri, e) from e
        try:
            entries = [(e.name, e.is_dir(), e.is_symlink()) for e in os.scandir(fd) if not e.name.startswith(".")]
        finally:
            os.close(fd)
        for name, is_folder, is_link in entries:
            path = f"{folder.rstrip('/')}/{name}"
            if not is_folder:
                yield path
            elif (not is_link if depth is None else path.count("/") < depth) and not self._is_hidden(path):
                yield from self._walk(path, depth, uri)

    def _is_hidden(self, path: str) -> bool:
        return self._hidden is not None and (os.path.realpath(path) + "/").startswith(self._hidden.rstrip("/") + "/")

    def open(self, uri: str, version: str | None = None, size: int | None = None) -> LocalFile:
        del version, size  # the open file tells, at no cost
        root, parts = below(self._roots, local_path(uri), self._hidden, uri, SourceError)
        try:
            fd = open_below(root, parts, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as e:
            raise told(uri, e) from e
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SourceError(f"{uri} is no file.")
        return LocalFile(uri, fd, self)


def below(
    roots: Sequence[str], path: str, hidden: str | None, uri: str, error: type[BatchlineError]
) -> tuple[str, list[str]]:
    """The root that a path lies in once its links are followed, and the names from there to it.

    Raises:
        SourceError, or what `error` says: it lies in none.
    """
    real = os.path.realpath(path)
    if hidden is None or not (real + "/").startswith(hidden.rstrip("/") + "/"):
        for root in roots:
            if (real + "/").startswith(root.rstrip("/") + "/"):
                return root, [name for name in real[len(root) :].split("/") if name]
    raise error(f"{uri} is not below a folder that the operator allows (BATCHLINE_DATA_ROOTS).")


def open_below(root: str, parts: Sequence[str], flags: int, mode: int = 0o666) -> int:
    """Open `root/parts…` without following any link below the root; raises OSError."""
    flags |= os.O_CLOEXEC
    if not parts:
        return os.open(root, flags, mode)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
        return os.open(parts[-1], flags | os.O_NOFOLLOW, mode, dir_fd=fd)
    finally:
        os.close(fd)


def _version(found: os.stat_result) -> str:
    return f"{found.st_size}:{found.st_mtime_ns}"


def changed(uri: str) -> SourceError:
    """The error for a file that is not what it was."""
    return SourceError(f"{uri} has changed since the batch was planned: submit the batch again.")


def told(uri: str, e: OSError) -> BatchlineError:
    """What the system says of reading a file, in our words."""
    if e.errno in (errno.ENOENT, errno.ENOTDIR):
        return SourceError(f"There is no file {uri}.")
    if e.errno in (errno.EACCES, errno.EPERM, errno.ELOOP):
        return SourceError(f"{uri} may not be read: the server lacks the permission.")
    if e.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EAGAIN):
        return SourceUnavailableError(f"{uri} cannot be read now ({os.strerror(e.errno)}).")
    return SourceError(f"{uri} cannot be read ({os.strerror(e.errno or 0)}).")
