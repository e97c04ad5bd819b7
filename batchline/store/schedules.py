"""Schedules and their runs: one run, and at most one batch, for each schedule and fire time, whoever fires."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime

import psycopg2

from batchline import failpoints
from batchline.batch import BatchStatus, NewBatch
from batchline.errors import BatchlineError, ConflictError, InvalidRequestError, QuotaError, ResultExpiredError
from batchline.store import keys, open_batches
from batchline.store.batch_contract import Run, ScheduleView
from batchline.store.batch_rows import insert
from batchline.store.postgres import Database, Row, Transaction

_FIELDS = "id, tenant_id, name, cron, timezone, batch, catch_up, overlap, enabled, created_at, next_fire_at"
_SELECT = f"SELECT {_FIELDS} FROM schedules"

_ADD = f"""
INSERT INTO schedules ({_FIELDS})
VALUES (%(id)s, %(tenant_id)s, %(name)s, %(cron)s, %(timezone)s, %(batch)s, %(catch_up)s, %(overlap)s, %(enabled)s,
  %(created_at)s, %(next_fire_at)s)
ON CONFLICT DO NOTHING
"""

# Who waited for another's change finds the row other than it was seen.
_UPDATE = """
UPDATE schedules SET name = %(name)s, cron = %(cron)s, timezone = %(timezone)s, batch = %(batch)s,
  catch_up = %(catch_up)s, overlap = %(overlap)s, enabled = %(enabled)s, next_fire_at = %(next_fire_at)s
WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND name = %(seen_name)s AND cron = %(seen_cron)s
  AND timezone = %(seen_timezone)s AND batch = %(seen_batch)s AND catch_up = %(seen_catch_up)s
  AND overlap = %(seen_overlap)s AND enabled = %(seen_enabled)s
  AND next_fire_at IS NOT DISTINCT FROM %(seen_next_fire_at)s
RETURNING 1
"""

_LIST = f"""{_SELECT} WHERE tenant_id = %(tenant)s AND (%(after)s::uuid IS NULL OR id > %(after)s::uuid)
ORDER BY id LIMIT %(limit)s"""

_DUE = f"""{_SELECT} WHERE enabled AND next_fire_at IS NOT NULL AND next_fire_at <= now()
ORDER BY next_fire_at LIMIT %(limit)s"""

# Whoever comes second waits here, and finds the instant moved on.
_TURN = """
SELECT 1 FROM schedules WHERE id = %(id)s AND next_fire_at = %(seen)s AND enabled FOR UPDATE
"""

_INSERT_RUN = """
INSERT INTO schedule_runs (schedule_id, fire_at, outcome, detail, batch_id)
VALUES (%(schedule)s, %(fire_at)s, %(outcome)s, %(detail)s, %(batch)s)
ON CONFLICT (schedule_id, fire_at) DO NOTHING RETURNING batch_id
"""

# What came to nothing may be run after all.
_INSERT_RUN_NOW = """
INSERT INTO schedule_runs AS r (schedule_id, fire_at, outcome, detail, batch_id)
VALUES (%(schedule)s, %(fire_at)s, %(outcome)s, %(detail)s, %(batch)s)
ON CONFLICT (schedule_id, fire_at) DO UPDATE
  SET outcome = excluded.outcome, detail = excluded.detail, batch_id = excluded.batch_id, created_at = now()
  WHERE r.outcome IN ('skipped', 'failed') RETURNING batch_id
