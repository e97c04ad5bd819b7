"""What the store knows of batches: the batches, their slices, files, schedules, and results kept in Postgres.

As in `batchline.store.contract`: every method is one short transaction that happens whole or not at all, raises
StoreUnavailableError when Postgres cannot be asked, and changes nothing when somebody else was first.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from batchline.batch import BatchFault, BatchStatus, BatchView, Chunk, NewBatch, Slice, Staged
from batchline.errors import BatchlineError
from batchline.job import Admitted, ClaimedJob


@dataclass(frozen=True, slots=True)
class BatchPage:
    """Batches of one tenant, and whether there are more behind the last."""

    batches: Sequence[BatchView]
    has_more: bool


@dataclass(frozen=True, slots=True)
class NewSlice:
    """One bulk job of a plan."""

    job_id: uuid.UUID
    rank: int
    rows: int
    slice: Slice


@dataclass(frozen=True, slots=True)
class FinishedSlice:
    """How one claimed slice ended; `rows` may differ from the plan's count, `failed` are offsets within the slice."""

    id: uuid.UUID
    attempt: int
    rows: int
    failed: Sequence[int]
    staged: Staged
    timings: str
    """JSON object."""
    poison: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SliceWork:
    """What a worker must know beside the claimed payload."""

    batch: BatchView
    poison: Sequence[int]
    """Row offsets known to kill the process: they fail, unpredicted."""
    exposed: tuple[int, int] | None
    """The row offsets [from, to) that were in the forward pass, alone, when the process last died."""


@dataclass(frozen=True, slots=True)
class SliceView:
    """One slice of a batch as its job tells it."""

    job_id: uuid.UUID
    number: int
    status: str
    attempt: int
    rows: int
    rows_failed: int
    code: str | None
    message: str | None
    """Why the job failed as a whole."""
    payload: bytes
    """The `Slice`, msgspec JSON."""
    failed: bytes | None
    """Rows that failed, as `batchline.batch.rows_to_bits` packs them."""
    staged: Staged | None
    published: bool


