"""How a batch goes into its row and comes out of it: the insert, the aggregate of its counts, the view."""

from __future__ import annotations

import psycopg2

from batchline.batch import BATCH_TRANSITIONS, BatchStatus, BatchView, Counts, NewBatch
from batchline.job import TERMINAL, Move, guard, names
from batchline.store import subscriptions
from batchline.store.postgres import Params, Row, Transaction

_COLUMNS = (
    "id", "tenant_id", "kind", "body", "model_id", "priority", "deadline_at", "error_threshold", "metadata",
    "input_file_id", "parent_id", "schedule_id", "fire_at",
)  # fmt: skip
_CASTS = {
    "id": "uuid", "tenant_id": "int", "kind": "text", "body": "bytea", "model_id": "int", "priority": "smallint",
    "deadline_at": "timestamptz", "error_threshold": "float8", "metadata": "text", "input_file_id": "uuid",
    "parent_id": "uuid", "schedule_id": "uuid", "fire_at": "timestamptz",
}  # fmt: skip

_INSERT = f"""INSERT INTO batches ({", ".join(_COLUMNS)}, webhook, status)
SELECT {", ".join(f"%({name})s::{_CASTS[name]}" for name in _COLUMNS)}, %(webhook)s, 'validating'
ON CONFLICT (id) DO NOTHING""".replace(
    "%(deadline_at)s::timestamptz", "coalesce(%(deadline_at)s::timestamptz, now() + %(window)s::interval)"
)

_DONE = "j.status IN ('succeeded', 'failed')"

# A slice's rows are spread evenly over the time it ran; what of that time falls into the last minute counts.
_SHARE = """
  (extract(epoch FROM coalesce(j.finished_at, now()) - greatest(j.started_at, now() - interval '60 s'))::float8 + 0.001)
  / (extract(epoch FROM coalesce(j.finished_at, now()) - j.started_at)::float8 + 0.001)
"""
_RECENT = f"""
  CASE WHEN j.status = 'running' AND s.attempt = j.attempt THEN s.rows_done * {_SHARE}
       WHEN s.staged IS NOT NULL AND j.finished_at > now() - interval '60 s' THEN s.rows * {_SHARE} END
"""

COUNTED = f"""
SELECT count(*) AS slices, count(*) FILTER (WHERE j.status IN ({names(TERMINAL)})) AS slices_done,
  coalesce(sum(s.rows), 0) AS total,
  coalesce(sum(s.rows - j.rows_failed) FILTER (WHERE {_DONE}), 0) AS succeeded,
  coalesce(sum(j.rows_failed) FILTER (WHERE {_DONE}), 0) AS failed,
  coalesce(sum(s.rows) FILTER (WHERE j.status = 'cancelled'), 0) AS cancelled,
  coalesce(sum(s.rows) FILTER (WHERE j.status = 'expired'), 0) AS expired,
  coalesce(sum(s.rows) FILTER (WHERE j.status = 'running'), 0) AS running,
  coalesce(sum(s.rows) FILTER (WHERE j.status = 'queued'), 0) AS queued,
  coalesce(sum({_RECENT}), 0) AS recent
FROM slices s JOIN jobs j ON j.id = s.job_id WHERE s.batch_id = b.id
"""
"""The counts of the slices of a batch `b`."""

_FIELDS = f"""
SELECT b.id, b.tenant_id, b.kind, b.status::text, b.body, m.name, m.version::text, b.priority, b.error_threshold,
  b.metadata, b.parent_id, b.schedule_id, b.fire_at, b.input_file_id, b.output_file_id, b.error_file_id, b.errors,
  b.created_at, b.deadline_at, b.in_progress_at, b.finalizing_at, b.completed_at, b.failed_at, b.expired_at,
  b.cancelling_at, b.cancelled_at, b.paused_at, b.results_pruned, {subscriptions.shown("b")}
"""

VIEW = f"""{_FIELDS},
  CASE WHEN b.ended_at IS NULL THEN c.total ELSE b.rows_total END,
  c.succeeded + b.rows_succeeded, c.failed + b.rows_failed, c.cancelled + b.rows_cancelled, c.expired + b.rows_expired,
  c.running, c.queued, coalesce(c.recent / least(60, greatest(1, extract(epoch FROM now() - b.in_progress_at))), 0),
  b.slices, CASE WHEN b.ended_at IS NULL THEN c.slices_done ELSE b.slices END
FROM batches b LEFT JOIN models m ON m.id = b.model_id CROSS JOIN LATERAL ({COUNTED} AND b.ended_at IS NULL) c
"""
"""Batches with their counts, for `view_of`. The aggregate is not made for those that have ended."""

UNCOUNTED = f"{_FIELDS}, 0, 0, 0, 0, 0, 0, 0, 0.0, b.slices, 0 FROM batches b LEFT JOIN models m ON m.id = b.model_id "
"""The same for whoever needs no counts: they are 0."""

CANCEL_SLICES = f"""
WITH c AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.id IN (SELECT s.job_id FROM slices s WHERE s.batch_id = %(id)s)
    AND {guard(Move.CANCEL)} ORDER BY j.id FOR UPDATE
)
UPDATE jobs j SET status = 'cancelled', finished_at = now(), exposed = false FROM c
WHERE j.id = c.id AND {guard(Move.CANCEL, by_id=True)}
"""
"""Run under the lock of the batch's row, in a statement of its own: so it sees the slices of a plan that was first."""

HOLD_SLICES = """
WITH c AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.id IN (SELECT s.job_id FROM slices s WHERE s.batch_id = %(id)s)
    AND j.status = 'queued' AND (j.run_at IS NULL OR j.run_at < 'infinity') ORDER BY j.id FOR UPDATE
)
UPDATE jobs j SET run_at = 'infinity' FROM c WHERE j.id = c.id AND j.status = 'queued' RETURNING j.id
"""
"""The same: takes the queued slices out of the queue."""


def batch_guard(move: str) -> str:
    """The SQL condition under which a move of BATCH_TRANSITIONS is legal, for a table aliased `b`."""
    return "b.status IN ({})".format(", ".join(f"'{status}'" for status in sorted(BATCH_TRANSITIONS[move][0])))


def insert(transaction: Transaction, batch: NewBatch) -> None:
    """Store a batch, and who is to be told of its end; one that is there already stays as it is."""
    params: Params = {
        **{name: getattr(batch, name) for name in _COLUMNS},
        "window": batch.window,
        "body": psycopg2.Binary(batch.body),
        "webhook": batch.webhook is not None,
    }
    transaction.run(_INSERT, params)
    if batch.webhook is not None:
        subscriptions.subscribe(transaction, batch.tenant_id, batch.id, batch.webhook)


def view_of(row: Row) -> BatchView:
    """A row of `VIEW` or `UNCOUNTED`."""
    fields = list(row)
    fields[3], fields[4] = BatchStatus(fields[3]), bytes(fields[4])
    *own, pruned, asked = fields[:29]
    counts = Counts(*(int(n) for n in fields[29:36]))
    rate, slices, done = fields[36:]
    return BatchView(
        *own,
        counts=counts,
        rows_per_s=float(rate),
        slices=slices,
        slices_done=done,
        results_pruned=pruned,
        webhook=subscriptions.webhook_of(asked),
    )
