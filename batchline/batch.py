"""The batch: many jobs over one data set. Its statuses and legal moves, its body, its slices and their ranks.

State chart (OpenAI's eight statuses; terminal ones have no way out):

    validating --plan--> in_progress --close--> finalizing --end--> completed | failed | expired
        |--refuse--> failed                                 (cancelling --end--> cancelled)
        `--cancel--> cancelling <--cancel-- in_progress

`finalizing` and `cancelling` end when every slice has ended and every staged part is published. Paused is
`in_progress` with `paused_at`.
"""

from __future__ import annotations

import uuid
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

from batchline import ids
from batchline.errors import NotFoundError
from batchline.job import DEADLINE_MARGIN_S, DEFAULT_PRIORITY
from batchline.webhook import Webhook

MAX_SLICES = 10_000


class BatchStatus(StrEnum):
    """Where a batch stands; OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


BATCH_TERMINAL = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})

BATCH_TRANSITIONS: dict[str, tuple[frozenset[BatchStatus], frozenset[BatchStatus]]] = {
    "plan": (frozenset({BatchStatus.VALIDATING}), frozenset({BatchStatus.IN_PROGRESS})),
    "refuse": (frozenset({BatchStatus.VALIDATING}), frozenset({BatchStatus.FAILED})),
    "cancel": (frozenset({BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS}), frozenset({BatchStatus.CANCELLING})),
    "close": (frozenset({BatchStatus.IN_PROGRESS}), frozenset({BatchStatus.FINALIZING})),
    "end": (
        frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
        frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}),
    ),
}
"""move -> (from, to)."""


class Condition(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One condition of `where`: `["signed_up", ">=", "2026-11-01"]`; all of them must hold. Never SQL text."""

    column: str
    op: Literal["=", "!=", "<", "<=", ">", ">=", "in", "is null", "is not null"]
    value: str | int | float | bool | list[str | int | float] | None = None


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the rows come from: exactly one of `uri`, `table`, `file`."""

    uri: str | None = None
    """file:// or s3://, globs allowed; gzip by its name (.gz)."""
    format: Literal["jsonl", "csv", "parquet"] | None = None
    file: str | None = None
    """A key of the blob store: rows that came inline, one JSON row a line. Set by the API; clients cannot."""
    database: str | None = None
    """A name that the operator configured; needed when there is more than one."""
    table: str | None = None
    where: list[Condition] | None = None
    key: str | None = None
    """The column that names a row in the output; a table needs one to be cut by."""
    columns: list[str] | None = None
    """What the model reads, in this order; absent: the columns named like its inputs, else all but the key."""


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where results go: `uri` with `format`, or `table` with `mode`, or neither: Postgres, read through /results."""

    uri: str | None = None
    """A folder; parts, then manifest.json."""
    format: Literal["jsonl", "csv", "parquet"] | None = None
    database: str | None = None
    table: str | None = None
    mode: Literal["upsert", "append", "replace"] | None = None
    keep: list[str] = []
    """Input columns that are joined to the output."""


class DataSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """A batch that scores a data set, as it is stored: checked, complete, templates filled in."""

    model: str
    version: str
    """A number: aliases are resolved when the batch is taken."""
    input: Input
    output: Output = Output()


class Requests(msgspec.Struct, frozen=True, omit_defaults=True):
    """A batch of OpenAI's kind, as it is stored: one request a line of an uploaded file."""

    file: str
    """Key of the input in the blob store."""
    endpoint: str
    """`/v1/jobs` or `/v2/models/{m}/infer`."""
    completion_window: str
    output_expires_s: int | None = None
    """How long after their creation the output and error files are kept; None: settings.files_kept_s."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of one file or table that can be read by itself."""

    uri: str
    """file://, s3://, blob:KEY or table:SCHEMA.NAME."""
    version: str
    """ETag, or size and mtime, as planned: whoever reads something else stops. Empty for a table."""
    span: tuple[object, ...]
    """Format's own: row groups [from, to), byte range [from, to), or keys (after, upto]."""
    rows: int
    """How many rows it holds."""


class Slice(msgspec.Struct, frozen=True):
    """What one bulk job does: its payload, as msgspec JSON."""

    batch: uuid.UUID
    number: int
    first_row: int
    """Row number of its first row within the batch."""
    pieces: list[Piece]
    only: bytes | None = None
    """For a retry: the rows to do, as `rows_to_bits` packs them; the others are read and passed over."""


