"""What the scheduler does to batches: plan, refuse, end, stop, hold, prune. Safe under two schedulers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import msgspec
import psycopg2

from batchline.batch import BATCH_TRANSITIONS, BatchFault, BatchStatus, BatchView
from batchline.store import batch_prune
from batchline.store.batch_contract import NewSlice
from batchline.store.batch_rows import (
    CANCEL_SLICES,
    COUNTED,
    HOLD_SLICES,
    UNCOUNTED,
    VIEW,
    batch_guard,
    view_of,
)
from batchline.store.postgres import Database, Transaction, columns

_INSERT_STEP = 1000
"""Slices that one statement of a plan inserts."""

_TAKE_TO_PLAN = f"""
WITH next AS MATERIALIZED (
  SELECT b.id FROM batches b WHERE {batch_guard("plan")} AND b.ended_at IS NULL
    AND (b.lease_until IS NULL OR b.lease_until < now())
  ORDER BY b.id LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE batches b SET holder = %(holder)s, lease_until = now() + %(lease)s * interval '1 second' FROM next
WHERE b.id = next.id RETURNING b.id
"""

_TO_PLAN = f"""
UPDATE batches b SET status = 'in_progress', in_progress_at = now(), lease_until = NULL, model_id = %(model)s,
  note = %(note)s, rows_total = %(rows)s, slices = %(slices)s
WHERE b.id = %(id)s AND b.holder = %(holder)s AND {batch_guard("plan")}
RETURNING b.tenant_id, b.priority, b.deadline_at, b.paused_at IS NOT NULL
"""

_INSERT_SLICES = """
WITH new AS MATERIALIZED (
  SELECT * FROM unnest(%(job)s::uuid[], %(rank)s::bigint[], %(rows)s::int[], %(number)s::int[], %(first)s::bigint[],
                       %(payload)s::bytea[]) AS t(id, rank, rows, number, first_row, payload)
), j AS (
  INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, deadline_at, run_at)
  SELECT id, %(tenant)s, %(model)s, 'bulk', 'queued', %(priority)s, rank, rows, %(deadline)s,
    CASE WHEN %(paused)s THEN 'infinity'::timestamptz END FROM new ORDER BY id
), i AS (
  INSERT INTO job_inputs (job_id, payload) SELECT id, payload FROM new ORDER BY id
)
INSERT INTO slices (job_id, batch_id, number, first_row, rows)
SELECT id, %(id)s, number, first_row, rows FROM new ORDER BY number
"""

_REFUSE = f"""
UPDATE batches b SET status = 'failed', failed_at = now(), ended_at = now(), errors = %(errors)s, lease_until = NULL
WHERE b.id = %(id)s AND b.holder = %(holder)s AND {batch_guard("refuse")} RETURNING b.id
"""

# Slices end about in the order of their numbers, so the last one tells at once that a batch is still at work.
_OPEN = """
(SELECT j.id FROM slices s JOIN jobs j ON j.id = s.job_id
 WHERE s.batch_id = b.id AND j.status IN ('queued', 'running') ORDER BY s.number DESC LIMIT 1)
