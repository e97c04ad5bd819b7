"""What the autoscaler decides from, and what it has decided: totals of the pools, and the kept decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from operator import itemgetter

import msgspec

from batchline.job import Lane, first_id_at
from batchline.store.contract import Speed
from batchline.store.instance_contract import ModelTotals, Scaling, Totals
from batchline.store.postgres import Database, Row
from batchline.store.speeds import SPEEDS

DEADLINES = 1000
"""Of open batches, the earliest: as many are told at most."""

_KEEP = """
WITH old AS (DELETE FROM scalings WHERE at < now() - %(kept)s * interval '1 second')
INSERT INTO scalings (pool, at, desired, reason, signals)
VALUES (%(pool)s, %(at)s, %(desired)s, %(reason)s, %(signals)s::json) ON CONFLICT (pool, at) DO NOTHING
"""

_OF_ALL = """
SELECT at, pool, desired, reason, signals FROM scalings
WHERE at >= coalesce(%(since)s::timestamptz, '-infinity') ORDER BY at DESC, pool LIMIT %(limit)s
"""

_OF_POOL = _OF_ALL.replace("ORDER BY", "AND pool = %(pool)s ORDER BY")

# A row for each model, and one for each pool without any. Ids sort by time of creation: what arrived is a range of the
# primary key. Of a running slice, what is left of it. What pruned workers did is kept by pool, so no sum ever shrinks.
# A worker that has had no online work yet tells the speed of its slices, a hundred times as fast, for both: it says
# nothing of online work as long as any other knows.
_TOTALS = f"""
WITH {SPEEDS}, arrived AS MATERIALIZED (
  SELECT model_id, sum(rows) AS rows FROM jobs WHERE id >= %(from)s AND lane = 'online' GROUP BY 1
), running AS MATERIALIZED (
  SELECT j.model_id, sum(j.rows) FILTER (WHERE j.lane <> 'bulk') AS online,
    sum(j.rows - CASE WHEN s.attempt = j.attempt THEN least(s.rows_done, j.rows) ELSE 0 END)
      FILTER (WHERE j.lane = 'bulk') AS bulk
  FROM jobs j LEFT JOIN slices s ON s.job_id = j.id AND j.lane = 'bulk' WHERE j.status = 'running' GROUP BY 1
), of_workers AS MATERIALIZED (
  SELECT pool, sum(rows_done) AS done,
    avg(rows_per_s) FILTER (WHERE rows_per_s > 0 AND rows_per_s <> bulk_rows_per_s AND lease_until > now()) AS rate,
    (array_agg(rows_per_s ORDER BY heartbeat_at DESC)
      FILTER (WHERE rows_per_s > 0 AND rows_per_s <> bulk_rows_per_s))[1] AS last_rate,
    avg(bulk_rows_per_s) FILTER (WHERE bulk_rows_per_s > 0 AND lease_until > now()) AS bulk,
    (array_agg(bulk_rows_per_s ORDER BY heartbeat_at DESC) FILTER (WHERE bulk_rows_per_s > 0))[1] AS last_bulk
  FROM workers GROUP BY 1
)
SELECT pool, coalesce(w.done, 0) + coalesce(p.rows_done, 0),
  coalesce(w.rate, w.last_rate, nullif(p.rows_per_s, 0), w.bulk, w.last_bulk, p.bulk_rows_per_s, 0)::float8,
  coalesce(w.bulk, w.last_bulk, p.bulk_rows_per_s, 0)::float8,
  m.id, coalesce(a.rows, 0)::bigint, coalesce(r.online, 0)::bigint, coalesce(r.bulk, 0)::bigint,
  coalesce(s.online, 0), coalesce(s.bulk, 0)
