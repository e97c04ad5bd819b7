"""Runs outside of a schedule's rhythm: now, and over a stretch of the past. Blocking; for threads."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime

from api.schedule_shapes import backfilled_json
from batchline import cron
from batchline.batch import NewBatch
from batchline.batch_bodies import Finds, Rules
from batchline.batch_bodies.scheduled import ASKED_WHILE_DISABLED, batch_of
from batchline.data.blobs import Blobs
from batchline.errors import BatchlineError, ConflictError, Fault, InvalidRequestError, QuotaError
from batchline.store import Store
from batchline.store.batch_contract import Run, ScheduleView
from batchline.wire_schedules import BackfillBody

MAX_FIRE_TIMES = 1_000
"""Of one backfill."""


class Runs:
    """Submits runs; `finds` and `rules` are those of every batch body, `most` what a tenant may have open."""

    def __init__(self, store: Store, blobs: Blobs, finds: Finds, rules: Rules, *, most: int) -> None:
        self._store = store
        self._blobs = blobs
        self._most = most
        self.finds = finds
        self.rules = rules

    def now(self, schedule: ScheduleView, now: datetime, key: str | None = None) -> Run:
        """Run it at once, whatever its rhythm, its overlap, and whether it is enabled.

        Args:
            schedule: what is run.
            now: its fire time.
            key: an idempotency key; asked again with it, this gives the first run.

        Raises:
            InvalidRequestError: the batch does not fit any more.
            ConflictError: it ran at this very microsecond, or the key is in flight.
            KeyReusedError: the key was used for something else.
            ResultExpiredError: the key's run is not known any more.
            QuotaError: the tenant has as many open batches as it may.
        """
        body_hash = hashlib.sha256(b"run " + schedule.id.bytes).digest() if key else None
        if key and body_hash and (first := self._store.schedules.run_of(schedule, key, body_hash)):
            return _raised(first)
        batch = replace(self._batch(schedule, now, now), idempotency_key=key, body_hash=body_hash)
        run = Run(schedule.id, now, "submitted", "Run by hand.", batch.id, None, now)
        done = self._store.schedules.run_now(run, batch, most=self._most)
        if done is None:
            raise ConflictError("This schedule is being run right now; try again.")
        return _raised(done)

    def backfill(self, schedule: ScheduleView, asked: BackfillBody, now: datetime) -> bytes:
        """Run the fire times of a stretch that have not run, as JSON.

        With overlap `allow` their batches are submitted at once, as far as the tenant may have so many open: the runs
        of the others are skipped, and may be run by another backfill. Else the scheduler starts them one after another,
        also of a schedule that is disabled already; one that is disabled later takes back what waits.

        Raises:
            InvalidRequestError: the stretch is none, lies ahead, or holds too much; or the batch does not fit.
        """
        times = self._times(schedule, asked, now)
        waits = "Backfill; waits for its turn." if schedule.enabled else ASKED_WHILE_DISABLED
        made: list[Run] = []
        full: QuotaError | None = None
        for at in times:
            done = None
            if schedule.overlap != "allow":
                run = Run(schedule.id, at, "queued", waits, None, None, now)
                done = self._store.schedules.run_now(run, None)
            elif full is None:
                batch = self._batch(schedule, at, now)
                run = Run(schedule.id, at, "submitted", "Backfill.", batch.id, None, now)
                done = self._store.schedules.run_now(run, batch, most=self._most)
                full = done if isinstance(done, QuotaError) else None
            if full is not None:
                run = Run(schedule.id, at, "skipped", full.detail, None, None, now)
                done = self._store.schedules.run_now(run, None)
            if done is not None:
                made.append(_raised(done))
        return backfilled_json(made, known=len(times) - len(made))

    def _times(self, schedule: ScheduleView, asked: BackfillBody, now: datetime) -> list[datetime]:
        fault = None
        times: list[datetime] = []
        if asked.end <= asked.start:
            fault = Fault("/to", "must be later than `from`")
        elif asked.end > now:
            fault = Fault("/to", "lies ahead: what comes fires by itself")
        else:
            times = cron.between(schedule.cron, schedule.timezone, asked.start, asked.end, limit=MAX_FIRE_TIMES + 1)
            if len(times) > MAX_FIRE_TIMES:
                fault = Fault("/to", f"is too late: one backfill has at most {MAX_FIRE_TIMES} fire times")
        if fault is not None:
            raise InvalidRequestError("The stretch does not fit.", faults=(fault,))
        return times

    def _batch(self, schedule: ScheduleView, at: datetime, now: datetime) -> NewBatch:
        checked = batch_of(schedule, at, finds=self.finds, rules=self.rules, now=now)
        if checked.rows is not None:
            self._blobs.put(checked.rows.file.blob, [checked.rows.jsonl])
            self._store.files.add(checked.rows.file)
        return checked.batch


def _raised(done: Run | BatchlineError) -> Run:
    if isinstance(done, BatchlineError):
        raise done
    return done
