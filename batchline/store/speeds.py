"""How fast one worker does the rows of a model: SQL that other statements join."""

from __future__ import annotations

# A model belongs to one pool, so its id says which workers told of it. What is left of pruned ones outlives them all.
SPEEDS = """
speeds AS MATERIALIZED (
  SELECT model_id, coalesce(t.online, t.last_online, k.online) AS online, coalesce(t.bulk, t.last_bulk, k.bulk) AS bulk
  FROM (
    SELECT s.key::int AS model_id,
      avg((s.value->>0)::float8) FILTER (WHERE s.value->0 > '0' AND w.lease_until > now()) AS online,
      (array_agg((s.value->>0)::float8 ORDER BY w.heartbeat_at DESC) FILTER (WHERE s.value->0 > '0'))[1] AS last_online,
      avg((s.value->>1)::float8) FILTER (WHERE s.value->1 > '0' AND w.lease_until > now()) AS bulk,
      (array_agg((s.value->>1)::float8 ORDER BY w.heartbeat_at DESC) FILTER (WHERE s.value->1 > '0'))[1] AS last_bulk
    FROM workers w CROSS JOIN jsonb_each(w.speeds) s GROUP BY 1
  ) t FULL JOIN model_speeds k USING (model_id)
)
"""
"""A part of WITH: `speeds` (model_id, online, bulk), rows/s of one worker busy with the model; NULL: never measured.

The mean of the live workers that ever measured it, else as last told by any, else as kept when those were pruned.
"""