"""

_START_QUEUED = """
UPDATE schedule_runs SET outcome = 'submitted', batch_id = %(batch)s, detail = %(detail)s
WHERE schedule_id = %(schedule)s AND fire_at = %(fire_at)s AND outcome = 'queued' RETURNING batch_id
"""

_DROP_QUEUED = """
UPDATE schedule_runs SET outcome = %(outcome)s, detail = %(detail)s
WHERE schedule_id = %(schedule)s AND fire_at = %(fire_at)s AND outcome = 'queued' RETURNING 1
"""

_RUN_HAS = """
SELECT 1 FROM schedule_runs WHERE schedule_id = %(schedule)s AND fire_at = %(fire_at)s AND batch_id = %(batch)s
"""

_OPEN = "SELECT FROM batches b WHERE b.schedule_id = {} AND b.ended_at IS NULL"

_RUNS = """
SELECT r.schedule_id, r.fire_at, r.outcome, r.detail, r.batch_id, b.status::text, r.created_at
FROM schedule_runs r LEFT JOIN batches b ON b.id = r.batch_id
"""

# One probe of the index a schedule that has any, however many runs wait behind its first.
_QUEUED = f"""
WITH RECURSIVE waiting AS (
  (SELECT q.schedule_id, q.fire_at FROM schedule_runs q WHERE q.outcome = 'queued'
   ORDER BY q.schedule_id, q.fire_at LIMIT 1)
  UNION ALL
  SELECT n.* FROM waiting w CROSS JOIN LATERAL (
    SELECT q.schedule_id, q.fire_at FROM schedule_runs q WHERE q.outcome = 'queued' AND q.schedule_id > w.schedule_id
    ORDER BY q.schedule_id, q.fire_at LIMIT 1) n
)
{_RUNS} JOIN waiting w ON w.schedule_id = r.schedule_id AND w.fire_at = r.fire_at
WHERE NOT EXISTS ({_OPEN.format("w.schedule_id")}) ORDER BY r.fire_at LIMIT %(limit)s
"""

_RUN_OF_BATCH = f"""{_RUNS} WHERE r.schedule_id = %(id)s AND r.batch_id = %(batch)s
  AND r.fire_at = (SELECT fire_at FROM batches WHERE id = %(batch)s)"""

_HISTORY = (
    _RUNS
    + """WHERE r.schedule_id = %(id)s AND (%(after)s::timestamptz IS NULL OR r.fire_at < %(after)s)
