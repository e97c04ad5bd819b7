"""What the handlers stand on, in one place."""

from __future__ import annotations

import uuid
from concurrent.futures import Executor
from dataclasses import dataclass

from litestar.types import Receive

from api.admission import Admission, Chosen
from api.asking import Asking
from api.auth import Keys
from api.backlog import Backlog
from api.catalogue import Models
from api.commits import Commits
from api.reads import Reads
from api.shadows import Shadows
from batchline.job import TERMINAL, Admitted, JobView, NewJob
from batchline.metrics import SUBMITTED
from batchline.settings import Settings
from batchline.store import Store


@dataclass(frozen=True)
class Services:
    """One of each, made by `api.app.build`."""

    settings: Settings
    store: Store
    ask: Asking
    parsing: Executor
    keys: Keys
    models: Models
    backlog: Backlog
    admission: Admission
    commits: Commits
    shadows: Shadows
    reads: Reads

    async def commit(self, job: NewJob, chosen: Chosen) -> Admitted:
        """Commit a job; a new one goes to the shadow too. Raises as `Commits.commit`."""
        spec = chosen.model.spec
        admitted = await self.commits.commit(job, spec.policy.pool)
        SUBMITTED.labels(spec.name).inc()
        if chosen.shadow is not None and admitted.id == job.id:
            self.shadows.offer(job, chosen.shadow)
        return admitted

    def eta_s(self, view: JobView) -> float | None:
        """About how many seconds a queued job has to go."""
        if view.position is None:
            return None
        record = next((r for r in self.models.known.of(view.model) if r.spec.version == view.version), None)
        return self.backlog.eta_s(record.id, record.spec.policy.pool, view.position) if record else None

    async def ended(self, job_id: uuid.UUID, wait_s: float, receive: Receive) -> JobView | None:
        """The job once it has ended, or as it stands when the time is up."""
        with self.reads.watch(job_id) as watch:
            view = await self.reads.read(job_id)
            if view is None or view.status in TERMINAL:
                return view
            return await watch.wait(wait_s, receive) or await self.reads.read(job_id)
