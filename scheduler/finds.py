"""What batches refer to, asked of the store: models by name and version, files by id."""

from __future__ import annotations

import threading
import time
import uuid

from batchline.errors import Fault, NotFoundError
from batchline.model import ModelRecord
from batchline.store import Store
from batchline.store.batch_contract import FileView
from batchline.traffic import Versions

_KNOWN_S = 1.0


class Finds:
    """Versions by name, read anew when they are a second old; for threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known = Versions()
        self._read_at = float("-inf")

    def model(self, name: str, version: str | int | None, by: bytes | None = None) -> ModelRecord:
        """The version that is meant: a number, an alias, or None for what the model's traffic rule says.

        Args:
            name: of the model.
            version: which.
            by: what is asked for it is known by, for the rule; None: production takes it.

        Raises:
            NotFoundError: with the pointer /model or /version.
        """
        known = self._fresh()
        if not known.of(name):
            raise NotFoundError(
                f"There is no model {name[:100]!r} here.", faults=(Fault("/model", "is no model here"),)
            )
        found = known.find(name, version, by)
        if found is None:
            told = known.must_be(name, version, by)
            asked = f"The version of {name}" if version is None else f"The version {str(version)[:20]!r} of {name}"
            raise NotFoundError(f"{asked} {told}.", faults=(Fault("/version", told),))
        return found

    def file(self, file_id: uuid.UUID) -> FileView | None:
        """A file of any tenant."""
        return self._store.files.read(file_id)

    def _fresh(self) -> Versions:
        with self._lock:
            if time.monotonic() - self._read_at > _KNOWN_S:
                rules = self._store.traffic.rules()  # first: no rule names a version that is not there yet
                self._known, self._read_at = Versions(self._store.catalogue.models(), rules), time.monotonic()
            return self._known