ORDER BY r.fire_at DESC LIMIT %(limit)s"""
)


class _UndoneError(Exception):
    """The fire time has run: what the transaction did is taken back."""


class Schedules:
    """See `batchline.store.batch_contract.Schedules`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, schedule: ScheduleView) -> ScheduleView | BatchlineError:
        try:
            self._db.run(_ADD, asdict(schedule))
        except (psycopg2.DataError, ValueError) as e:
            return keys.refusal(e)
        return self.read(schedule.id) or _taken(schedule.name)

    def update(self, seen: ScheduleView, schedule: ScheduleView) -> bool:
        params = asdict(schedule) | {f"seen_{name}": value for name, value in asdict(seen).items()}
        try:
            return bool(self._db.run(_UPDATE, params))
        except psycopg2.errors.UniqueViolation as e:
            raise _taken(schedule.name) from e
        except (psycopg2.DataError, ValueError) as e:
            raise keys.refusal(e) from e

    def read(self, schedule_id: uuid.UUID) -> ScheduleView | None:
        rows = self._db.run(f"{_SELECT} WHERE id = %(id)s", {"id": schedule_id})
        return ScheduleView(*rows[0]) if rows else None

    def list(self, tenant_id: int, *, after: uuid.UUID | None, limit: int) -> list[ScheduleView]:
        rows = self._db.run(_LIST, {"tenant": tenant_id, "after": after, "limit": limit})
        return [ScheduleView(*row) for row in rows]

    def delete(self, tenant_id: int, schedule_id: uuid.UUID) -> bool:
        def work(transaction: Transaction) -> bool:
            sql = "DELETE FROM schedules WHERE id = %(id)s AND tenant_id = %(tenant)s RETURNING 1"
            gone = transaction.run(sql, {"id": schedule_id, "tenant": tenant_id})
            if gone:
                transaction.run("DELETE FROM schedule_runs WHERE schedule_id = %(id)s", {"id": schedule_id})
            return bool(gone)

        return self._db.transact(work)

    def due(self, *, limit: int) -> list[ScheduleView]:
        return [ScheduleView(*row) for row in self._db.run(_DUE, {"limit": limit})]

    def now(self) -> datetime:
        return self._db.run("SELECT now()")[0][0]

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
        by_id = {batch.id: batch for batch in batches}

        def work(transaction: Transaction) -> bool:
            if not transaction.run(_TURN, {"id": schedule_id, "seen": seen}):
                return False
            for run in runs:
                batch = by_id.get(run.batch_id) if run.batch_id else None
                full = _refusal(transaction, batch, most) if batch is not None else None
                if full is not None:
                    _insert(transaction, _skipped(run, full), None)
                else:
                    _insert(transaction, run, batch)
            sql = "UPDATE schedules SET next_fire_at = %(next)s WHERE id = %(id)s"
            transaction.run(sql, {"id": schedule_id, "next": next_fire_at})
            return True

        return self._db.transact(work)

    def run_now(self, run: Run, batch: NewBatch | None, *, most: int | None = None) -> Run | BatchlineError | None:
        key = batch.idempotency_key if batch is not None else None

        def work(transaction: Transaction) -> bool:
            sql = "SELECT 1 FROM schedules WHERE id = %(schedule)s FOR KEY SHARE"
            if not transaction.run(sql, _columns_of(run)):
                return False
            if batch is not None and key is not None and not keys.take(transaction, batch):
                return False
            if batch is not None:
                open_batches.check(transaction, batch, most)
            if _insert(transaction, run, batch, _INSERT_RUN_NOW):
                return True
            raise _UndoneError

        try:
            if self._db.transact(work):
                return run
        except _UndoneError:
            pass
        except (ConflictError, QuotaError) as e:
            return e
        if batch is None:
            return None
        if key is not None and (first := self._first(run.schedule_id, batch.tenant_id, key, batch.body_hash)):
            return first
        return run if self._has(run, batch) else None

    def run_of(self, schedule: ScheduleView, key: str, body_hash: bytes) -> Run | BatchlineError | None:
        return self._first(schedule.id, schedule.tenant_id, key, body_hash)

    def _first(
        self, schedule_id: uuid.UUID, tenant_id: int, key: str, body_hash: bytes | None
    ) -> Run | BatchlineError | None:
        found = keys.first_of(self._db, [(tenant_id, key)]).get((tenant_id, key))
        if found is None:
            return None
        taken = keys.answer(found[1], body_hash, found)
        if isinstance(taken, BatchlineError):
            return taken
        rows = self._db.run(_RUN_OF_BATCH, {"id": schedule_id, "batch": taken.id})
        return _run(rows[0]) if rows else ResultExpiredError("The run of this Idempotency-Key is not known any more.")

    def unfinished(self, schedule_id: uuid.UUID) -> int:
        sql = _OPEN.format("%(id)s").replace("SELECT FROM", "SELECT count(*) FROM")
        return self._db.run(sql, {"id": schedule_id})[0][0]

    def queued(self, *, limit: int) -> list[Run]:
        return [_run(row) for row in self._db.run(_QUEUED, {"limit": limit})]

    def start_queued(self, run: Run, batch: NewBatch, *, most: int | None = None) -> bool:
        def work(transaction: Transaction) -> bool:
            if full := _refusal(transaction, batch, most):
                return bool(transaction.run(_DROP_QUEUED, _columns_of(_skipped(run, full))))
            started = transaction.run(_START_QUEUED, {**_columns_of(run), "batch": batch.id})
            if started:
                insert(transaction, batch)
            return bool(started)

        return self._db.transact(work) or self._has(run, batch)

    def drop_queued(self, run: Run) -> bool:
        return bool(self._db.run(_DROP_QUEUED, _columns_of(run)))

    def runs(self, schedule_id: uuid.UUID, *, after: datetime | None, limit: int) -> list[Run]:
        return [_run(row) for row in self._db.run(_HISTORY, {"id": schedule_id, "after": after, "limit": limit})]

    def _has(self, run: Run, batch: NewBatch) -> bool:
        """Whether an earlier call whose reply was lost has done it."""
        return bool(self._db.run(_RUN_HAS, {**_columns_of(run), "batch": batch.id}))


def _insert(transaction: Transaction, run: Run, batch: NewBatch | None, sql: str = _INSERT_RUN) -> bool:
    """A run with its batch, unless this fire time has run."""
    fresh = bool(transaction.run(sql, _columns_of(run)))
    failpoints.hit("store.after_run")
    if fresh and batch is not None:
        insert(transaction, batch)
    return fresh


def _refusal(transaction: Transaction, batch: NewBatch, most: int | None) -> QuotaError | None:
    try:
        open_batches.check(transaction, batch, most)
    except QuotaError as e:
        return e
    return None


def _skipped(run: Run, full: QuotaError) -> Run:
    """What becomes of a run whose tenant has no room for its batch."""
    return replace(run, outcome="skipped", detail=full.detail, batch_id=None)


def _columns_of(run: Run) -> dict[str, object]:
    return {
        "schedule": run.schedule_id,
        "fire_at": run.fire_at,
        "outcome": run.outcome,
        "detail": run.detail,
        "batch": run.batch_id,
    }


def _run(row: Row) -> Run:
    *fields, status, created_at = row
    return Run(*fields, batch_status=BatchStatus(status) if status else None, created_at=created_at)


def _taken(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"There is a schedule named {name!r} already.")
