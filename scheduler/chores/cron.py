"""Cron: fire the schedules that are due, and start runs that wait for the batch before them.

A fire time becomes a run, and mostly a batch, in the transaction that moves the schedule on to its next one. So there
is one run a fire time, whoever fires, however often, and whenever it is killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import msgspec

from batchline import cron, failpoints
from batchline.batch import NewBatch, show_schedule_id
from batchline.batch_bodies import Rules
from batchline.batch_bodies.scheduled import ASKED_WHILE_DISABLED, batch_of
from batchline.errors import BatchlineError, RetryableError
from batchline.metrics import SCHEDULE_RUNS
from batchline.settings import Settings
from batchline.store import Store
from batchline.store.batch_contract import Run, ScheduleView
from scheduler.chore import Chore
from scheduler.doors import Doors
from scheduler.finds import Finds

log = logging.getLogger("scheduler.cron")

PORTION = 8
"""Schedules of one step: it stays short, and is run again at once while there are more."""
CATCH_UP_STEP = 20
"""Missed fire times of one schedule that one step runs."""
_EVERY_S = 0.5
_MAX_DETAIL = 1000


class Cron:
    """Fires schedules; `step` is the chore."""

    def __init__(self, settings: Settings, store: Store, doors: Doors, finds: Finds) -> None:
        self._store = store
        self._doors = doors
        self._finds = finds
        self._rules = Rules.of(settings)
        self._most = settings.max_open_batches_tenant

    def chore(self) -> Chore:
        return Chore("cron", _EVERY_S, self.step, portion=PORTION)

    def step(self) -> int:
        """One portion of each; what fails is tried again, or stands in the history of its schedule."""
        waiting = self._store.schedules.queued(limit=PORTION)
        due = self._store.schedules.due(limit=PORTION)
        if not waiting and not due:
            return 0
        now = self._store.schedules.now()
        moved = sum(self._tried(lambda run=run: self._start(run, now)) for run in waiting)
        return max(moved, sum(self._tried(lambda due=schedule: self._fire(due, now)) for schedule in due))

    def _tried(self, work: Callable[[], bool]) -> bool:
        """What one schedule must wait for does not keep the others waiting."""
        try:
            return work()
        except RetryableError as e:
            log.warning("schedule put off", extra={"error": e.detail})
            return False

    def _fire(self, schedule: ScheduleView, now: datetime) -> bool:
        """Deal with all that is due of one schedule."""
        seen = schedule.next_fire_at
        if seen is None:
            return False
        try:
            runs, batches, next_at = self._runs(schedule, seen, now)
        except RetryableError:
            raise
        except Exception as e:
            expected = isinstance(e, BatchlineError | ValueError)
            log.log(logging.WARNING if expected else logging.ERROR, "schedule cannot be read", exc_info=not expected)
            runs, batches, next_at = [_run(schedule, seen, "failed", f"The schedule cannot be read: {e}.")], [], None
        failpoints.hit("scheduler.before_fire")
        fired = self._store.schedules.fire(schedule.id, seen, runs, batches, next_at, most=self._most)
        failpoints.hit("scheduler.after_fire")
        if fired:
            for run in runs:
                SCHEDULE_RUNS.labels(run.outcome).inc()
            told = {"schedule": show_schedule_id(schedule.id), "runs": len(runs), "batches": len(batches)}
            log.info("schedule fired", extra={**told, "late_s": round((now - seen).total_seconds(), 1)})
        return fired

    def _runs(
        self, schedule: ScheduleView, seen: datetime, now: datetime
    ) -> tuple[list[Run], list[NewBatch], datetime | None]:
        catch_up = msgspec.convert(schedule.catch_up, cron.CatchUp)
        due = cron.due(schedule.cron, schedule.timezone, seen, now, catch_up=catch_up, limit=CATCH_UP_STEP)
        runs: list[Run] = []
        batches: list[NewBatch] = []
        if due.missed:
            runs.append(_run(schedule, seen, "skipped", _missed(due)))
        busy = bool(due.fires) and schedule.overlap != "allow" and self._store.schedules.unfinished(schedule.id) > 0
        for at in due.fires:
            late = (now - at).total_seconds() > cron.ON_TIME_S
            if busy and (schedule.overlap == "queue" or (late and catch_up == "all")):
                runs.append(_run(schedule, at, "queued", "Waits for the batch before it."))
            elif busy:
                runs.append(_run(schedule, at, "skipped", "The batch of an earlier fire time has not ended."))
            else:
                run, batch = self._submitted(schedule, at, now)
                runs.append(run)
                batches += [batch] if batch else []
                busy = batch is not None and schedule.overlap != "allow"
        return runs, batches, due.next_at

    def _start(self, run: Run, now: datetime) -> bool:
        """Start a run that has waited for its turn."""
        schedule = self._store.schedules.read(run.schedule_id)
        if schedule is None:
            return False
        if not schedule.enabled and run.detail != ASKED_WHILE_DISABLED:
            told = "The schedule was disabled before this run had its turn."
            return self._dropped(replace(run, outcome="skipped", detail=told))
        started, batch = self._submitted(schedule, run.fire_at, now)
        failpoints.hit("scheduler.before_start_queued")
        if batch is None:
            return self._dropped(started)
        if not self._store.schedules.start_queued(started, batch, most=self._most):
            return False
        SCHEDULE_RUNS.labels(started.outcome).inc()
        return True

    def _dropped(self, run: Run) -> bool:
        if not self._store.schedules.drop_queued(run):
            return False
        SCHEDULE_RUNS.labels(run.outcome).inc()
        return True

    def _submitted(self, schedule: ScheduleView, at: datetime, now: datetime) -> tuple[Run, NewBatch | None]:
        """The run of a fire time with its batch, or without one when the body does not fit any more."""
        try:
            batch = self._batch(schedule, at, now)
        except RetryableError:
            raise
        except BatchlineError as e:
            told = "; ".join([e.detail, *(f"{f.pointer}: {f.detail}" for f in e.faults)])
            return _run(schedule, at, "failed", told[:_MAX_DETAIL]), None
        return replace(_run(schedule, at, "submitted", None), batch_id=batch.id), batch

    def _batch(self, schedule: ScheduleView, at: datetime, now: datetime) -> NewBatch:
        """The batch of one fire time.

        Raises:
            InvalidRequestError: the body does not fit.
            RetryableError: the blob store or Postgres cannot be asked.
        """
        checked = batch_of(schedule, at, finds=self._finds, rules=self._rules, now=now)
        if checked.rows is not None:
            self._doors.blobs.put(checked.rows.file.blob, [checked.rows.jsonl])
            self._store.files.add(checked.rows.file)
        return checked.batch


def _run(schedule: ScheduleView, at: datetime, outcome: str, detail: str | None) -> Run:
    return Run(schedule.id, at, outcome, detail, batch_id=None, batch_status=None, created_at=at)


def _missed(due: cron.Due) -> str:
    some = f"{due.missed} fire times" if due.missed > 1 else "This fire time"
    more = " (or more)" if due.missed >= CATCH_UP_STEP else ""
    return f"{some}{more} came while no scheduler ran; catch_up says which of them run."
