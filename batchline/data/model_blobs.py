"""The files of registered models in the blob store, each under its sha256: whoever knows the digest can check them.

    models/SHA256      a model.onnx or model.pt2, a tokenizer.json, ...; the spec in the catalogue names them by digest

They are written before a model is registered and never change, so that a worker needs no folder of models: it fetches
what the catalogue names, and takes nothing whose sha256 is another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from batchline.data.blobs import CHUNK_BYTES, Blobs
from batchline.errors import ModelError, SourceError
from batchline.model import ModelSpec

MOST_BYTES = 2**31 - 1
"""Of one file, where its size is not known: what ONNX allows."""


class ModelBlobs:
    """The part of the blob store that belongs to models; safe to share among threads."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def publish(self, spec: ModelSpec, folder: Path) -> None:
        """Put the files of a version there; what is there under their digests is replaced, so this also mends.

        Args:
            spec: names the files and their digests.
            folder: holds the files.

        Raises:
            ModelError: a file has other bytes than the spec says, or cannot be read; it is not put there.
            SinkError, SinkUnavailableError: the store does not take them.
        """
        for name, digest in spec.files.items():
            self._blobs.put(_key(digest), _chunks(folder / name, digest))

    def has(self, spec: ModelSpec) -> bool:
        """Whether all files of a version are there, as far as their presence and the model's size tell.

        Raises:
            SourceUnavailableError: it cannot be told now.
        """
        try:
            for name, digest in spec.files.items():
                with self._blobs.open(_key(digest)) as blob:
                    if name == spec.file and blob.size != spec.size_bytes:
                        return False
        except SourceError:
            return False
        return True

    def fetch(self, digest: str, *, most_bytes: int = MOST_BYTES) -> bytes:
        """The bytes with this sha256.

        Raises:
            ModelError: there are none, or other ones; says what to do.
            SourceUnavailableError: may be tried again.
        """
        try:
            blob = self._blobs.open(_key(digest))
        except SourceError as e:
            raise ModelError(
                f"the blob store (BATCHLINE_BLOBS) does not have its file {digest[:12]}…: import the model again where"
                " BATCHLINE_BLOBS is the workers', or start a worker on the folder that it was imported into"
            ) from e
        with blob:
            if blob.size > most_bytes:
                raise _other_bytes(digest)
            data = bytearray()
            for chunk in blob.chunks():
                data += chunk
        if hashlib.sha256(data).hexdigest() != digest:
            raise _other_bytes(digest)
        return bytes(data)


def _key(digest: str) -> str:
    return f"models/{digest}"


def _other_bytes(digest: str) -> ModelError:
    return ModelError(
        f"the blob store has other bytes under {digest[:12]}…, which are not used: import the model again to put its"
        " own there"
    )


def _chunks(path: Path, digest: str) -> Iterator[bytes]:
    """The file; raises ModelError at its end if it was not the one that was meant."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                found.update(chunk)
                yield chunk
    except OSError as e:
        raise ModelError(f"{path} cannot be read: {e.strerror}.") from e
    if found.hexdigest() != digest:
        raise ModelError(f"{path} has other bytes than its spec says; they are not put into the blob store.")
