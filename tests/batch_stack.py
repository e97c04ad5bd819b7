"""Batches for tests: builders, and the way of a batch through the store in one call a step."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import stack

from batchline.batch import BatchFault, DataSet, Input, NewBatch, Piece, Slice, Staged
from batchline.job import ClaimedJob, Lane, new_job_id
from batchline.store import Store
from batchline.store.batch_contract import FinishedSlice, NewSlice

HOLDER = uuid.UUID(int=7)
FAULT = BatchFault("bad_rows", "Too many.")
BODY = msgspec.json.encode(DataSet("digits", "1", Input(uri="file:///rows.jsonl", format="jsonl")))


def new_batch(**changes: Any) -> NewBatch:
    """A batch over a data set as admission hands it over; `changes` are fields of NewBatch."""
    fields: dict[str, Any] = {"id": new_job_id(), "tenant_id": stack.TENANT, "kind": "data_set", "body": BODY}
    return NewBatch(**fields | changes)


def slices_of(batch_id: uuid.UUID, sizes: list[int], *, rank: int = 0) -> list[NewSlice]:
    """Slices of so many rows each, one behind the other."""
    return [
        NewSlice(
            new_job_id(),
            rank + n,
            rows,
            Slice(batch_id, n, sum(sizes[:n]), [Piece("file:///rows.jsonl", "v1", (n,), rows)]),
        )
        for n, rows in enumerate(sizes)
    ]


def planned(store: Store, model_id: int, sizes: list[int], **changes: Any) -> uuid.UUID:
    """The id of a batch in progress whose slices have so many rows."""
    batch = new_batch(**changes)
    store.batches.submit(batch)
    found = store.batches.take_to_plan(HOLDER, lease_s=30.0)
    assert found is not None
    assert found.id == batch.id
    assert store.batches.plan(HOLDER, batch.id, slices_of(batch.id, sizes), model_id=model_id, note="{}")
    return batch.id


def claimed(store: Store, worker: uuid.UUID, model_id: int, count: int = 1) -> list[ClaimedJob]:
    """The next slices, in the worker's hands."""
    found: list[ClaimedJob] = []
    for _ in range(count):
        found += store.claims.claim(worker, model_id, Lane.BULK, rows=1).jobs
    return found


def finished(job: Any, *, failed: list[int] | None = None, rows: int | None = None, **changes: Any) -> FinishedSlice:
    """How a claimed slice ends: all rows but `failed` are good, and nothing is left to publish."""
    fields: dict[str, Any] = {"rows": job.rows if rows is None else rows, "failed": failed or []}
    fields |= {"staged": Staged(rows=fields["rows"], errors=len(fields["failed"])), "timings": "{}"}
    return FinishedSlice(id=job.id, attempt=job.attempt, **fields | changes)
