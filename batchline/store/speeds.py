"""How fast one worker does the rows of a model: SQL that other statements join."""

from __future__ import annotations

# A model belongs to one pool, so its id says which workers told of it. What is left of pruned ones outlives them all.
SPEEDS = """
told AS MATERIALIZED (
  SELECT s.key::int AS model_id, w.heartbeat_at, w.lease_until > now() AS live,
    nullif((s.value->>0)::float8, 0) AS online, nullif((s.value->>1)::float8, 0) AS bulk
  FROM workers w CROSS JOIN jsonb_each(w.speeds) s
), speeds AS MATERIALIZED (
  SELECT model_id, coalesce(t.online, t.last_online, k.online) AS online, coalesce(t.bulk, t.last_bulk, k.bulk) AS bulk
  FROM (
    SELECT model_id, avg(online) FILTER (WHERE live) AS online, avg(bulk) FILTER (WHERE live) AS bulk,
      (array_agg(online ORDER BY heartbeat_at DESC) FILTER (WHERE online IS NOT NULL))[1] AS last_online,
      (array_agg(bulk ORDER BY heartbeat_at DESC) FILTER (WHERE bulk IS NOT NULL))[1] AS last_bulk
    FROM told GROUP BY 1
  ) t FULL JOIN model_speeds k USING (model_id)
)
"""
"""Parts of WITH: `speeds` (model_id, online, bulk), rows/s of one worker busy with the model; NULL: never measured.

The mean of the live workers that ever measured it, else as last told by any, else as kept when those were pruned.
"""
