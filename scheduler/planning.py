"""The planner: a validating batch becomes slices, or is refused with what is wrong.

Only metadata is read of a data set, and all lines, once, of a file of requests. A place that does not answer is tried
again with ever longer pauses; after `TRIES` the batch is refused and says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from batchline import failpoints
from batchline.batch import BatchFault, BatchView, DataSet, Piece, Requests, show_batch_id
from batchline.errors import BatchlineError, NotFoundError, RetryableError, SourceError, StoreUnavailableError
from batchline.job import Lane
from batchline.metrics import BATCHES_ENDED, BATCHES_PUT_OFF
from batchline.model import ModelRecord
from batchline.queue.contract import Nudger
from batchline.settings import Settings
from batchline.store import Store
from batchline.store.batch_contract import NewSlice, SliceView
from scheduler import request_lines
from scheduler.doors import Doors
from scheduler.finds import Finds
from scheduler.refused import RefusedError
from scheduler.slicing import Pace, put_together, slices_again, slices_of
from scheduler.station import Lease, Station
from scheduler.tries import Tries

log = logging.getLogger("scheduler.planning")

TRIES = 8
_CAP_S = 60.0
_PAGE = 1000
_SHARERS = 100
"""Batches of a tenant that are looked at to tell how many share its turn."""
_MIN_RATE, _MAX_RATE = 1e3, 1e6
"""Rows/s of a pool, as far as a measurement is believed: an idle pool measures next to nothing."""
_LEAST = 1.0
"""Likewise of a model: a worker may have measured its first row alone, with all that it takes to begin."""


class PlanNote(msgspec.Struct, frozen=True):
    """What is kept of a plan: `Batches.note`."""

    rows: int = 0
    pieces: int = 0
    slices: int = 0
    schema: dict[str, str] = {}
    """Output column -> Arrow type; empty for requests."""
    digest: str = ""
    """Of the model."""


class Planner:
    """Plans one batch at a time, for a station."""

    def __init__(self, settings: Settings, store: Store, nudger: Nudger, doors: Doors, finds: Finds) -> None:
        self._settings = settings
        self._store = store
        self._nudger = nudger
        self._doors = doors
        self._finds = finds
        self._tries = Tries(TRIES, cap_s=_CAP_S)

    def station(self) -> Station:
        return Station("plan", self._store, self._store.batches.take_to_plan, self.work)

    def work(self, lease: Lease) -> None:
        """Plan, refuse, or put off."""
        batch = lease.batch
        try:
            self._plan(lease)
        except RefusedError as e:
            self._refuse(lease, e.faults)
        except StoreUnavailableError:
            raise  # the lease runs out and somebody plans it again
        except RetryableError as e:
            self._put_off(lease, e)
        except NotFoundError as e:
            self._refuse(lease, [BatchFault("model_not_found", e.detail)])
        except BatchlineError as e:
            self._refuse(lease, [BatchFault(e.code, e.detail)])
        except Exception:
            log.exception("planning failed")
            self._put_off(lease, BatchlineError("The batch cannot be planned; the operator's log says why."))
        else:
            self._tries.forget(batch.id)

    def _plan(self, lease: Lease) -> None:
        started = time.monotonic()
        record, slices, note = (self._requests if lease.batch.kind == "requests" else self._data_set)(lease)
        if lease.lost.is_set():
            return
        failpoints.hit("scheduler.before_plan")
        text = msgspec.json.encode(note).decode()
        if self._store.batches.plan(lease.holder, lease.batch.id, slices, model_id=record.id, note=text):
            failpoints.hit("scheduler.after_plan")
            self._nudger.nudge(record.spec.policy.pool, Lane.BULK)
            told = {"rows": note.rows, "slices": note.slices, "ms": round((time.monotonic() - started) * 1000)}
            log.info("batch planned", extra={"batch": show_batch_id(lease.batch.id), "model": record.spec.ref, **told})

    def _data_set(self, lease: Lease) -> tuple[ModelRecord, list[NewSlice], PlanNote]:
        batch = lease.batch
        wanted = msgspec.json.decode(batch.body, type=DataSet)
        record = self._finds.model(wanted.model, wanted.version)
        source = self._doors.source(wanted)
        schema = self._doors.fitted(wanted, record.spec, source.schema())
        self._doors.sink(batch, wanted).check(schema)
        parent = self._parent(batch)
        if parent is None:
            groups = put_together(
                _while_held(lease, source.pieces(self._settings.slice_rows)), self._settings.slice_rows
            )
            slices = list(slices_of(batch.id, groups, self._pace(batch, record)))
        else:
            # A parent that would have replaced a table and did not leaves nothing behind.
            every_row = wanted.output.mode == "replace"
            left = self._slices(parent)
            slices = list(slices_again(batch.id, left, self._pace(batch, record), every_row=every_row))
        types = {field.name: str(field.type) for field in schema}
        return record, slices, _note(slices, types, record)

    def _requests(self, lease: Lease) -> tuple[ModelRecord, list[NewSlice], PlanNote]:
        batch = lease.batch
        wanted = msgspec.json.decode(batch.body, type=Requests)
        parent = self._parent(batch)
        if parent is not None:
            record = self._finds.model(parent.model or "", parent.version)
            slices = list(slices_again(batch.id, self._slices(parent), self._pace(batch, record)))
            return record, slices, _note(slices, {}, record)
        with self._doors.blobs.open(wanted.file) as file:
            checked = request_lines.check(
                _while_held(lease, file.chunks()),
                wanted.endpoint,
                slice_rows=self._settings.slice_rows,
                max_line_bytes=self._settings.max_body_bytes,
            )
            record = self._named(batch, checked)
            pieces = (Piece(file.uri, file.version, (s.start, s.end), s.rows) for s in checked.stretches)
            groups = put_together(pieces, self._settings.slice_rows)
        slices = list(slices_of(batch.id, groups, self._pace(batch, record)))
        return record, slices, _note(slices, {}, record)

    def _named(self, batch: BatchView, checked: request_lines.Checked) -> ModelRecord:
        """The model of all lines; without a version the batch as a whole is the canary's or production's.

        Raises:
            RefusedError: lines are at fault, or there is no such model.
        """
        if checked.faults:
            raise RefusedError(checked.faults)
        try:
            return self._finds.model(checked.model, checked.version, batch.id.bytes)
        except NotFoundError as e:
            fault = BatchFault("model_not_found", e.detail, checked.model_line, "body.model")
            raise RefusedError([fault]) from None

    def _pace(self, batch: BatchView, record: ModelRecord) -> Pace:
        """Batches of one tenant share its turn: each of n gets on at an nth of the pace."""
        sharing = 1 + self._store.batches.sharing(batch.tenant_id, most=_SHARERS)
        pool = record.spec.policy.pool
        rate, least = self._store.workers.bulk_rate(pool, record.id), _LEAST
        if not rate:
            rate, least = self._store.workers.drain_rates(Lane.BULK).get(pool, 0.0), _MIN_RATE
        deadline = batch.deadline_at.timestamp() if batch.deadline_at else None
        row_s = sharing / min(max(rate, least), _MAX_RATE)
        return Pace(self._store.schedules.now().timestamp(), row_s, batch.priority, deadline)

    def _parent(self, batch: BatchView) -> BatchView | None:
        """The nearest batch before it that was cut into slices; None: none was, and it has all rows to do.

        Raises:
            SourceError: there was one, and it is not known any more.
        """
        while batch.parent_id is not None:
            parent = self._store.batches.read(batch.parent_id)
            if parent is None or parent.results_pruned:
                raise SourceError(
                    "What the batch before has left undone is not known any more: submit the data set again."
                )
            if parent.in_progress_at is not None:
                return parent
            batch = parent
        return None

    def _slices(self, batch: BatchView) -> Iterator[SliceView]:
        """The slices of a batch, page by page."""
        after = -1
        while page := self._store.batches.slices(batch.id, after=after, limit=_PAGE):
            yield from page
            after = page[-1].number

    def _refuse(self, lease: Lease, faults: Sequence[BatchFault]) -> None:
        self._tries.forget(lease.batch.id)
        if not lease.lost.is_set() and self._store.batches.refuse(lease.holder, lease.batch.id, faults):
            told = {"code": faults[0].code, "error": faults[0].message, "faults": len(faults)}
            BATCHES_ENDED.labels("failed").inc()
            log.info("batch refused", extra={"batch": show_batch_id(lease.batch.id), **told})

    def _put_off(self, lease: Lease, error: BatchlineError) -> None:
        wait_s = self._tries.failed(lease.batch.id)
        if wait_s is None:
            told = f"{error.detail} It was tried {TRIES} times; submit the batch again when the place answers."
            self._refuse(lease, [BatchFault(error.code, told if error.retryable else error.detail)])
            return
        BATCHES_PUT_OFF.labels("plan").inc()
        log.warning("planning put off", extra={"batch": show_batch_id(lease.batch.id), "error": error.detail})
        self._store.batches.release(lease.holder, lease.batch.id, retry_s=wait_s)


T = TypeVar("T")


def _while_held(lease: Lease, items: Iterable[T]) -> Iterator[T]:
    """The items, as long as the batch is ours."""
    for item in items:
        if lease.lost.is_set():
            return
        yield item


def _note(slices: Sequence[NewSlice], schema: dict[str, str], record: ModelRecord) -> PlanNote:
    pieces = sum(len(s.slice.pieces) for s in slices)
    return PlanNote(sum(s.rows for s in slices), pieces, len(slices), schema, record.spec.digest)
