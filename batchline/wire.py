"""The JSON shapes that api/ sends and client.py reads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from batchline.batch import BatchFault, Condition, Input, Output
from batchline.webhook import Webhook

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
    webhook: Webhook | None = None


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
    webhook: Webhook | msgspec.UnsetType = msgspec.UNSET
    """Only of a job that has one."""
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


class Expiry(msgspec.Struct, forbid_unknown_fields=True):
    """How long a file is kept, from its creation: an hour to thirty days."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=3600, le=2_592_000)]


class RequestsBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/batches, OpenAI's kind: one request a line of an uploaded file."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    output_expires_after: Expiry | None = None
    webhook: Webhook | None = None


class InputBody(msgspec.Struct, forbid_unknown_fields=True):
    """Where a data set's rows come from: exactly one of `rows`, `file_id`, `uri`, `table`; see `Input`."""

    rows: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    file_id: str | None = None
    """An uploaded file; its format is told by its name, where `format` is absent."""
    uri: str | None = None
    format: Literal["jsonl", "csv", "parquet"] | None = None
    database: str | None = None
    table: str | None = None
    where: list[Condition] | None = None
    key: str | None = None
    columns: list[str] | None = None


class DataSetBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/batches, a data set: rows of a source scored into a sink."""

    model: str
    input: InputBody
    output: Output | None = None
    version: str | int | None = None
    priority: Priority = 5
    error_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=31_536_000)] | None = None
    deadline: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    metadata: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    webhook: Webhook | None = None


class FileBody(msgspec.Struct):
    """A file as OpenAI shows it; times are unix seconds."""

    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str = "processed"
    status_details: str | None = None
    object: str = "file"


class FileList(msgspec.Struct):
    """GET /v1/files."""

    data: list[FileBody]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class FileDeleted(msgspec.Struct):
    """DELETE /v1/files/{id}."""

    id: str
    deleted: bool = True
    object: str = "file"


class RequestCounts(msgspec.Struct):
    """OpenAI's counts: rows of a data set, lines of a file of requests."""

    total: int
    completed: int
    failed: int


class BatchRows(msgspec.Struct):
    """Rows by their fate; the parts add up to `total` at every read."""

    total: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    running: int
    queued: int


class BatchSlices(msgspec.Struct):
    """The jobs that a batch was cut into."""

    total: int
    done: int


class BatchErrors(msgspec.Struct):
    """Why a batch failed as a whole."""

    data: list[BatchFault]
    object: str = "list"


class BatchBody(msgspec.Struct):
    """A batch: every field of OpenAI's, then ours. Times are unix seconds."""

    id: str
    endpoint: str
    completion_window: str | None
    """None for a data set, whose deadline is `expires_at`."""
    input_file_id: str | None
    """None for a data set that is not inline."""
    status: str
    errors: BatchErrors | None
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: msgspec.Raw | None
    model: str | None
    version: str | None
    input: Input | None
    output: Output | None
    rows: BatchRows
    slices: BatchSlices
    rows_per_s: float
    """Over the last minute."""
    eta_s: float | None
    """Of the rows that are left, at rows_per_s; None while nothing is measured and when the batch has ended."""
    paused_at: int | None
    priority: int
    error_threshold: float | None
    parent_id: str | None
    schedule_id: str | None
    fire_at: int | None
    usage: None = None
    """OpenAI's count of tokens: there are none."""
    cost: float | None = None
    """What its slices cost so far, in the currency of the prices; None where nothing has a price."""
    webhook: Webhook | msgspec.UnsetType = msgspec.UNSET
    """Only of a batch that has one."""
    object: str = "batch"


class BatchList(msgspec.Struct):
    """GET /v1/batches: newest first."""

    data: list[BatchBody]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class OpenAIError(msgspec.Struct):
    """One error in OpenAI's words; `errors` has every fault with its JSON pointer."""

    message: str
    type: str
    param: str | None
    code: str | None
    errors: list[FaultBody] = []


class OpenAIErrorBody(msgspec.Struct):
    """Errors of /v1/files and /v1/batches."""

    error: OpenAIError
