"""Publish: staged parts whose worker died between finishing its slice and publishing it."""

from __future__ import annotations

import logging
import uuid
from itertools import groupby

import msgspec

from batchline.batch import BatchFault, DataSet, Staged, show_batch_id
from batchline.errors import BatchlineError, RetryableError, StoreUnavailableError
from batchline.store import Store
from scheduler.chore import Chore
from scheduler.doors import Doors

log = logging.getLogger("scheduler.publish")

PORTION = 1000
_EVERY_S = 5.0
_Found = tuple[uuid.UUID, uuid.UUID, int, Staged]


def publish(store: Store, doors: Doors) -> Chore:
    """What a live worker is publishing itself at this moment is published twice, which is the same as once.

    A place that refuses for good stops the batch; one that does not answer is asked again, and at last by the ender.
    """

    def step() -> int:
        found = store.slices.unpublished(limit=PORTION)
        return sum(_publish(store, doors, batch, list(parts)) for batch, parts in groupby(found, lambda part: part[1]))

    return Chore("publish", _EVERY_S, step, portion=PORTION)


def _publish(store: Store, doors: Doors, batch_id: uuid.UUID, parts: list[_Found]) -> int:
    batch = store.batches.read(batch_id)
    if batch is None or batch.kind == "requests":
        return 0
    done: list[uuid.UUID] = []
    try:
        sink = doors.sink(batch, msgspec.json.decode(batch.body, type=DataSet))
        for job_id, _, number, staged in parts:
            sink.publish(number, staged)
            done.append(job_id)
    except StoreUnavailableError:
        raise
    except BatchlineError as e:
        log.warning("part not published", extra={"batch": show_batch_id(batch_id), "error": e.detail})
        if not isinstance(e, RetryableError):
            store.batches.stop(batch_id, BatchFault(e.code, e.detail))
    if done:
        store.slices.published(done)
    return len(done)