"""

_CLOSE = f"""
WITH next AS MATERIALIZED (
  SELECT b.id FROM batches b WHERE {batch_guard("close")} AND b.ended_at IS NULL AND {_OPEN} IS NULL
  ORDER BY b.id LIMIT 100 FOR UPDATE SKIP LOCKED
)
UPDATE batches b SET status = 'finalizing', finalizing_at = now() FROM next
WHERE b.id = next.id AND {batch_guard("close")} RETURNING b.id
"""

_TAKE_TO_END = f"""
WITH next AS MATERIALIZED (
  SELECT b.id FROM batches b WHERE {batch_guard("end")} AND b.ended_at IS NULL
    AND (b.lease_until IS NULL OR b.lease_until < now()) AND {_OPEN} IS NULL
  ORDER BY b.id LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE batches b SET holder = %(holder)s, lease_until = now() + %(lease)s * interval '1 second' FROM next
WHERE b.id = next.id RETURNING b.id
"""

_END = f"""
UPDATE batches b SET status = %(status)s::batch_status, ended_at = now(), lease_until = NULL,
  completed_at = CASE WHEN %(status)s = 'completed' THEN now() END,
  failed_at = CASE WHEN %(status)s = 'failed' THEN now() END,
  expired_at = CASE WHEN %(status)s = 'expired' THEN now() END,
  cancelled_at = CASE WHEN %(status)s = 'cancelled' THEN now() END,
  errors = CASE WHEN b.errors IS NULL THEN %(errors)s WHEN %(errors)s::text IS NULL THEN b.errors
                ELSE (b.errors::jsonb || %(errors)s::jsonb)::text END,
  output_file_id = coalesce(%(output)s::uuid, b.output_file_id),
  error_file_id = coalesce(%(error)s::uuid, b.error_file_id),
  rows_total = c.total, rows_succeeded = c.succeeded, rows_failed = c.failed, rows_cancelled = c.cancelled,
  rows_expired = c.expired, slices = c.slices
FROM batches own CROSS JOIN LATERAL ({COUNTED.replace("b.id", "own.id")}) c
WHERE own.id = %(id)s AND b.id = own.id AND b.holder = %(holder)s AND {batch_guard("end")} RETURNING b.id
"""

_RENEW = """
UPDATE batches SET lease_until = now() + %(lease)s * interval '1 second'
WHERE id = %(id)s AND holder = %(holder)s AND lease_until > now() RETURNING 1
"""

_RELEASE = """
UPDATE batches SET lease_until = now() + %(retry)s * interval '1 second', holder = NULL
WHERE id = %(id)s AND holder = %(holder)s AND lease_until IS NOT NULL
"""

_OVER_THRESHOLD = f"""
SELECT b.id FROM batches b CROSS JOIN LATERAL (
  SELECT sum(s.rows_failed) AS rows, bool_or(s.staged IS NULL) AS whole
  FROM slices s WHERE s.batch_id = b.id AND s.rows_failed > 0) f
WHERE {batch_guard("close")} AND b.ended_at IS NULL AND b.errors IS NULL AND f.rows > 0
  AND CASE WHEN b.error_threshold IS NULL THEN f.whole ELSE f.rows > b.error_threshold * b.rows_total END
ORDER BY b.id
"""

_TO_STOP = f"""
UPDATE batches b SET errors = %(errors)s WHERE b.id = %(id)s AND b.errors IS NULL AND {batch_guard("close")}
RETURNING b.id
"""

_PAUSED = f"""
SELECT b.id FROM batches b WHERE b.ended_at IS NULL AND b.paused_at IS NOT NULL AND NOT b.held
  AND {batch_guard("close")} ORDER BY b.id LIMIT 1000
"""

_STILL_PAUSED = f"""
SELECT 1 FROM batches b WHERE b.id = %(id)s AND b.paused_at IS NOT NULL AND {batch_guard("close")} FOR UPDATE
"""

# When none is running and all that wait are held, no slice can come back any more.
_MARK_HELD = """
UPDATE batches b SET held = true WHERE b.id = %(id)s AND NOT EXISTS (
  SELECT FROM slices s JOIN jobs j ON j.id = s.job_id WHERE s.batch_id = b.id
    AND (j.status = 'running' OR j.status = 'queued' AND (j.run_at IS NULL OR j.run_at < 'infinity')))
"""

_WAS_MOVED = """
SELECT 1 FROM batches WHERE id = %(id)s AND holder = %(holder)s AND status = ANY(%(to)s::batch_status[])
"""


class BatchMoves:
    """The scheduler's half of `batchline.store.batch_contract.Batches`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def take_to_plan(self, holder: uuid.UUID, *, lease_s: float) -> BatchView | None:
        return self._taken(self._db.run(_TAKE_TO_PLAN, {"holder": holder, "lease": lease_s}), UNCOUNTED)

    def plan(
        self, holder: uuid.UUID, batch_id: uuid.UUID, slices: Sequence[NewSlice], *, model_id: int, note: str
    ) -> bool:
        mine = {"id": batch_id, "holder": holder, "model": model_id}
        sums = {"rows": sum(s.rows for s in slices), "slices": len(slices), "note": note}

        def work(transaction: Transaction) -> bool:
            for tenant, priority, deadline, paused in transaction.run(_TO_PLAN, {**mine, **sums}):
                shared = {"tenant": tenant, "priority": priority, "deadline": deadline, "paused": paused, **mine}
                for at in range(0, len(slices), _INSERT_STEP):
                    transaction.run(_INSERT_SLICES, {**shared, **_columns_of(slices[at : at + _INSERT_STEP])})
                return True
            return False

        return self._db.transact(work) or self._was_moved("plan", holder, batch_id)

    def note(self, batch_id: uuid.UUID) -> str | None:
        rows = self._db.run("SELECT note FROM batches WHERE id = %(id)s", {"id": batch_id})
        return rows[0][0] if rows else None

    def refuse(self, holder: uuid.UUID, batch_id: uuid.UUID, faults: Sequence[BatchFault]) -> bool:
        params = {"id": batch_id, "holder": holder, "errors": _json(faults)}
        return bool(self._db.run(_REFUSE, params)) or self._was_moved("refuse", holder, batch_id)

    def take_to_end(self, holder: uuid.UUID, *, lease_s: float) -> BatchView | None:
        self._db.run(_CLOSE)
        return self._taken(self._db.run(_TAKE_TO_END, {"holder": holder, "lease": lease_s}), VIEW)

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
        params = {
            "id": batch_id,
            "holder": holder,
            "status": status.value,
            "errors": _json(faults) if faults else None,
            "output": output_file_id,
            "error": error_file_id,
        }
        return bool(self._db.run(_END, params)) or self._was_moved("end", holder, batch_id, status)

    def renew(self, holder: uuid.UUID, batch_id: uuid.UUID, *, lease_s: float) -> bool:
        return bool(self._db.run(_RENEW, {"id": batch_id, "holder": holder, "lease": lease_s}))

    def release(self, holder: uuid.UUID, batch_id: uuid.UUID, *, retry_s: float) -> None:
        self._db.run(_RELEASE, {"id": batch_id, "holder": holder, "retry": retry_s})

    def over_threshold(self) -> list[uuid.UUID]:
        return [row[0] for row in self._db.run(_OVER_THRESHOLD)]

    def stop(self, batch_id: uuid.UUID, fault: BatchFault) -> bool:
        return self._move(_TO_STOP, CANCEL_SLICES, {"id": batch_id, "errors": _json([fault])})

    def hold_paused(self) -> int:
        def hold(transaction: Transaction, batch_id: uuid.UUID) -> int:
            if not transaction.run(_STILL_PAUSED, {"id": batch_id}):
                return 0
            held = len(transaction.run(HOLD_SLICES, {"id": batch_id}))
            transaction.run(_MARK_HELD, {"id": batch_id})
            return held

        paused = [row[0] for row in self._db.run(_PAUSED)]
        return sum(self._db.transact(lambda t, batch_id=batch_id: hold(t, batch_id)) for batch_id in paused)

    def prune(self, *, results_kept_s: float, batches_kept_s: float) -> int:
        return batch_prune.step(self._db, results_kept_s=results_kept_s, batches_kept_s=batches_kept_s)

    def _move(self, batch_sql: str, slices_sql: str, params: Mapping[str, object]) -> bool:
        """Move the batch, then, if that could be done, its slices."""

        def work(transaction: Transaction) -> bool:
            moved = transaction.run(batch_sql, params)
            if moved:
                transaction.run(slices_sql, params)
            return bool(moved)

        return self._db.transact(work)

    def _taken(self, rows: Sequence[Sequence[uuid.UUID]], view: str) -> BatchView | None:
        found = self._db.run(view + "WHERE b.id = %(id)s", {"id": rows[0][0]}) if rows else []
        return view_of(found[0]) if found else None

    def _was_moved(self, move: str, holder: uuid.UUID, batch_id: uuid.UUID, status: BatchStatus | None = None) -> bool:
        """Whether an earlier call whose reply was lost has done it."""
        to = [status] if status else sorted(BATCH_TRANSITIONS[move][1])
        return bool(self._db.run(_WAS_MOVED, {"id": batch_id, "holder": holder, "to": [s.value for s in to]}))


def _columns_of(slices: Sequence[NewSlice]) -> dict[str, object]:
    fields = ("job", "rank", "rows", "number", "first", "payload")
    records = [
        (s.job_id, s.rank, s.rows, s.slice.number, s.slice.first_row, psycopg2.Binary(msgspec.json.encode(s.slice)))
        for s in slices
    ]
    return dict(zip(fields, columns(records, len(fields)), strict=True))


def _json(faults: Sequence[BatchFault]) -> str:
    return msgspec.json.encode(faults).decode()
