"""Rules of models, and copies of jobs for their shadows: jobs of a tenant of its own, with a row beside each."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence

import psycopg2

from batchline.job import NewJob, first_id_at
from batchline.store.postgres import Database, columns
from batchline.store.traffic_contract import MOST_PAIRS, WINDOW_JOBS, WINDOW_S, Ended, Pair
from batchline.traffic import SHADOW_TENANT, Canary, Rule

_STEP = 10_000
_SMALL_BYTES = 16 * 1024
"""Larger outputs, as they are stored, are not compared."""
_LOOKED_AT = 10 * MOST_PAIRS
"""Copies among which pairs are looked for: many may still be waiting."""

_RULES = "SELECT model, production, canary, canary_percent, shadow, updated_at FROM traffic"

_PUT = """
INSERT INTO traffic AS t (model, production, canary, canary_percent, shadow)
VALUES (%(model)s, %(production)s, %(canary)s, %(percent)s, %(shadow)s)
ON CONFLICT (model) DO UPDATE SET production = excluded.production, canary = excluded.canary,
  canary_percent = excluded.canary_percent, shadow = excluded.shadow, updated_at = now()
RETURNING updated_at
"""

# Ids are minted before: a lost reply is answered by the same statement again.
_COPY = f"""
WITH new AS MATERIALIZED (
  SELECT * FROM unnest(%(id)s::uuid[], %(of)s::uuid[], %(model)s::int[], %(lane)s::job_lane[], %(priority)s::smallint[],
                       %(rank)s::bigint[], %(rows)s::int[], %(payload)s::bytea[], %(deadline)s::timestamptz[])
    AS t(id, of, model_id, lane, priority, rank, rows, payload, deadline_at)
), inserted AS (
  INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, deadline_at)
  SELECT id, {SHADOW_TENANT}, model_id, lane, 'queued', priority, rank, rows, deadline_at FROM new ORDER BY id
  ON CONFLICT (id) DO NOTHING
), kept AS (
  INSERT INTO job_inputs (job_id, payload) SELECT id, payload FROM new ORDER BY id ON CONFLICT (job_id) DO NOTHING
)
INSERT INTO shadows (id, of, model_id) SELECT id, of, model_id FROM new ORDER BY id ON CONFLICT (id) DO NOTHING
"""

# Ids sort by time: the newest jobs are the end of the primary key, and so many are read of it, whatever there is.
_LATELY = f"""
WITH recent AS MATERIALIZED (
  SELECT j.id, j.tenant_id, j.model_id, j.lane, j.status FROM jobs j WHERE j.id >= %(since)s
  ORDER BY j.id DESC LIMIT {WINDOW_JOBS}
), mine AS MATERIALIZED (
  SELECT r.role, j.id, j.status FROM recent j
  JOIN unnest(%(roles)s::text[], %(models)s::int[]) AS r(role, model_id) ON r.model_id = j.model_id
  WHERE j.lane = 'online' AND j.status IN ('succeeded', 'failed')
    AND (j.tenant_id = {SHADOW_TENANT}) = (r.role = 'shadow')
)
SELECT m.role, count(*), count(*) FILTER (WHERE m.status = 'failed'),
  percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY (r.timings ->> 'predict')::float8)
FROM mine m LEFT JOIN job_results r ON r.job_id = m.id GROUP BY m.role
"""

_PAIRS = f"""
SELECT a.outputs::text, b.outputs::text
FROM (SELECT id, of FROM shadows WHERE model_id = %(model)s AND id >= %(since)s ORDER BY id DESC LIMIT {_LOOKED_AT}) s
JOIN jobs ja ON ja.id = s.of AND ja.status = 'succeeded' JOIN jobs jb ON jb.id = s.id AND jb.status = 'succeeded'
JOIN job_results a ON a.job_id = s.of AND pg_column_size(a.outputs) <= {_SMALL_BYTES}
JOIN job_results b ON b.job_id = s.id AND pg_column_size(b.outputs) <= {_SMALL_BYTES}
ORDER BY s.id DESC LIMIT {MOST_PAIRS}
"""

_PRUNE = """
WITH old AS MATERIALIZED (
  SELECT id FROM shadows WHERE id < %(before)s ORDER BY id LIMIT %(step)s FOR UPDATE SKIP LOCKED
)
DELETE FROM shadows s USING old WHERE s.id = old.id RETURNING 1
"""


class Traffic:
    """See `batchline.store.traffic_contract.Traffic`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def rules(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {}
        for model, production, canary, percent, shadow, at in self._db.run(_RULES):
            share = None if canary is None else Canary(canary, percent)
            rules[model] = Rule(production, share, shadow, at)
        return rules

    def put(self, model: str, rule: Rule) -> Rule:
        canary = rule.canary
        params = {
            "model": model,
            "production": rule.production,
            "canary": canary and canary.version,
            "percent": canary and canary.percent,
            "shadow": rule.shadow,
        }
        return Rule(rule.production, canary, rule.shadow, self._db.run(_PUT, params)[0][0])

    def delete(self, model: str) -> bool:
        return bool(self._db.run("DELETE FROM traffic WHERE model = %(model)s RETURNING 1", {"model": model}))

    def copy(self, copies: Sequence[tuple[NewJob, uuid.UUID]]) -> None:
        names = ("id", "of", "model", "lane", "priority", "rank", "rows", "payload", "deadline")
        records = [
            (j.id, of, j.model_id, j.lane.value, j.priority, j.rank, j.rows, psycopg2.Binary(j.payload), j.deadline_at)
            for j, of in copies
        ]
        self._db.run(_COPY, dict(zip(names, columns(records, len(names)), strict=True)))

    def lately(self, roles: Mapping[str, int]) -> dict[str, Ended]:
        params = {"since": _since(WINDOW_S), "roles": list(roles), "models": list(roles.values())}
        found = dict.fromkeys(roles, Ended())
        for role, jobs, failed, percentiles in self._db.run(_LATELY, params):
            found[role] = Ended(jobs, failed, *(percentiles or (None, None)))
        return found

    def pairs(self, model_id: int) -> list[Pair]:
        return [Pair(*row) for row in self._db.run(_PAIRS, {"model": model_id, "since": _since(WINDOW_S)})]

    def prune(self, *, kept_s: float) -> int:
        return len(self._db.run(_PRUNE, {"before": _since(kept_s), "step": _STEP}))


def _since(age_s: float) -> uuid.UUID:
    return first_id_at(time.time() - age_s)
