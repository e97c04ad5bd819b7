"""What the SDK tells of batches: the batch as a frozen value, its result lines as rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec

from batchline.batch import BATCH_TERMINAL, BatchFault, BatchStatus
from batchline.client.results import Output, RowError
from batchline.errors import BatchlineError
from batchline.webhook import Webhook
from batchline.wire import BatchErrors, BatchRows, BatchSlices


class BatchInfo(msgspec.Struct, frozen=True):
    """A batch as the server last told it. Times are unix seconds."""

    id: str
    status: BatchStatus
    created_at: int
    rows: BatchRows
    slices: BatchSlices = msgspec.field(default_factory=lambda: BatchSlices(0, 0))
    model: str | None = None
    version: str | None = None
    rows_per_s: float = 0.0
    """Over the last minute."""
    eta_s: float | None = None
    errors: BatchErrors | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None
    expires_at: int | None = None
    """The deadline."""
    paused_at: int | None = None
    input: dict[str, object] | None = None
    output: dict[str, object] | None = None
    metadata: dict[str, str] | None = None
    priority: int = 5
    error_threshold: float | None = None
    parent_id: str | None = None
    schedule_id: str | None = None
    fire_at: int | None = None
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    cost: float | None = None
    """In the currency of the operator's prices; None where nothing has a price."""
    webhook: Webhook | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the status will never change again."""
        return self.status in BATCH_TERMINAL

    @property
    def ended_at(self) -> int | None:
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at

    @property
    def faults(self) -> Sequence[BatchFault]:
        """Why it failed as a whole; empty for a batch that did not."""
        return self.errors.data if self.errors else ()


class BatchPage(msgspec.Struct, frozen=True):
    """GET /v1/batches."""

    data: tuple[BatchInfo, ...]
    last_id: str | None = None
    has_more: bool = False


class UploadedFile(msgspec.Struct, frozen=True):
    """POST /v1/files."""

    id: str
    bytes: int


class LinePage(msgspec.Struct, frozen=True):
    """Result lines of consecutive rows."""

    lines: Sequence[bytes]
    complete: bool
    """Whether the batch had ended when they were read."""

    @property
    def last_row(self) -> int:
        return msgspec.json.decode(self.lines[-1], type=_Numbered).row


class _Numbered(msgspec.Struct):
    row: int


class _Fault(msgspec.Struct):
    code: str
    message: str


_LINE = msgspec.json.Decoder(dict[str, object])


def each_line(page: LinePage) -> Iterator[Output | RowError]:
    """The rows of a page: the output of each, or why there is none."""
    for line in page.lines:
        row = _LINE.decode(line)
        if isinstance(row.get("error"), dict):
            fault = msgspec.convert(row["error"], _Fault)
            yield RowError(cast("int", row["row"]), fault.code, fault.message)
        else:
            yield row


def arrow() -> Any:
    """The module pyarrow.

    Raises:
        BatchlineError: it is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - see above
    except ImportError as e:
        raise BatchlineError("Tables need pyarrow, which is not installed: pip install 'batchline[data]'.") from e
    return pa
