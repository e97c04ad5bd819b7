"""The JSON shapes that api/ sends and client.py reads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

Priority = Annotated[int, msgspec.Meta(ge=0, le=9, description="0 is first, 9 is last")]


class SubmitBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/jobs."""

    model: str
    inputs: msgspec.Raw
    version: str | int | None = None
    parameters: dict[str, object] = {}
    priority: Priority = 5
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=31_536_000)] | None = None
    deadline: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    metadata: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    """An object or null; read only after its size has been looked at."""


class QueuePlace(msgspec.Struct):
    """Where a queued job stands: `position` jobs are ahead (null past 1,000), about `eta_s` seconds."""

    position: int | None
    eta_s: float | None


class RowCounts(msgspec.Struct):
    """Rows of a job by how they ended; rows of an unfinished job are in neither."""

    total: int
    succeeded: int
    failed: int


class JobBody(msgspec.Struct):
    """A job as every route shows it. `outputs`, `errors`, `timings_ms` are passed through from the store unread."""

    id: str
    status: str
    model: str
    version: str
    rows: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    attempt: int
    priority: int
    queue: QueuePlace | None
    outputs: msgspec.Raw | None
    errors: msgspec.Raw | None
    row_counts: RowCounts
    timings_ms: msgspec.Raw | None
    metadata: msgspec.Raw | None
    deadline: str | None = None
    deadline_missed: bool = False
    code: str | None = None
    """Why a failed job failed, when no row is to blame: `poison`, `model_error`."""
    object: str = "job"


class JobList(msgspec.Struct):
    """GET /v1/jobs: newest first, without outputs."""

    data: list[JobBody]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class FaultBody(msgspec.Struct):
    """One fault of a body."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457 problem details. `type` is a URN made of the stable error code."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[FaultBody] = []
