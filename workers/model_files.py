"""Where a model's bytes come from: the folder of models, else by digest this disk's cache, else the blob store.

Whatever their way, bytes are used only if their sha256 is the one in the catalogue. So neither a tampered blob nor a
cache that two workers write into at once can give wrong ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import time
from pathlib import Path

from batchline.data.model_blobs import MOST_BYTES, ModelBlobs
from batchline.errors import ModelError
from batchline.model import ModelSpec

log = logging.getLogger("workers")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMP = ".fetched-"
_STALE_S = 3600.0
"""A file that is still being written after that belongs to nobody."""


class Cache:
    """Files by digest on this disk, up to so many bytes, least recently used go first; shared by all workers here.

    Whatever else lies in the folder is not counted and stays.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def get(self, digest: str) -> bytes | None:
        """The file if it is there and sound; one that is not is removed."""
        path = self._folder / digest
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == digest:
                with contextlib.suppress(OSError):
                    os.utime(path)
                return data
            log.warning("cached file has other bytes; removed", extra={"path": str(path)})
            path.unlink(missing_ok=True)
        except OSError as e:
            if not isinstance(e, FileNotFoundError):
                log.warning("model cache not read", extra={"path": str(path), "error": e.strerror})
        return None

    def put(self, digest: str, data: bytes) -> None:
        """Keep a file, whole or not at all; without room, or on a disk that takes none, it is not kept."""
        if len(data) > self._limit_bytes:
            return
        temp = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data))
            fd, temp = tempfile.mkstemp(prefix=_TEMP, dir=self._folder)
            with open(fd, "wb") as file:  # noqa: PTH123 - of a descriptor
                file.write(data)
            Path(temp).rename(self._folder / digest)
        except OSError as e:
            log.warning("model not kept on this disk", extra={"folder": str(self._folder), "error": e.strerror})
            if temp is not None:
                Path(temp).unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        kept: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another worker makes room as well
                found = path.stat()
                if path.name.startswith(_TEMP) and time.time() - found.st_mtime > _STALE_S:
                    path.unlink()
                elif _DIGEST.fullmatch(path.name):
                    kept.append((found.st_mtime, found.st_size, path))
        room = self._limit_bytes - wanted - sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if room >= 0:
                return
            path.unlink(missing_ok=True)
            room += size


class ModelFiles:
    """Reads the files of versions."""

    def __init__(self, repository: Path, blobs: ModelBlobs | None = None, cache: Cache | None = None) -> None:
        """Without blobs, what is not in the repository is nowhere."""
        self._repository = repository
        self._blobs = blobs
        self._cache = cache

    def read(self, spec: ModelSpec, name: str) -> bytes:
        """The bytes of one file of a version.

        Raises:
            ModelError: they are nowhere, or wherever they are they are others.
            SourceUnavailableError: the blob store does not answer; may be tried again.
        """
        digest = spec.files.get(name)
        if digest is not None and not _DIGEST.fullmatch(digest):
            raise ModelError(f"{spec.ref} has {digest[:80]!r} for a sha256 of {name} in the catalogue.")
        try:
            data = (self._repository / spec.name / spec.version / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as e:
            if digest is None or self._blobs is None:
                raise ModelError(f"{spec.ref} has no {name} in the model repository.") from e
            return self._fetched(spec, name, digest, self._blobs)
        except OSError as e:
            raise ModelError(f"{spec.ref} cannot be read from the model repository: {e.strerror}.") from e
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise ModelError(f"{spec.ref} in the model repository has other bytes than the catalogue knows.")
        return data

    def _fetched(self, spec: ModelSpec, name: str, digest: str, blobs: ModelBlobs) -> bytes:
        data = self._cache.get(digest) if self._cache else None
        if data is None:
            at = time.monotonic()
            try:
                data = blobs.fetch(digest, most_bytes=spec.size_bytes if name == spec.file else MOST_BYTES)
            except ModelError as e:
                raise ModelError(f"{spec.ref} is not in this worker's model repository, and {e.detail}.") from e
            if self._cache:
                self._cache.put(digest, data)
            told = {"model": spec.ref, "file": name, "bytes": len(data), "ms": round((time.monotonic() - at) * 1000)}
            log.info("model file fetched", extra=told)
        return data
