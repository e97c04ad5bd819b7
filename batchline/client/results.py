"""What the SDK gives back: jobs, row errors and models as frozen values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TypeAlias

import msgspec

from batchline.job import TERMINAL, Status
from batchline.webhook import Webhook
from batchline.wire import QueuePlace, RowCounts

Output: TypeAlias = dict[str, object]
"""One row's outputs by name; non-finite numbers are the strings `NaN`, `Infinity`, `-Infinity`."""


class RowError(msgspec.Struct, frozen=True):
    """Why one row has no output; its neighbours may have theirs."""

    row: int
    code: str
    message: str


class MicroBatch(msgspec.Struct, frozen=True):
    """The forward pass that the job's last rows shared with others."""

    rows: int
    flush_reason: str = ""


class Timings(msgspec.Struct, frozen=True):
    """Where a finished job's time went, in milliseconds."""

    queued: float = 0.0
    batch_wait: float = 0.0
    load: float = 0.0
    predict: float = 0.0
    write: float = 0.0
    busy: float = 0.0
    """The job's part of the worker's time: what its cost is counted from."""
    micro_batch: MicroBatch | None = None


class Job(msgspec.Struct, frozen=True):
    """A job as the server last told it; `Client.get` tells it anew."""

    id: str
    status: Status
    model: str
    version: str
    rows: int
    created_at: datetime
    row_counts: RowCounts
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    priority: int = 5
    queue: QueuePlace | None = None
    webhook: Webhook | None = None
    outputs: tuple[Output | None, ...] | None = None
    """One entry a row, in the order of the rows; None for a row that failed. None as a whole until finished."""
    errors: tuple[RowError, ...] | None = None
    timings_ms: Timings | None = None
    metadata: dict[str, object] | None = None
    deadline: datetime | None = None
    deadline_missed: bool = False
    code: str | None = None
    """Why a failed job failed when no row is to blame."""

    @property
    def is_finished(self) -> bool:
        """Whether the status will never change again."""
        return self.status in TERMINAL


class JobPage(msgspec.Struct, frozen=True):
    """One page of GET /v1/jobs."""

    data: tuple[Job, ...]
    last_id: str | None = None
    has_more: bool = False


class ModelVersion(msgspec.Struct, frozen=True):
    """One version: its bytes' digest, its tensors as `{name, dtype, shape}` and its batching policy."""

    version: str
    digest: str = ""
    size_bytes: int = 0
    inputs: tuple[dict[str, object], ...] = ()
    outputs: tuple[dict[str, object], ...] = ()
    policy: dict[str, object] = {}
    text: dict[str, object] | None = None
    """Set when a row is a string."""


class Model(msgspec.Struct, frozen=True):
    """A model of the catalogue, its versions from the oldest."""

    id: str
    versions: tuple[ModelVersion, ...] = ()
    aliases: dict[str, str] = {}
    traffic: dict[str, object] = {}
    """Who gets the rows of jobs that name no version: `production`, `canary`, `shadow`."""


class Canary(msgspec.Struct, frozen=True):
    """A version that takes a part of production's jobs."""

    version: str
    percent: float


class VersionStats(msgspec.Struct, frozen=True):
    """What became of the jobs of a version that were submitted within the window; milliseconds are those of predict."""

    version: str
    jobs: int
    failed: int
    p50_ms: float | None = None
    p95_ms: float | None = None


class Compared(msgspec.Struct, frozen=True):
    """Copies for the shadow that were compared with the jobs of clients, and how many agree."""

    pairs: int
    agree: int


class Lately(msgspec.Struct, frozen=True):
    """How the versions did within the last `window_s` seconds."""

    window_s: float
    production: VersionStats
    canary: VersionStats | None = None
    shadow: VersionStats | None = None
    compared: Compared | None = None


class Traffic(msgspec.Struct, frozen=True):
    """Which version of a model takes the jobs that name none."""

    model: str
    production: str
    canary: Canary | None = None
    shadow: str | None = None
    updated_at: datetime | None = None
    """None: no rule is set, and production is the highest version."""
    lately: Lately | None = None
    """Of all tenants' jobs: None for a key without the scope admin, and after a change."""


class ModelPage(msgspec.Struct, frozen=True):
    """GET /v1/models."""

    data: tuple[Model, ...]


def each_row(job: Job) -> Iterator[Output | RowError]:
    """The rows of a finished job in their order: the output of each, or why there is none."""
    errors = {error.row: error for error in job.errors or ()}
    outputs = job.outputs or (None,) * job.rows
    for index, output in enumerate(outputs):
        if output is not None:
            yield output
        else:
            yield errors.get(index) or RowError(index, job.code or job.status, f"The job is {job.status}.")
