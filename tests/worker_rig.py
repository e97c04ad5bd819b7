"""One worker's engine inside the test: real Postgres, real Redis, real models, and nudges that are only counted."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import stack

from batchline import registry
from batchline.job import Lane, NewJob
from batchline.queue.hints import Hints
from batchline.rows import RowBlock, pack
from batchline.settings import Settings
from batchline.store import Store
from workers.bulk_sizes import BulkSizes
from workers.engine import Engine
from workers.leaving import Leave
from workers.model_files import ModelFiles
from workers.models import Models
from workers.predict import Device, Predictor, Sizes
from workers.runtimes.contract import OpenRuntime
from workers.runtimes.onnx_runtime import opener
from workers.slices import SliceRunner
from workers.turns import Turns
from workers.works import Works


@dataclass
class CountedNudges:
    """A Nudger that sends nothing."""

    sent: list[tuple[str, Lane]] = field(default_factory=list)

    def nudge(self, pool: str, lane: Lane, *, force: bool = False) -> None:
        self.sent.append((pool, lane))

    def close(self) -> None:
        pass


class Rig:
    """An engine under a registered worker, and short ways to submit and to read."""

    def __init__(
        self, store: Store, redis_url: str, repository: Path, *, open_runtime: OpenRuntime | None = None, **changes: Any
    ) -> None:
        self.store = store
        self.repository = repository
        self.settings = Settings(models=repository, **({"max_failures": 2} | changes))
        self.models = Models(
            ModelFiles(repository),
            store.catalogue,
            open_runtime or opener("cpu", 1),
            limit_bytes=self.settings.models_limit_bytes,
        )
        self.sizes, self.turns, self.device, self.leave = Sizes(), Turns(), Device(), Leave()
        self.nudges = CountedNudges()
        self.empty: list[None] = []
        """One entry each time that claims brought nothing though there was work."""
        self.hints = Hints(redis_url)
        self.worker_id = stack.a_worker(store, lease_s=self.settings.lease_s)
        self.engine = self.an_engine(store.claims)

    def an_engine(self, claims: Any) -> Engine:
        predictor = Predictor(self.device, self.sizes)
        run_slice = SliceRunner(
            self.settings,
            claims=claims,
            slices=self.store.slices,
            open_work=Works(self.settings, self.store.results).open,
            predictor=predictor,
            pace=BulkSizes(self.sizes, bulk_s=self.settings.bulk_ms / 1000),
            turns=self.turns,
            draining=self.leave.draining,
        )
        return Engine(
            self.settings,
            claims=claims,
            models=self.models,
            predictor=predictor,
            sizes=self.sizes,
            turns=self.turns,
            hints=self.hints,
            nudger=self.nudges,
            worker_id=lambda: self.worker_id,
            run_slice=run_slice,
            leave=self.leave,
            on_empty=lambda: self.empty.append(None),
        )

    def add(self, name: str, path: Path, **policy: Any) -> int:
        """Import a model; returns its number."""
        spec = registry.import_model(
            self.repository, name, path, self.store.catalogue.register_model, {"policy": policy} if policy else None
        )
        return next(r.id for r in self.store.catalogue.models() if r.spec.ref == spec.ref)

    def submit(self, model_id: int, columns: dict[str, Any], **changes: Any) -> NewJob:
        """Submit one job; columns are name -> rows (an array, or a list of arrays)."""
        columns = {n: v if isinstance(v, list) else np.asarray(v) for n, v in columns.items()}
        count = len(next(iter(columns.values())))
        job = stack.new_job(model_id, rows=count, payload=pack(RowBlock(count, columns)), **changes)
        self.store.jobs.submit([job])
        return job

    def pixels(self, model_id: int, *rows: Sequence[float], **changes: Any) -> NewJob:
        """A job of rows for a model with the one float input x."""
        return self.submit(model_id, {"x": np.array(rows, dtype=np.float32)}, **changes)

    def work(self, limit: int = 50) -> list[dict[str, Any]]:
        """Claim until there is nothing; returns the summaries."""
        done: list[dict[str, Any]] = []
        for _ in range(limit):
            summary = self.engine.run(Lane.ONLINE)
            if not summary["jobs"]:
                break
            done.append(summary)
        return done

    def view(self, job: NewJob) -> Any:
        return self.store.jobs.read([job.id])[job.id]

    def outputs(self, job: NewJob) -> Any:
        text = self.view(job).outputs
        return None if text is None else json.loads(text)

    def statuses(self, jobs: Sequence[NewJob]) -> list[str]:
        found: dict[uuid.UUID, Any] = self.store.jobs.read([j.id for j in jobs])
        return [str(found[j.id].status) for j in jobs]