@dataclass(frozen=True, slots=True)
class FileView:
    """An uploaded or produced file."""

    id: uuid.UUID
    tenant_id: int
    purpose: str
    filename: str
    bytes: int
    blob: str
    """Its key in the blob store."""
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule. `batch` is the JSON text of a POST /v1/batches body whose texts may hold `{fire_time:…}`."""

    id: uuid.UUID
    tenant_id: int
    name: str
    cron: str
    timezone: str
    batch: str
    catch_up: str
    overlap: str
    enabled: bool
    created_at: datetime
    next_fire_at: datetime | None


@dataclass(frozen=True, slots=True)
class Run:
    """One fire time of a schedule and what came of it: submitted, skipped (why), queued, failed (why)."""

    schedule_id: uuid.UUID
    fire_at: datetime
    outcome: str
    detail: str | None
    batch_id: uuid.UUID | None
    batch_status: BatchStatus | None
    created_at: datetime


class Batches(Protocol):
    """Batches as clients see them, and the moves of `batchline.batch.BATCH_TRANSITIONS`."""

    def submit(self, batch: NewBatch, *, most: int | None = None) -> Admitted | BatchlineError:
        """Store as `validating`; idempotency as for jobs (same key and body: the first batch's id).

        A tenant with `most` batches that have not ended gets QuotaError; never more, whoever submits meanwhile.
        """
        ...

    def read(self, batch_id: uuid.UUID) -> BatchView | None:
        """With counts: one aggregate over its slices, or frozen once it has ended. Of any tenant."""
        ...

    def list(self, tenant_id: int, *, after: uuid.UUID | None, limit: int) -> BatchPage:
        """Newest first. A page ends early rather than count very many slices, but has one batch if there is any."""
        ...

    def sharing(self, tenant_id: int, *, most: int) -> int:
        """How many of a tenant's newest batches, `most` of them, are in progress and not paused."""
        ...

    def cancel(self, tenant_id: int, batch_id: uuid.UUID) -> bool:
        """Validating | in_progress -> cancelling, and its queued and running slices -> cancelled. False: too late."""
        ...

    def pause(self, tenant_id: int, batch_id: uuid.UUID) -> bool:
        """Set paused_at and take its queued slices out of the queue (run_at = infinity); running ones finish."""
        ...

    def resume(self, tenant_id: int, batch_id: uuid.UUID) -> bool:
        """The inverse of `pause`."""
        ...

    def slices(self, batch_id: uuid.UUID, *, after: int = -1, limit: int = 1000) -> list[SliceView]:
        """Slices with number > after, by number."""
        ...

    # What the scheduler does. `take_*` gives one batch under a lease of `lease_s` to `holder`, None when there is none.

    def take_to_plan(self, holder: uuid.UUID, *, lease_s: float) -> BatchView | None:
        """A `validating` batch that nobody plans."""
        ...

    def plan(
        self, holder: uuid.UUID, batch_id: uuid.UUID, slices: Sequence[NewSlice], *, model_id: int, note: str
    ) -> bool:
        """Move plan: all slices as queued bulk jobs, one transaction. `note` (JSON: schema, counts) is kept.

        False: not ours any more. A batch without rows is planned with no slices and closes at once.
        """
        ...

    def note(self, batch_id: uuid.UUID) -> str | None:
        """What `plan` was given as note."""
        ...

    def refuse(self, holder: uuid.UUID, batch_id: uuid.UUID, faults: Sequence[BatchFault]) -> bool:
        """Move refuse."""
        ...

    def take_to_end(self, holder: uuid.UUID, *, lease_s: float) -> BatchView | None:
        """A batch whose slices have all ended: `close`s it if it is in_progress, then gives it to be ended.

        Parts that are staged and not published are for its holder to publish.
        """
        ...

    def end(
        self,
        holder: uuid.UUID,
        batch_id: uuid.UUID,
        status: BatchStatus,
        *,
        faults: Sequence[BatchFault] = (),
        output_file_id: uuid.UUID | None = None,
        error_file_id: uuid.UUID | None = None,
    ) -> bool:
        """Move end: freeze the counts."""
        ...

    def renew(self, holder: uuid.UUID, batch_id: uuid.UUID, *, lease_s: float) -> bool:
        """Hold the lease for `lease_s` from now. False: it ran out or is somebody else's: stop."""
        ...

    def release(self, holder: uuid.UUID, batch_id: uuid.UUID, *, retry_s: float) -> None:
        """Give up the lease; nobody takes it for `retry_s`."""
        ...

    def over_threshold(self) -> list[uuid.UUID]:
        """Batches in progress whose failed rows exceed error_threshold, or with a slice that failed as a whole and no
        threshold that forgives it: `stop` these.
        """
        ...

    def stop(self, batch_id: uuid.UUID, fault: BatchFault) -> bool:
        """Note the fault and cancel the queued and running slices; the batch then ends as failed."""
        ...

    def hold_paused(self) -> int:
        """Take slices of paused batches that came back to the queue out of it again."""
        ...

    def prune(self, *, results_kept_s: float, batches_kept_s: float) -> int:
        """One step: results, then rows of batches that ended so long ago, with their slices and jobs."""
        ...


class Slices(Protocol):
    """Slices in a worker's hands; the fence as for jobs. Retry and give-back are those of `Claims`."""

    def work(self, job: ClaimedJob) -> SliceWork | None:
        """What to do; None if the batch is gone."""
        ...

    def progress(self, worker_id: uuid.UUID, job: ClaimedJob, rows_done: int) -> bool:
        """Note progress, about once a second. False: cancelled, rescued or claimed again: stop."""
        ...

    def expose(self, worker_id: uuid.UUID, job: ClaimedJob, rows: tuple[int, int]) -> bool:
        """Note that the row offsets [from, to) enter a forward pass with nothing else in the process; from = to:
        none do.

        A crash while a stretch of more than one row is exposed charges nothing: the next attempt narrows it.
        """
        ...

    def condemn(self, worker_id: uuid.UUID, job: ClaimedJob, row: int) -> bool:
        """The process died while this row alone was exposed: add it to the slice's poison rows."""
        ...

    def finish(self, worker_id: uuid.UUID, done: FinishedSlice) -> bool:
        """Move FINISH: succeeded, or failed when every row failed; status, counts, failed rows, staged, together.

        True also for a repeat after a lost reply. False: stale; discard what was staged.

        Raises:
            SinkUnavailableError: result lines of this attempt are missing in Postgres; the slice is still the worker's.
        """
        ...

    def unpublished(self, *, limit: int) -> list[tuple[uuid.UUID, uuid.UUID, int, Staged]]:
        """Finished slices, of data sets that have not ended, whose part is not marked published:
        (job, batch, number, staged).
        """
        ...

    def published(self, job_ids: Sequence[uuid.UUID]) -> None:
        """Mark parts as published."""
        ...


class Results(Protocol):
    """The default sink: result lines in Postgres, seen only when their slice has finished with that attempt."""

    def write(self, job_id: uuid.UUID, attempt: int, chunks: Sequence[Chunk]) -> None:
        """Append chunks of a slice, in order; repeating a chunk after a lost reply writes it once."""
        ...

    def read(self, batch_id: uuid.UUID, *, after: int, limit: int) -> Iterator[bytes]:
        """Result lines of rows > after in row order, at most `limit` rows, up to the first unfinished slice."""
        ...

    def complete(self, batch_id: uuid.UUID) -> bool:
        """Whether the batch has ended, so that no more lines will come."""
        ...

    def sweep(self, batch_id: uuid.UUID) -> None:
        """Delete lines of attempts that lost."""
        ...


class Files(Protocol):
    """Uploaded files and output files of batches; the bytes are in the blob store."""

    def add(self, file: FileView) -> None:
        """Enter a file whose bytes are in place; an id that is known stays as it is."""
        ...

    def read(self, file_id: uuid.UUID) -> FileView | None:
        """Of any tenant; None for deleted ones."""
        ...

    def list(
        self, tenant_id: int, *, purpose: str | None, after: uuid.UUID | None, limit: int, ascending: bool = False
    ) -> list[FileView]:
        """Newest first, or oldest first."""
        ...

    def delete(self, tenant_id: int, file_id: uuid.UUID) -> bool:
        """Mark as deleted; the bytes go later."""
        ...

    def take_garbage(self, *, kept_s: float, limit: int) -> list[tuple[uuid.UUID, str]]:
        """Deleted and expired files whose blob may go: (id, blob). Files of unfinished batches stay."""
        ...

    def forget(self, file_ids: Sequence[uuid.UUID]) -> None:
        """Remove the rows of files whose blobs are gone."""
        ...


class Schedules(Protocol):
    """Schedules and their runs. The instants come from `batchline.cron`; here they are only kept."""

    def add(self, schedule: ScheduleView) -> ScheduleView | BatchlineError:
        """InvalidRequestError when the tenant has one of this name."""
        ...

    def update(self, seen: ScheduleView, schedule: ScheduleView) -> bool:
        """Replace all but id, tenant and created_at. False: it was changed, fired or deleted since it was seen."""
        ...

    def read(self, schedule_id: uuid.UUID) -> ScheduleView | None:
        """Of any tenant."""
        ...

    def list(self, tenant_id: int, *, after: uuid.UUID | None, limit: int) -> list[ScheduleView]:
        """By id, oldest first."""
        ...

    def delete(self, tenant_id: int, schedule_id: uuid.UUID) -> bool:
        """With its runs; its batches stay."""
        ...

    def due(self, *, limit: int) -> list[ScheduleView]:
        """Enabled schedules whose next_fire_at has come by the database's clock, and that clock's now."""
        ...

    def now(self) -> datetime:
        """The database's clock."""
        ...

    def fire(
        self,
        schedule_id: uuid.UUID,
        seen: datetime,
        runs: Sequence[Run],
        batches: Sequence[NewBatch],
        next_fire_at: datetime | None,
        *,
        most: int | None = None,
    ) -> bool:
        """Runs, batches and the next instant, in one transaction, if next_fire_at is still `seen`.

        A run that exists (schedule, fire_at) is left alone and its batch not inserted; where the tenant has `most`
        batches that have not ended, the run is skipped and says so. False: somebody else fired.
        """
        ...

    def run_now(self, run: Run, batch: NewBatch | None, *, most: int | None = None) -> Run | BatchlineError | None:
        """A run outside of the rhythm (run now, backfill), `queued` if it has no batch.

        It takes the place of one that was skipped or failed.

        Returns:
            The run; with a batch whose idempotency key was used before, what `run_of` gives. None if this fire time
            has run, or waits to. QuotaError, and nothing is kept, if the tenant has `most` batches that have not ended.
        """
        ...

    def run_of(self, schedule: ScheduleView, key: str, body_hash: bytes) -> Run | BatchlineError | None:
        """The run that was started under an idempotency key of the schedule's tenant.

        Returns:
            None if the key is new; ConflictError, KeyReusedError or ResultExpiredError as for other uses of a key.
        """
        ...

    def unfinished(self, schedule_id: uuid.UUID) -> int:
        """How many of its batches have not ended."""
        ...

    def queued(self, *, limit: int) -> list[Run]:
        """Oldest `queued` run of each schedule that has no unfinished batch."""
        ...

    def start_queued(self, run: Run, batch: NewBatch, *, most: int | None = None) -> bool:
        """A queued run becomes submitted, with its batch; False if it is not queued any more.

        Where the tenant has `most` batches that have not ended, it is skipped and says so.
        """
        ...

    def drop_queued(self, run: Run) -> bool:
        """A queued run gets the outcome (skipped, failed) and detail of `run`; False if it is not queued any more."""
        ...

    def runs(self, schedule_id: uuid.UUID, *, after: datetime | None, limit: int) -> list[Run]:
        """Newest first."""
        ...
