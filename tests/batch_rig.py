"""Batches without a scheduler: planned by the test itself, their slices as the store has them."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from batchline.batch import DataSet, Input, NewBatch, Output, Requests
from batchline.data import open_source, places_of
from batchline.job import new_job_id
from batchline.settings import Settings
from batchline.store import Store
from batchline.store.batch_contract import NewSlice, SliceView
from scheduler.slicing import Pace, put_together, slices_of

TENANT = 1


def settings_of(root: Path) -> dict[str, Any]:
    """Settings that let file:// below a folder be read and written."""
    return {"data_roots": str(root), "blobs": f"file://{root / 'blobs'}"}


def plan(store: Store, model_id: int, batch: NewBatch, slices: list[NewSlice]) -> uuid.UUID:
    """Store a batch and its slices; returns its id."""
    store.batches.submit(batch)
    holder = uuid.uuid4()
    taken = store.batches.take_to_plan(holder, lease_s=30)
    assert taken is not None
    assert taken.id == batch.id
    assert store.batches.plan(holder, batch.id, slices, model_id=model_id, note="{}")
    return batch.id


def data_set(
    store: Store, model_id: int, ref: str, settings: Settings, *, given: Input, output: Output, slice_rows: int
) -> uuid.UUID:
    """Plan a batch over a data set, as the scheduler would."""
    name, _, version = ref.partition("@")
    batch_id = new_job_id()
    body = msgspec.json.encode(DataSet(name, version, given, output))
    pieces = open_source(given, places_of(settings)).pieces(slice_rows)
    groups = put_together(pieces, slice_rows)
    slices = list(slices_of(batch_id, groups, Pace(time.time(), 1e-5)))
    return plan(store, model_id, NewBatch(batch_id, TENANT, "data_set", body, model_id), slices)


def requests(store: Store, model_id: int, key: str, endpoint: str, slices: Any, **changes: Any) -> uuid.UUID:
    """Plan a batch of requests; `slices` makes them from the batch's id, `changes` are fields of NewBatch."""
    batch_id = new_job_id()
    body = msgspec.json.encode(Requests(key, endpoint, "24h"))
    return plan(store, model_id, NewBatch(batch_id, TENANT, "requests", body, **changes), slices(batch_id))


def slices(store: Store, batch_id: uuid.UUID) -> list[SliceView]:
    return store.batches.slices(batch_id)
