"""Batches as clients see them: submit, read, list, cancel, pause, resume, slices. What the scheduler does is beside."""

from __future__ import annotations

import uuid

import msgspec
import psycopg2

from batchline.batch import BatchView, NewBatch, Staged
from batchline.errors import BatchlineError, ConflictError, QuotaError
from batchline.job import Admitted
from batchline.store import keys, open_batches
from batchline.store.batch_contract import BatchPage, SliceView
from batchline.store.batch_moves import BatchMoves
from batchline.store.batch_rows import CANCEL_SLICES, HOLD_SLICES, VIEW, batch_guard, insert, view_of
from batchline.store.postgres import Row, Transaction

_READ = VIEW + "WHERE b.id = %(id)s"

_PAGE_SLICES = 100_000
"""Slices that one page counts at most, if it has more than one batch: a tenth of a second."""

# The page first, so that no more is counted than shown: of each batch how many slices are counted up to it.
_PAGE = """
SELECT p.id, sum(CASE WHEN p.ended_at IS NULL THEN p.slices ELSE 0 END) OVER (ORDER BY p.id DESC) FROM (
  SELECT p.id, p.ended_at, p.slices FROM batches p
  WHERE p.tenant_id = %(tenant)s AND (%(after)s::uuid IS NULL OR p.id < %(after)s::uuid)
  ORDER BY p.id DESC LIMIT %(limit)s + 1) p ORDER BY p.id DESC
"""

_LIST = VIEW + "WHERE b.id = ANY(%(ids)s::uuid[]) ORDER BY b.id DESC"

_SHARING = """
SELECT count(*) FROM (
  SELECT p.status, p.paused_at FROM batches p WHERE p.tenant_id = %(tenant)s ORDER BY p.id DESC LIMIT %(most)s) p
WHERE p.status = 'in_progress' AND p.paused_at IS NULL
"""

_TO_CANCEL = f"""
UPDATE batches b SET status = 'cancelling', cancelling_at = now(), holder = NULL, lease_until = NULL
WHERE b.id = %(id)s AND b.tenant_id = %(tenant)s AND {batch_guard("cancel")} RETURNING b.id
"""

_TO_PAUSE = f"""
UPDATE batches b SET paused_at = coalesce(b.paused_at, now()), held = false
WHERE b.id = %(id)s AND b.tenant_id = %(tenant)s AND {batch_guard("cancel")} RETURNING b.id
"""

_TO_RESUME = f"""
UPDATE batches b SET paused_at = NULL, held = false
WHERE b.id = %(id)s AND b.tenant_id = %(tenant)s AND {batch_guard("cancel")} RETURNING b.id
"""

_RESUME_SLICES = """
WITH c AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.id IN (SELECT s.job_id FROM slices s WHERE s.batch_id = %(id)s)
    AND j.status = 'queued' AND j.run_at = 'infinity' ORDER BY j.id FOR UPDATE
)
UPDATE jobs j SET run_at = NULL FROM c WHERE j.id = c.id AND j.status = 'queued'
"""

_SLICES = """
SELECT s.job_id, s.number, j.status::text, j.attempt, s.rows, j.rows_failed, j.code, r.errors->0->>'message',
  coalesce(i.payload, ''), s.failed, s.staged, s.published
FROM slices s JOIN jobs j ON j.id = s.job_id LEFT JOIN job_inputs i ON i.job_id = s.job_id
LEFT JOIN job_results r ON r.job_id = s.job_id
WHERE s.batch_id = %(id)s AND s.number > %(after)s ORDER BY s.number LIMIT %(limit)s
"""


class Batches(BatchMoves):
    """See `batchline.store.batch_contract.Batches`."""

    def submit(self, batch: NewBatch, *, most: int | None = None) -> Admitted | BatchlineError:
        key = batch.idempotency_key

        def work(transaction: Transaction) -> bool:
            if key is not None and not keys.take(transaction, batch):
                return False
            open_batches.check(transaction, batch, most)
            insert(transaction, batch)
            return True

        try:
            taken = self._db.transact(work)
        except (ConflictError, QuotaError) as e:
            return e
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError) as e:
            return keys.refusal(e)
        if taken:
            return Admitted(batch.id)
        first = keys.first_of(self._db, [(batch.tenant_id, key)])
        return keys.answer(batch.id, batch.body_hash, first.get((batch.tenant_id, key or "")))

    def read(self, batch_id: uuid.UUID) -> BatchView | None:
        rows = self._db.run(_READ, {"id": batch_id})
        return view_of(rows[0]) if rows else None

    def list(self, tenant_id: int, *, after: uuid.UUID | None, limit: int) -> BatchPage:
        found = self._db.run(_PAGE, {"tenant": tenant_id, "after": after, "limit": limit})
        shown = [row[0] for n, row in enumerate(found[:limit]) if not n or row[1] <= _PAGE_SLICES]
        rows = self._db.run(_LIST, {"ids": shown}) if shown else []
        return BatchPage([view_of(row) for row in rows], has_more=len(shown) < len(found))

    def sharing(self, tenant_id: int, *, most: int) -> int:
        return self._db.run(_SHARING, {"tenant": tenant_id, "most": most})[0][0]

    def cancel(self, tenant_id: int, batch_id: uuid.UUID) -> bool:
        return self._move(_TO_CANCEL, CANCEL_SLICES, {"id": batch_id, "tenant": tenant_id})

    def pause(self, tenant_id: int, batch_id: uuid.UUID) -> bool:
        return self._move(_TO_PAUSE, HOLD_SLICES, {"id": batch_id, "tenant": tenant_id})

    def resume(self, tenant_id: int, batch_id: uuid.UUID) -> bool:
        return self._move(_TO_RESUME, _RESUME_SLICES, {"id": batch_id, "tenant": tenant_id})

    def slices(self, batch_id: uuid.UUID, *, after: int = -1, limit: int = 1000) -> list[SliceView]:
        rows = self._db.run(_SLICES, {"id": batch_id, "after": after, "limit": limit})
        return [_slice(row) for row in rows]


def _slice(row: Row) -> SliceView:
    *fields, payload, failed, staged, published = row
    return SliceView(
        *fields,
        payload=bytes(payload),
        failed=bytes(failed) if failed is not None else None,
        staged=msgspec.json.decode(staged, type=Staged) if staged is not None else None,
        published=published,
    )
