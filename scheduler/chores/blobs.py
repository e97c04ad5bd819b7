"""Blobs: the bytes of deleted and expired files, then their rows; and blobs that belong to nobody."""

from __future__ import annotations

import itertools
import logging
import uuid

from batchline.batch import BATCH_TERMINAL, parse_file_id
from batchline.errors import BatchlineError, NotFoundError
from batchline.settings import Settings
from batchline.store import Store
from scheduler.chore import Chore
from scheduler.doors import Doors

log = logging.getLogger("scheduler.blobs")

PORTION = 100
_ORPHAN_S = 86400.0
"""Whoever writes a blob has entered it by then."""
_ORPHANS = 10_000
"""Old blobs looked at in one step."""


def blobs(settings: Settings, store: Store, doors: Doors) -> Chore:
    """Files whose rows say that they may go. A blob that cannot be deleted is tried again."""

    def step() -> int:
        gone: list[uuid.UUID] = []
        for file_id, blob in store.files.take_garbage(kept_s=settings.files_kept_s, limit=PORTION):
            try:
                doors.blobs.delete(blob)
            except BatchlineError as e:
                log.warning("blob not deleted", extra={"blob": blob, "error": e.detail})
            else:
                gone.append(file_id)
        if gone:
            store.files.forget(gone)
        return len(gone)

    return Chore("blobs", 30.0, step, portion=PORTION)


def orphans(store: Store, doors: Doors) -> Chore:
    """Blobs older than a day that no row knows: of uploads and of attempts that were killed."""

    def step() -> int:
        old = itertools.islice(doors.blobs.garbage(older_s=_ORPHAN_S), _ORPHANS)
        gone = [key for key in old if _is_orphan(store, key)]
        for key in gone:
            doors.blobs.delete(key)
        if gone:
            log.info("orphaned blobs deleted", extra={"blobs": len(gone)})
        return len(gone)

    return Chore("orphans", 6 * 3600.0, step)


def _is_orphan(store: Store, key: str) -> bool:
    kind, _, rest = key.partition("/")
    try:
        if kind == "files":
            return store.files.read(parse_file_id(rest)) is None
        if kind == "parts":
            batch = store.batches.read(uuid.UUID(rest.partition("/")[0]))
            return batch is None or batch.status in BATCH_TERMINAL
    except (NotFoundError, ValueError):
        log.debug("blob of an unknown kind", extra={"blob": key})
    return False