FROM models m FULL JOIN of_workers w USING (pool)
LEFT JOIN arrived a ON a.model_id = m.id LEFT JOIN running r ON r.model_id = m.id
LEFT JOIN speeds s ON s.model_id = m.id
LEFT JOIN (SELECT name AS pool, rows_done, rows_per_s, bulk_rows_per_s FROM pools) p USING (pool) ORDER BY pool
"""

# Slices have the deadline of their batch, so each deadline is one probe of an index that holds online jobs too. Slices
# of a paused batch (run_at is infinity) wait for nobody. However many batches are open, a tick makes so many probes:
# what is due later than the first of them counts as bulk without a deadline.
_DEMANDS = f"""
WITH due AS MATERIALIZED (
  SELECT DISTINCT deadline_at FROM batches WHERE ended_at IS NULL AND deadline_at IS NOT NULL
  ORDER BY deadline_at LIMIT {DEADLINES}
), waiting AS MATERIALIZED (
  SELECT q.model_id, due.deadline_at, q.rows FROM due CROSS JOIN LATERAL (
    SELECT j.model_id, sum(j.rows) AS rows FROM jobs j
    WHERE j.deadline_at = due.deadline_at AND j.status = 'queued' AND j.lane = 'bulk'
      AND (j.run_at IS NULL OR j.run_at < 'infinity') GROUP BY 1) q
), running AS MATERIALIZED (
  SELECT j.model_id, j.deadline_at,
    j.rows - CASE WHEN s.attempt = j.attempt THEN least(s.rows_done, j.rows) ELSE 0 END AS rows
  FROM jobs j JOIN slices s ON s.job_id = j.id
  WHERE j.status = 'running' AND j.lane = 'bulk' AND j.deadline_at IS NOT NULL
)
SELECT m.pool, greatest(extract(epoch FROM d.deadline_at - now()), 0)::float8, m.id, sum(d.rows)::bigint
FROM (SELECT * FROM waiting UNION ALL SELECT * FROM running) d JOIN models m ON m.id = d.model_id
GROUP BY m.pool, d.deadline_at, m.id ORDER BY m.pool, d.deadline_at
"""


def keep(db: Database, scaling: Scaling, kept_s: float) -> None:
    """See `Instances.decided`."""
    params = {
        "at": scaling.at,
        "pool": scaling.pool,
        "desired": scaling.desired,
        "reason": scaling.reason,
        "signals": msgspec.json.encode(scaling.signals).decode(),
        "kept": kept_s,
    }
    db.run(_KEEP, params)


def read(db: Database, pool: str | None, limit: int, since: datetime | None) -> list[Scaling]:
    """See `Instances.decisions`."""
    params = {"pool": pool, "limit": limit, "since": since}
    return [Scaling(*row) for row in db.run(_OF_ALL if pool is None else _OF_POOL, params)]


def totals(db: Database, since: datetime) -> list[Totals]:
    """See `Instances.totals`."""
    counted = groupby(db.run(_TOTALS, {"from": first_id_at(since.timestamp())}), key=itemgetter(0))
    found = [_totals(list(rows)) for _, rows in counted]
    due = {pool: list(rows) for pool, rows in groupby(db.run(_DEMANDS), key=itemgetter(0))}
    return [replace(one, demands=_demands(one, due.get(one.pool, ()))) for one in found]


def _totals(rows: Sequence[Row]) -> Totals:
    """Of the rows of `_TOTALS` of one pool."""
    pool, done, rate, bulk_rate, *_ = rows[0]
    models = {row[4]: ModelTotals(row[5], Speed(row[8], row[9])) for row in rows if row[4] is not None}
    arrived, running = sum(row[5] for row in rows), sum(row[6] + row[7] for row in rows)
    found = Totals(pool, arrived, int(done), running, rate, (), bulk_rate, models=models)
    work_s = (found.work_s(row[4], Lane.ONLINE, row[6]) + found.work_s(row[4], Lane.BULK, row[7]) for row in rows)
    return replace(found, running_work_s=sum(work_s))


def _demands(totals: Totals, due: Sequence[Row]) -> tuple[tuple[float, int, float], ...]:
    """Added up over rows of `_DEMANDS`, those of one pool."""
    found, rows, work_s = list[tuple[float, int, float]](), 0, 0.0
    for due_s, each in groupby(due, key=itemgetter(1)):
        for _, _, model_id, n in each:
            rows += n
            work_s += totals.work_s(model_id, Lane.BULK, n)
        found.append((due_s, rows, work_s))
    return tuple(found)
