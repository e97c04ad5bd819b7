"""Threshold: stop batches that have failed already, before the rest of their rows is worked on in vain."""

from __future__ import annotations

import logging
import uuid

from batchline.batch import BatchFault, show_batch_id
from batchline.store import Store
from scheduler.chore import Chore
from scheduler.verdict import Whole, over

log = logging.getLogger("scheduler.threshold")

_PAGE = 1000


def threshold(store: Store) -> Chore:
    def step() -> int:
        return sum(_stop(store, batch_id) for batch_id in store.batches.over_threshold())

    return Chore("threshold", 2.0, step)


def _stop(store: Store, batch_id: uuid.UUID) -> bool:
    batch = store.batches.read(batch_id)
    if batch is None:
        return False
    whole, after = Whole(), -1
    while not whole.faults and (page := store.batches.slices(batch_id, after=after, limit=_PAGE)):
        whole.look(page)
        after = page[-1].number
    faults = over(batch, whole) or [BatchFault("failed", "Too many rows failed.")]
    log.info("batch stopped", extra={"batch": show_batch_id(batch_id), "error": faults[0].message})
    return store.batches.stop(batch_id, faults[0])
