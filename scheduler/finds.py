"""What batches refer to, asked of the store: models by name and version, files by id."""

from __future__ import annotations

import threading
import time
import uuid

from batchline.errors import Fault, NotFoundError
from batchline.model import ModelRecord
from batchline.store import Store
from batchline.store.batch_contract import FileView

ALIASES = ("production", "latest")
"""Both mean the highest version."""
_KNOWN_S = 1.0


class Finds:
    """Versions by name, read anew when they are a second old; for threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._versions: dict[str, dict[int, ModelRecord]] = {}
        self._read_at = float("-inf")

    def model(self, name: str, version: str | int | None) -> ModelRecord:
        """The version that is meant: a number, an alias, or None for the highest.

        Raises:
            NotFoundError: with the pointer /model or /version.
        """
        versions = self._fresh().get(name)
        if not versions:
            raise NotFoundError(
                f"There is no model {name[:100]!r} here.", faults=(Fault("/model", "is no model here"),)
            )
        if version is None or version in ALIASES:
            return versions[max(versions)]
        text = str(version)
        found = versions.get(int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else None
        if found is None:
            have = ", ".join(str(number) for number in sorted(versions))
            raise NotFoundError(
                f"The model {name} has no version {text[:20]!r}.",
                faults=(Fault("/version", f"must be {have} or production"),),
            )
        return found

    def file(self, file_id: uuid.UUID) -> FileView | None:
        """A file of any tenant."""
        return self._store.files.read(file_id)

    def _fresh(self) -> dict[str, dict[int, ModelRecord]]:
        with self._lock:
            if time.monotonic() - self._read_at > _KNOWN_S:
                versions: dict[str, dict[int, ModelRecord]] = {}
                for record in self._store.catalogue.models():
                    versions.setdefault(record.spec.name, {})[int(record.spec.version)] = record
                self._versions, self._read_at = versions, time.monotonic()
            return self._versions
