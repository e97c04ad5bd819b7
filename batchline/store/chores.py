"""What the scheduler does to jobs: rescue, release, expire, prune, count. Safe under two leaders at once."""

from __future__ import annotations

import time

from batchline.job import Lane, Move, first_id_at, guard
from batchline.store.contract import Backlog, Rescued
from batchline.store.failures import FAILED
from batchline.store.postgres import Database
from batchline.store.subscriptions import FORGET

_STEP = 10_000
"""Rows a chore moves in one statement."""

_CRASHES = 200
"""How often a slice may crash alone: narrowing a million rows down to a guilty one takes twenty."""

# A crash in company proves nothing: the job becomes suspect. Only a crash while exposed, alone in a forward pass,
# counts towards poison. Of a slice it counts nothing: the next attempt narrows down what was exposed, until one row is
# guilty; but a slice that crashes alone for ever, wherever, is given up too.
_RESCUE = f"""
WITH lost AS MATERIALIZED (
  SELECT j.id, s.job_id IS NOT NULL AS slice,
    CASE WHEN s.job_id IS NULL THEN j.exposed AND j.failures + 1 >= %(max)s
         ELSE j.suspect AND s.crashes >= {_CRASHES} END AS poison
  FROM jobs j JOIN workers w ON w.id = j.worker_id LEFT JOIN slices s ON s.job_id = j.id
  WHERE {guard(Move.RESCUE)} AND w.lease_until < now() LIMIT %(step)s FOR UPDATE OF j SKIP LOCKED
), crashed AS (
  UPDATE slices s SET crashes = s.crashes + j.suspect::int, died = s.died OR j.exposed
  FROM lost, jobs j WHERE lost.slice AND s.job_id = lost.id AND j.id = lost.id AND NOT lost.poison
), u AS (
  UPDATE jobs j SET worker_id = NULL, exposed = false, suspect = true,
    failures = j.failures + (j.exposed AND NOT lost.slice)::int,
    status = CASE WHEN lost.poison THEN 'failed' ELSE 'queued' END::job_status,
    finished_at = CASE WHEN lost.poison THEN now() END,
    rows_failed = CASE WHEN lost.poison THEN j.rows ELSE 0 END,
    code = CASE WHEN lost.poison THEN 'poison' END,
    run_at = CASE WHEN j.exposed AND NOT lost.poison AND NOT lost.slice
                  THEN now() + j.failures * interval '1 second' END
  FROM lost WHERE j.id = lost.id AND {guard(Move.RESCUE, by_id=True)}
  RETURNING j.id, j.status, j.lane, j.rows, j.code,
    'The worker process died each time this job ran alone; it is not tried again.' AS error
), {FAILED}
SELECT id, status::text FROM u
"""

# Whoever skips what is locked waits for nobody, so the chores lock in the order of their index.
_EXPIRE = f"""
WITH late AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE {guard(Move.EXPIRE)} AND j.deadline_at <= now()
  ORDER BY j.deadline_at LIMIT %(step)s FOR UPDATE SKIP LOCKED
)
UPDATE jobs j SET status = 'expired', finished_at = now() FROM late
WHERE j.id = late.id AND {guard(Move.EXPIRE, by_id=True)} RETURNING j.id
"""

_RELEASE = """
WITH due AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.status = 'queued' AND j.run_at <= now()
  ORDER BY j.run_at LIMIT %(step)s FOR UPDATE SKIP LOCKED
)
UPDATE jobs j SET run_at = NULL FROM due WHERE j.id = due.id AND j.status = 'queued' RETURNING j.id
"""

# One probe of each index per model, however long the queues are. (EXISTS would be answered by hashing the whole queue.)
_WAITING = """
SELECT DISTINCT m.pool, w.lane::text FROM models m CROSS JOIN LATERAL (
  (SELECT j.lane FROM jobs j WHERE j.model_id = m.id AND j.lane = 'online'
     AND j.status = 'queued' AND j.run_at IS NULL AND NOT j.suspect ORDER BY j.rank LIMIT 1)
  UNION ALL
  (SELECT j.lane FROM jobs j WHERE j.model_id = m.id AND j.lane = 'bulk'
     AND j.status = 'queued' AND j.run_at IS NULL AND NOT j.suspect ORDER BY j.rank LIMIT 1)
  UNION ALL
  (SELECT j.lane FROM jobs j WHERE j.model_id = m.id AND j.lane = 'online'
     AND j.status = 'queued' AND j.run_at IS NULL AND j.suspect ORDER BY j.rank LIMIT 1)
  UNION ALL
  (SELECT j.lane FROM jobs j WHERE j.model_id = m.id AND j.lane = 'bulk'
     AND j.status = 'queued' AND j.run_at IS NULL AND j.suspect ORDER BY j.rank LIMIT 1)
) w
"""