class Staged(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one attempt at one slice made and has not published: enough to publish it, repeatedly, from anywhere."""

    parts: list[dict[str, str]] = []
    """Sink's own: temp name and name, upload id and its ETags, …; empty for sinks that publish at once.

    Of requests: at most one `{"kind": "output", "blob": KEY}` and one `{"kind": "error", "blob": KEY}`, lines in the
    order of the input under the keys of `part_key`; the scheduler puts them together when the batch ends.
    """
    rows: int = 0
    errors: int = 0
    bytes: int = 0
    lines: int = 0
    """Of the default sink: result lines that were written to Postgres, not yet durable; the finish counts them."""
    expired: int = 0
    """Of requests: those of `errors` that the batch's window left no time for."""


LATE = ("batch_expired", "This request could not be executed before the completion window expired.")
"""Code and message of a request that the batch's window left no time for, as OpenAI has them."""


def part_key(batch_id: uuid.UUID, number: int, attempt: int, kind: Literal["output", "error"]) -> str:
    """Where in the blob store one attempt at a slice of requests leaves lines; whoever ends the batch removes them."""
    return f"parts/{batch_id.hex}/{number}-{attempt}-{kind}.jsonl"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive result lines in Postgres: JSON texts with a newline behind each."""

    first_row: int
    rows: int
    lines: bytes


class BatchFault(msgspec.Struct, frozen=True):
    """One entry of a batch's `errors.data`: OpenAI's shape."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of a batch by the fate of their slices; the parts add up to `total` at every read."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    running: int = 0
    queued: int = 0


def show_batch_id(batch_id: uuid.UUID) -> str:
    """`batch_…`, see `batchline.ids`."""
    return ids.show("batch_", batch_id)


def parse_batch_id(text: str) -> uuid.UUID:
    """The inverse of `show_batch_id`; NotFoundError for what is none."""
    return _parsed("batch_", text, "batch")


def show_file_id(file_id: uuid.UUID) -> str:
    """`file-…`, as OpenAI writes it."""
    return ids.show("file-", file_id)


def parse_file_id(text: str) -> uuid.UUID:
    """The inverse of `show_file_id`; NotFoundError for what is none."""
    return _parsed("file-", text, "file")


def show_schedule_id(schedule_id: uuid.UUID) -> str:
    """`sched_…`."""
    return ids.show("sched_", schedule_id)


def parse_schedule_id(text: str) -> uuid.UUID:
    """The inverse of `show_schedule_id`; NotFoundError for what is none."""
    return _parsed("sched_", text, "schedule")


def _parsed(prefix: str, text: str, what: str) -> uuid.UUID:
    found = ids.parse(prefix, text)
    if found is None:
        raise NotFoundError(f"There is no {what} with this id.")
    return found


PRIORITY_STEP_BULK_S = 3600.0
"""How many seconds of waiting one step of priority is worth among slices."""


def slice_rank_us(start: float, priority: int, deadline: float | None) -> int:
    """The rank of a slice.

    Args:
        start: its virtual start in epoch seconds: when the batch was planned, plus what the slices before it cost. So
            batches that run at the same time take turns, whenever they came.
        priority: 0 (first) to 9.
        deadline: epoch seconds by which the batch should be finished, or None.
    """
    wanted = start + (priority - DEFAULT_PRIORITY) * PRIORITY_STEP_BULK_S
    if deadline is not None:
        wanted = min(wanted, deadline - DEADLINE_MARGIN_S)
    return int(wanted * 1e6)


def rows_to_bits(rows: list[int], count: int) -> bytes:
    """Row offsets within a slice of `count` rows as one bit a row, compressed; `bits_to_rows` is the inverse."""
    bits = bytearray((count + 7) // 8)
    for row in rows:
        bits[row >> 3] |= 1 << (row & 7)
    return zlib.compress(bytes(bits), 1)


def bits_to_rows(packed: bytes) -> list[int]:
    """Row offsets, ascending."""
    bits = zlib.decompress(packed)
    return [at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch as admission hands it to the store."""

    id: uuid.UUID
    tenant_id: int
    kind: Literal["data_set", "requests"]
    body: bytes
    """`DataSet` or `Requests` as msgspec JSON."""
    model_id: int | None = None
    """Known at once for a data set; of requests, found by the planner."""
    priority: int = DEFAULT_PRIORITY
    deadline_at: datetime | None = None
    window: timedelta | None = None
    """Instead of a deadline: how long after the batch's creation, to the microsecond."""
    error_threshold: float | None = None
    """Share of failed rows above which the batch is failed and the rest of it cancelled."""
    metadata: str | None = None
    input_file_id: uuid.UUID | None = None
    parent_id: uuid.UUID | None = None
    schedule_id: uuid.UUID | None = None
    fire_at: datetime | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None
    webhook: Webhook | None = None


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch as it is read back."""

    id: uuid.UUID
    tenant_id: int
    kind: str
    status: BatchStatus
    body: bytes
    model: str | None
    version: str | None
    priority: int
    error_threshold: float | None
    metadata: str | None
    parent_id: uuid.UUID | None
    schedule_id: uuid.UUID | None
    fire_at: datetime | None
    input_file_id: uuid.UUID | None
    output_file_id: uuid.UUID | None
    error_file_id: uuid.UUID | None
    errors: str | None
    """JSON text: a list of BatchFault."""
    created_at: datetime
    deadline_at: datetime | None
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None
    paused_at: datetime | None
    counts: Counts
    rows_per_s: float
    """Rows done in the last minute, per second, each slice's spread evenly over the time it ran; 0 when nothing ran."""
    slices: int
    slices_done: int
    results_pruned: bool = False
    """Its result lines and the payloads of its slices have been removed; the files and tables that it wrote stay."""
    webhook: Webhook | None = None
