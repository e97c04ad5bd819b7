"""The ender: a batch whose slices have all ended is published to the last part, completed, and given its status.

Every step can be repeated, by this scheduler or another: publishing, manifest, swap, files whose ids follow from the
batch's, and the guarded end itself. What one that was killed has done, the next one finds done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec

from batchline import failpoints
from batchline.batch import BatchFault, BatchStatus, BatchView, DataSet, show_batch_id
from batchline.data.contract import Manifest, Sink
from batchline.errors import BatchlineError, RetryableError, StoreUnavailableError
from batchline.metrics import BATCHES_ENDED, BATCHES_PUT_OFF
from batchline.settings import Settings
from batchline.store import Store
from batchline.store.batch_contract import SliceView
from scheduler.doors import Doors
from scheduler.finds import Finds
from scheduler.output_files import OutputFiles
from scheduler.planning import PlanNote
from scheduler.station import Lease, Station
from scheduler.tries import Tries
from scheduler.verdict import Whole, verdict

log = logging.getLogger("scheduler.ending")

TRIES = 20
_CAP_S = 60.0
_PAGE = 1000


class Ender:
    """Ends one batch at a time, for a station."""

    def __init__(self, settings: Settings, store: Store, doors: Doors, finds: Finds) -> None:
        self._store = store
        self._doors = doors
        self._finds = finds
        self._files = OutputFiles(store, doors, kept_s=settings.files_kept_s)
        self._tries = Tries(TRIES, cap_s=_CAP_S)

    def station(self) -> Station:
        return Station("end", self._store, self._store.batches.take_to_end, self.work)

    def work(self, lease: Lease) -> None:
        """End the batch, or put it off."""
        try:
            self._end(lease)
        except StoreUnavailableError:
            raise  # the lease runs out and somebody ends it again
        except RetryableError as e:
            self._put_off(lease, e)
        except BatchlineError as e:
            self._give_up(lease, BatchFault(e.code, e.detail))
        except Exception:
            log.exception("ending failed", extra={"batch": show_batch_id(lease.batch.id)})
            self._put_off(
                lease, BatchlineError("The batch's results cannot be put together; the operator's log says why.")
            )
        else:
            self._tries.forget(lease.batch.id)

    def _end(self, lease: Lease) -> None:
        if lease.batch.kind == "requests":
            self._end_requests(lease)
        else:
            self._end_data_set(lease)

    def _end_data_set(self, lease: Lease) -> None:
        batch = lease.batch
        wanted = msgspec.json.decode(batch.body, type=DataSet)
        sink = self._doors.sink(batch, wanted)
        whole, parts = Whole(), list[str]()
        for page in self._pages(lease):
            whole.look(page)
            self._publish(sink, page)
            parts += [part["name"] for view in page if view.staged for part in view.staged.parts if "name" in part]
        status, faults = verdict(batch, whole)
        if lease.lost.is_set():
            return
        failpoints.hit("scheduler.before_complete")
        if status is BatchStatus.COMPLETED:
            sink.complete(self._manifest(lease, parts))
        failpoints.hit("scheduler.after_complete")
        self._sweep(sink, batch)
        failpoints.hit("scheduler.before_end")
        if self._store.batches.end(lease.holder, batch.id, status, faults=faults):
            self._note(lease, status)

    def _sweep(self, sink: Sink, batch: BatchView) -> None:
        """What lies about unpublished is of no harm; that it cannot be removed fails no batch."""
        try:
            sink.sweep()
        except StoreUnavailableError:
            raise
        except BatchlineError as e:
            log.warning("nothing swept", extra={"batch": show_batch_id(batch.id), "error": e.detail})

    def _publish(self, sink: Sink, page: list[SliceView]) -> None:
        waiting = [(view.job_id, view.number, view.staged) for view in page if view.staged and not view.published]
        for _, number, staged in waiting:
            sink.publish(number, staged)
            failpoints.hit("scheduler.after_publish")
        if waiting:
            self._store.slices.published([job_id for job_id, _, _ in waiting])

    def _manifest(self, lease: Lease, parts: list[str]) -> Manifest:
        batch, text = lease.batch, self._store.batches.note(lease.batch.id)
        note = msgspec.json.decode(text or "{}", type=PlanNote)
        return Manifest(
            batch=show_batch_id(batch.id),
            model=f"{batch.model}@{batch.version}",
            digest=note.digest,
            rows=batch.counts.total,
            succeeded=batch.counts.succeeded,
            failed=batch.counts.failed,
            parts=parts,
            schema=note.schema,
            parent=show_batch_id(batch.parent_id) if batch.parent_id else None,
        )

    def _end_requests(self, lease: Lease) -> None:
        whole = Whole()
        made = self._files.make(lease, self._looked_at(lease, whole))
        status, faults = verdict(lease.batch, whole)
        if lease.lost.is_set():
            return
        failpoints.hit("scheduler.before_end")
        ended = self._store.batches.end(
            lease.holder,
            lease.batch.id,
            status,
            faults=faults,
            output_file_id=made.output_id,
            error_file_id=made.error_id,
        )
        failpoints.hit("scheduler.after_end")
        if ended:
            self._note(lease, status)
            self._files.remove(made.parts)

    def _looked_at(self, lease: Lease, whole: Whole) -> Iterator[list[SliceView]]:
        for page in self._pages(lease):
            whole.look(page)
            yield page

    def _pages(self, lease: Lease) -> Iterator[list[SliceView]]:
        after = -1
        while page := self._store.batches.slices(lease.batch.id, after=after, limit=_PAGE):
            if lease.lost.is_set():
                return
            yield page
            after = page[-1].number

    def _put_off(self, lease: Lease, error: BatchlineError) -> None:
        wait_s = self._tries.failed(lease.batch.id)
        if wait_s is None:
            told = f"{error.detail} It was tried {TRIES} times." if error.retryable else error.detail
            self._give_up(lease, BatchFault(error.code, told))
            return
        BATCHES_PUT_OFF.labels("end").inc()
        log.warning("ending put off", extra={"batch": show_batch_id(lease.batch.id), "error": error.detail})
        self._store.batches.release(lease.holder, lease.batch.id, retry_s=wait_s)

    def _give_up(self, lease: Lease, fault: BatchFault) -> None:
        """The results cannot be brought where they belong: the batch ends as failed, or as cancelled, and says why."""
        self._tries.forget(lease.batch.id)
        cancelled = lease.batch.status is BatchStatus.CANCELLING
        status = BatchStatus.CANCELLED if cancelled else BatchStatus.FAILED
        if not lease.lost.is_set() and self._store.batches.end(lease.holder, lease.batch.id, status, faults=[fault]):
            self._note(lease, status, error=fault.message)

    def _note(self, lease: Lease, status: BatchStatus, **more: str) -> None:
        counts = lease.batch.counts
        told = {"rows": counts.total, "succeeded": counts.succeeded, "failed": counts.failed, "status": status.value}
        BATCHES_ENDED.labels(status.value).inc()
        log.info("batch ended", extra={"batch": show_batch_id(lease.batch.id), **told, **more})