# Ids sort by time of creation, and what ended before a time was made before it: both prunes walk a primary key from
# its old end up to `before`. The inputs' key holds no job that is pruned already. Slices go with their batch.
_PRUNE_RESULTS = """
WITH old AS MATERIALIZED (
  SELECT j.id FROM job_inputs i JOIN jobs j ON j.id = i.job_id
  WHERE i.job_id < %(before)s AND j.id < %(before)s AND j.lane <> 'bulk'
    AND j.finished_at < now() - %(kept)s * interval '1 second'
  ORDER BY i.job_id LIMIT %(step)s FOR UPDATE OF j SKIP LOCKED
), i AS (DELETE FROM job_inputs USING old WHERE job_id = old.id
), r AS (DELETE FROM job_results USING old WHERE job_id = old.id)
UPDATE jobs j SET result_pruned = true FROM old WHERE j.id = old.id RETURNING j.id
"""

_PRUNE_JOBS = f"""
WITH old AS MATERIALIZED (
  SELECT j.id, j.webhook FROM jobs j
  WHERE j.id < %(before)s AND j.lane <> 'bulk' AND j.result_pruned
    AND j.finished_at < now() - %(kept)s * interval '1 second'
  ORDER BY j.id LIMIT %(step)s FOR UPDATE SKIP LOCKED
), {FORGET}
DELETE FROM jobs USING old WHERE jobs.id = old.id RETURNING jobs.id
"""

_PRUNE_KEYS = """
WITH old AS MATERIALIZED (
  SELECT tenant_id, key FROM idempotency_keys WHERE created_at < now() - %(kept)s * interval '1 second'
  ORDER BY created_at LIMIT %(step)s FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys k USING old WHERE k.tenant_id = old.tenant_id AND k.key = old.key RETURNING 1
"""

# Totals of a pool must not shrink, nor its speed or that of a model be forgotten, when its workers are.
_PRUNE_WORKERS = """
WITH old AS (
  DELETE FROM workers w WHERE w.lease_until < now() - interval '1 day'
    AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.worker_id = w.id AND j.status = 'running')
  RETURNING w.pool, w.rows_done, w.rows_per_s, w.bulk_rows_per_s, w.heartbeat_at, w.speeds
), kept AS (
  INSERT INTO pools AS p (name, rows_done, rows_per_s, bulk_rows_per_s)
  SELECT pool, sum(rows_done),
    coalesce((array_agg(rows_per_s ORDER BY heartbeat_at DESC)
      FILTER (WHERE rows_per_s > 0 AND rows_per_s <> bulk_rows_per_s))[1], 0),
    coalesce((array_agg(bulk_rows_per_s ORDER BY heartbeat_at DESC) FILTER (WHERE bulk_rows_per_s > 0))[1], 0)
  FROM old GROUP BY pool ORDER BY pool
  ON CONFLICT (name) DO UPDATE SET rows_done = p.rows_done + excluded.rows_done,
    rows_per_s = CASE WHEN excluded.rows_per_s > 0 THEN excluded.rows_per_s ELSE p.rows_per_s END,
    bulk_rows_per_s = CASE WHEN excluded.bulk_rows_per_s > 0 THEN excluded.bulk_rows_per_s ELSE p.bulk_rows_per_s END
), kept_speeds AS (
  INSERT INTO model_speeds AS k (model_id, online, bulk)
  SELECT s.key::int, (array_agg((s.value->>0)::float8 ORDER BY heartbeat_at DESC) FILTER (WHERE s.value->0 > '0'))[1],
    (array_agg((s.value->>1)::float8 ORDER BY heartbeat_at DESC) FILTER (WHERE s.value->1 > '0'))[1]
  FROM old CROSS JOIN jsonb_each(speeds) s GROUP BY 1 ORDER BY 1
  ON CONFLICT (model_id) DO UPDATE SET online = coalesce(excluded.online, k.online),
    bulk = coalesce(excluded.bulk, k.bulk)
)
SELECT 1 FROM old
"""

