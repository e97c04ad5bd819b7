"""Deadlines of batches: what is due when, and the ranks of slices whose turn would come too late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from batchline.batch import MAX_SLICES
from batchline.job import Move, guard
from batchline.store.expedite_contract import Due, Pick
from batchline.store.postgres import Database, columns
from batchline.store.speeds import SPEEDS

_DUES = 10_000
"""Pairs of model and deadline that are told, the earliest."""

_PLANNED = f"""
WITH open AS MATERIALIZED (
  SELECT b.model_id, b.deadline_at, sum(b.rows_total)::bigint AS rows, sum(b.slices)::bigint AS slices,
    max(b.rows_total::float8 / nullif(b.slices, 0)) AS slice_rows FROM batches b
  WHERE b.status = 'in_progress' AND b.ended_at IS NULL AND b.paused_at IS NULL GROUP BY 1, 2
), {SPEEDS}, of_workers AS MATERIALIZED (
  SELECT pool, count(*) FILTER (WHERE lease_until > now() AND NOT draining) AS workers,
    coalesce(avg(bulk_rows_per_s) FILTER (WHERE bulk_rows_per_s > 0 AND lease_until > now()),
      (array_agg(bulk_rows_per_s ORDER BY heartbeat_at DESC) FILTER (WHERE bulk_rows_per_s > 0))[1]) AS bulk
  FROM workers GROUP BY 1
), of_pools AS MATERIALIZED (
  SELECT m.pool, o.*, coalesce(w.workers, 0) AS workers, coalesce(s.bulk, w.bulk, p.bulk_rows_per_s, 0) AS speed
  FROM open o JOIN models m ON m.id = o.model_id LEFT JOIN speeds s ON s.model_id = o.model_id
  LEFT JOIN of_workers w ON w.pool = m.pool LEFT JOIN pools p ON p.name = m.pool
)
SELECT pool, model_id, deadline_at, rows, slices, slices, workers, speed, busy FROM (
  SELECT *, coalesce(max(slice_rows / nullif(speed, 0)) OVER (PARTITION BY pool), 0) AS busy FROM of_pools) d
WHERE deadline_at IS NOT NULL ORDER BY deadline_at, model_id LIMIT {_DUES}
"""

# Slices have the deadline of their batch, so each is one probe of an index that holds online jobs too. Those of a
# paused batch (run_at is infinity) may share it with others. Of a running slice, what is left of it.
_LEFT = """
WITH t AS MATERIALIZED (
  SELECT * FROM unnest(%(model)s::int[], %(deadline)s::timestamptz[]) WITH ORDINALITY AS t(model_id, deadline_at, n)
), running AS MATERIALIZED (
  SELECT j.model_id, j.deadline_at, count(*) AS slices,
    sum(j.rows - CASE WHEN s.attempt = j.attempt THEN least(s.rows_done, j.rows) ELSE 0 END) AS rows
  FROM jobs j JOIN slices s ON s.job_id = j.id
  WHERE j.status = 'running' AND j.lane = 'bulk' AND j.deadline_at IS NOT NULL GROUP BY 1, 2
)
SELECT t.n, coalesce(q.rows, 0) + coalesce(r.rows, 0), q.slices + coalesce(r.slices, 0), q.ready
FROM t CROSS JOIN LATERAL (
  SELECT sum(j.rows) AS rows, count(*) AS slices, count(*) FILTER (WHERE j.run_at IS NULL) AS ready FROM jobs j
  WHERE j.deadline_at = t.deadline_at AND j.model_id = t.model_id AND j.status = 'queued' AND j.lane = 'bulk'
    AND (j.run_at IS NULL OR j.run_at < 'infinity')) q
LEFT JOIN running r ON r.model_id = t.model_id AND r.deadline_at = t.deadline_at
ORDER BY t.n
"""

# Other ranks are microseconds since 1970, about 10^15. These are seconds of the deadline times 10^4, about 10^13, and
# below 10^15 for all deadlines until the year 5138; never below 0, where no claim looks. What has been moved is among
# the first of its deadline as long as it waits, so a repeat finds nothing to lock and nothing to write.
_EXPEDITE = f"""
WITH next AS MATERIALIZED (
  SELECT j.id, least(extract(epoch FROM t.deadline_at)::bigint, 99999999999) * {MAX_SLICES} + s.number AS rank
  FROM unnest(%(model)s::int[], %(deadline)s::timestamptz[], %(most)s::int[]) AS t(model_id, deadline_at, most)
  CROSS JOIN LATERAL (
    SELECT j.id FROM jobs j
    WHERE j.deadline_at = t.deadline_at AND j.model_id = t.model_id AND j.status = 'queued' AND j.lane = 'bulk'
      AND j.run_at IS NULL
    ORDER BY j.rank, j.id LIMIT t.most) j
  JOIN slices s ON s.job_id = j.id
), behind AS MATERIALIZED (
  SELECT j.id, next.rank FROM next JOIN jobs j ON j.id = next.id
  WHERE j.rank > next.rank AND j.run_at IS NULL AND {guard(Move.CLAIM, by_id=True)}
  ORDER BY next.rank, j.id FOR UPDATE OF j SKIP LOCKED
)
UPDATE jobs j SET rank = behind.rank FROM behind
WHERE j.id = behind.id AND {guard(Move.CLAIM, by_id=True)} RETURNING j.id
"""


class Deadlines:
    """See `batchline.store.expedite_contract.Deadlines`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def planned(self) -> list[Due]:
        return [Due(*row) for row in self._db.run(_PLANNED)]

    def left(self, dues: Sequence[Due]) -> list[Due]:
        records = [(due.model_id, due.deadline_at) for due in dues]
        found = self._db.run(_LEFT, dict(zip(("model", "deadline"), columns(records, 2), strict=True)))
        return [
            replace(dues[n - 1], rows=int(rows), slices=int(slices), queued=queued)
            for n, rows, slices, queued in found
            if slices
        ]

    def expedite(self, picks: Sequence[Pick]) -> int:
        records = [(pick.model_id, pick.deadline_at, pick.most) for pick in picks]
        return len(self._db.run(_EXPEDITE, dict(zip(("model", "deadline", "most"), columns(records, 3), strict=True))))
