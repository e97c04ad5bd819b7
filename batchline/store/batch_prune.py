"""Pruning of batches: first what is large, later the rows; a batch goes whole, its slices and their jobs with it."""

from __future__ import annotations

import uuid

from batchline.store.postgres import Database, Transaction
from batchline.store.subscriptions import FORGET

_RESULTS_STEP, _ROWS_STEP, _RUNS_STEP = 100, 1000, 10_000
"""Slices whose results, slices whose rows, and runs of schedules that one step removes at most."""

_OLD = """
SELECT b.id FROM batches b WHERE b.ended_at < now() - %(kept)s * interval '1 second' AND {pruned} b.results_pruned
ORDER BY b.ended_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_WITH_RESULTS = _OLD.format(pruned="NOT")
_WITHOUT_RESULTS = _OLD.format(pruned="")

_PRUNE_RESULTS = """
WITH old AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.id IN (SELECT s.job_id FROM slices s WHERE s.batch_id = %(id)s)
    AND NOT j.result_pruned ORDER BY j.id LIMIT %(step)s FOR UPDATE
), i AS (DELETE FROM job_inputs USING old WHERE job_id = old.id
), r AS (DELETE FROM job_results USING old WHERE job_id = old.id
), l AS (DELETE FROM batch_lines USING old WHERE job_id = old.id
), s AS (UPDATE slices s SET failed = NULL FROM old WHERE s.job_id = old.id AND s.failed IS NOT NULL)
UPDATE jobs j SET result_pruned = true FROM old WHERE j.id = old.id RETURNING 1
"""

_PRUNE_ROWS = """
WITH old AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.id IN (SELECT s.job_id FROM slices s WHERE s.batch_id = %(id)s LIMIT %(step)s)
  ORDER BY j.id FOR UPDATE
), l AS (DELETE FROM batch_lines USING old WHERE job_id = old.id
), s AS (DELETE FROM slices USING old WHERE job_id = old.id)
DELETE FROM jobs j USING old WHERE j.id = old.id RETURNING 1
"""

_PRUNE_BATCH = f"""
WITH old AS MATERIALIZED (SELECT id, webhook FROM batches WHERE id = %(id)s FOR UPDATE), {FORGET}
DELETE FROM batches b USING old WHERE b.id = old.id RETURNING 1
"""

# What would run again if it were forgotten is no history yet.
_PRUNE_RUNS = """
WITH old AS MATERIALIZED (
  SELECT schedule_id, fire_at FROM schedule_runs
  WHERE created_at < now() - %(kept)s * interval '1 second' AND outcome <> 'queued'
  ORDER BY created_at LIMIT %(step)s FOR UPDATE SKIP LOCKED
)
DELETE FROM schedule_runs r USING old WHERE r.schedule_id = old.schedule_id AND r.fire_at = old.fire_at RETURNING 1
"""


def step(db: Database, *, results_kept_s: float, batches_kept_s: float) -> int:
    """One step of each; returns how much went, a batch counting as one beside its slices."""
    return (
        db.transact(lambda t: _results(t, results_kept_s))
        + db.transact(lambda t: _rows(t, batches_kept_s))
        + len(db.run(_PRUNE_RUNS, {"kept": batches_kept_s, "step": _RUNS_STEP}))
    )


def _results(transaction: Transaction, kept_s: float) -> int:
    for (batch_id,) in transaction.run(_WITH_RESULTS, {"kept": kept_s}):
        pruned = len(transaction.run(_PRUNE_RESULTS, {"id": batch_id, "step": _RESULTS_STEP}))
        return pruned or _mark(transaction, batch_id)
    return 0


def _mark(transaction: Transaction, batch_id: uuid.UUID) -> int:
    transaction.run("UPDATE batches SET results_pruned = true WHERE id = %(id)s", {"id": batch_id})
    return 1


def _rows(transaction: Transaction, kept_s: float) -> int:
    for (batch_id,) in transaction.run(_WITHOUT_RESULTS, {"kept": kept_s}):
        pruned = len(transaction.run(_PRUNE_ROWS, {"id": batch_id, "step": _ROWS_STEP}))
        return pruned or len(transaction.run(_PRUNE_BATCH, {"id": batch_id}))
    return 0