# Nobody asks for a launch that was settled so long ago; what it brought tells of itself.
_PRUNE_LAUNCHES = """
DELETE FROM launches WHERE settled_at IS NOT NULL AND created_at < now() - interval '7 days' RETURNING 1
"""

_QUEUED = (
    "SELECT tenant_id, model_id, lane, rows, created_at FROM jobs WHERE status = 'queued' AND EXISTS (SELECT FROM turn)"
)

# One process counts at a time: whoever finds the mark older than the interval and unlocked. Slices of paused batches
# (run_at is infinity) wait for nobody and are not counted. Each part of the queue has
# its partial index; asked for together, they would be answered by a scan of all jobs ever kept.
_COUNT = f"""
WITH turn AS MATERIALIZED (
  UPDATE chore_marks SET at = clock_timestamp() WHERE name = 'backlog' AND at < now() - %(every)s * interval '1 second'
    AND name IN (SELECT name FROM chore_marks WHERE name = 'backlog' FOR UPDATE SKIP LOCKED)
  RETURNING 1
), counted AS MATERIALIZED (
  SELECT tenant_id, model_id, lane, count(*) AS jobs, sum(rows) AS rows, min(created_at) AS oldest_at
  FROM ({_QUEUED} AND run_at IS NULL AND NOT suspect UNION ALL {_QUEUED} AND run_at IS NULL AND suspect
        UNION ALL {_QUEUED} AND run_at < 'infinity') q GROUP BY 1, 2, 3
), gone AS (
  DELETE FROM backlog b WHERE EXISTS (SELECT 1 FROM turn)
    AND NOT EXISTS (SELECT 1 FROM counted c WHERE (c.tenant_id, c.model_id, c.lane) = (b.tenant_id, b.model_id, b.lane))
)
INSERT INTO backlog AS b SELECT * FROM counted ON CONFLICT (tenant_id, model_id, lane)
  DO UPDATE SET jobs = excluded.jobs, rows = excluded.rows, oldest_at = excluded.oldest_at
"""

_BACKLOG = """
SELECT b.tenant_id, b.model_id, m.pool, b.lane::text, b.jobs, b.rows, extract(epoch FROM now() - b.oldest_at)
FROM backlog b JOIN models m ON m.id = b.model_id
"""


class Chores:
    """See `batchline.store.contract.Chores`."""

    STEP = _STEP

    def __init__(self, db: Database) -> None:
        self._db = db

    def settled(self, *, lease_s: float) -> bool:
        sql = "SELECT pg_postmaster_start_time() < now() - %(lease)s * interval '1 second'"
        return bool(self._db.run(sql, {"lease": lease_s})[0][0])

    def rescue(self, *, max_failures: int) -> Rescued:
        rows = self._db.run(_RESCUE, {"max": max_failures, "step": _STEP})
        poisoned = sum(status == "failed" for _, status in rows)
        return Rescued(requeued=len(rows) - poisoned, poisoned=poisoned)

    def expire(self) -> int:
        return len(self._db.run(_EXPIRE, {"step": _STEP}))

    def release(self) -> int:
        return len(self._db.run(_RELEASE, {"step": _STEP}))

    def waiting(self) -> list[tuple[str, Lane]]:
        return [(pool, Lane(lane)) for pool, lane in self._db.run(_WAITING)]

    def prune(self, *, results_kept_s: float, jobs_kept_s: float, keys_kept_s: float) -> int:
        steps = ((_PRUNE_RESULTS, results_kept_s), (_PRUNE_JOBS, jobs_kept_s), (_PRUNE_KEYS, keys_kept_s))
        now = time.time()
        pruned = sum(
            len(self._db.run(sql, {"kept": kept, "step": _STEP, "before": first_id_at(now - kept)}))
            for sql, kept in steps
        )
        return pruned + len(self._db.run(_PRUNE_WORKERS)) + len(self._db.run(_PRUNE_LAUNCHES))

    def count_backlog(self, *, every_s: float) -> None:
        self._db.run(_COUNT, {"every": every_s})

    def backlog(self) -> list[Backlog]:
        rows = self._db.run(_BACKLOG)
        return [Backlog(t, m, pool, Lane(lane), jobs, int(n), float(age)) for t, m, pool, lane, jobs, n, age in rows]
