"""A scheduler's parts over a test's database and folder, and batches over real files for them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import msgspec
import stack

from batchline.batch import BatchView, DataSet, Input, NewBatch, Output, Slice
from batchline.data import places_of
from batchline.job import Lane, new_job_id
from batchline.settings import Settings
from batchline.store import Store
from scheduler.doors import Doors
from scheduler.finds import Finds
from scheduler.planning import Planner


class Nudges:
    """Remembers nudges."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Lane]] = []

    def nudge(self, pool: str, lane: Lane, *, force: bool = False) -> None:
        self.sent.append((pool, lane))

    def close(self) -> None: ...


class Rig:
    """One scheduler's parts; `folder` is its data root, `blobs` its blob store."""

    def __init__(self, store: Store, folder: Path, **settings: Any) -> None:
        self.store = store
        self.folder = folder / "data"
        self.blobs = folder / "blobs"
        for place in (self.folder, self.blobs):
            place.mkdir(exist_ok=True)
        self.settings = Settings(
            **{"data_roots": str(self.folder), "blobs": f"file://{self.blobs}", "slice_rows": 10} | settings
        )
        self.nudges = Nudges()
        self.doors = Doors(places_of(self.settings), store)
        self.finds = Finds(store)
        self.planner = Planner(self.settings, store, self.nudges, self.doors, self.finds)

    def model(self, **changes: Any) -> int:
        """A model of 64 floats, registered."""
        return self.store.catalogue.register_model(stack.a_spec(**changes))

    def rows(self, name: str, count: int, *, start: int = 0) -> str:
        """A JSONL file of rows with a key and the model's input; its URI."""
        lines = [json.dumps({"id": start + n, "x": [0.5] * 64}) for n in range(count)]
        (self.folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"file://{self.folder}/{name}"

    def batch(self, uri: str, output: Output | None = None, **changes: Any) -> uuid.UUID:
        """Submit a batch over a URI."""
        wanted = DataSet("digits", "1", Input(uri=uri, format="jsonl", key="id"), output or Output())
        return self.submit("data_set", msgspec.json.encode(wanted), **changes)

    def submit(self, kind: str, body: bytes, **changes: Any) -> uuid.UUID:
        fields: dict[str, Any] = {"id": new_job_id(), "tenant_id": stack.TENANT, "kind": kind, "body": body}
        batch = NewBatch(**fields | changes)
        self.store.batches.submit(batch)
        return batch.id

    def read(self, batch_id: uuid.UUID) -> BatchView:
        found = self.store.batches.read(batch_id)
        assert found is not None
        return found

    def slices(self, batch_id: uuid.UUID) -> list[Slice]:
        return [msgspec.json.decode(v.payload, type=Slice) for v in self.store.batches.slices(batch_id)]

    def faults(self, batch_id: uuid.UUID) -> list[dict[str, Any]]:
        return json.loads(self.read(batch_id).errors or "[]")
