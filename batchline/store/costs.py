"""Costs: what workers report by the hour, priced by the ledger of instances or by the price of their pool."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from batchline.batch import show_batch_id
from batchline.store.cost_contract import By, CostLine, Costs, JobCost, PoolMoney, Standing, Used
from batchline.store.postgres import Database, Row, columns

_STEP = 10_000
_NOBODY = uuid.UUID(int=0)
"""In place of a batch: a column of a primary key may not be null."""

_REPORT = """
INSERT INTO worker_hours AS h
  (hour, machine, worker_id, tenant_id, model_id, batch_id, pool, seconds, price_per_hour)
SELECT t.hour, CASE WHEN w.instance = '' THEN w.id::text ELSE w.instance END, w.id, t.tenant_id, t.model_id, t.batch_id,
  w.pool, t.seconds, coalesce(nullif(i.price_per_hour, 0), m.price_per_hour, 0)
FROM unnest(%(hour)s::timestamptz[], %(tenant)s::int[], %(model)s::int[], %(batch)s::uuid[], %(seconds)s::float8[])
    AS t(hour, tenant_id, model_id, batch_id, seconds)
  JOIN workers w ON w.id = %(worker)s LEFT JOIN pool_money m ON m.pool = w.pool
  LEFT JOIN instances i ON i.id = w.instance AND w.instance <> ''
ON CONFLICT (hour, machine, worker_id, tenant_id, model_id, batch_id)
  DO UPDATE SET seconds = greatest(h.seconds, excluded.seconds), price_per_hour = excluded.price_per_hour
"""

_SUMS = """
  sum(w.seconds) AS alive_s, coalesce(sum(w.seconds) FILTER (WHERE w.tenant_id <> 0), 0) AS busy_s,
  max(w.price_per_hour) AS price
"""

# Seconds of an hour `h` for which an instance `i` is paid.
_PAID = """
extract(epoch FROM least(coalesce(i.gone_at, now()), {h} + interval '1 hour') - greatest(i.launched_at, {h}))::float8
"""

# What an instance cost in an hour: as its workers noted it then (spot prices change), else as the ledger has it now.
_PRICE = "coalesce(nullif(u.price, 0), nullif(i.price_per_hour, 0), m.price_per_hour, 0)"

# One row for each machine and hour of the range: instances of the ledger whether or not a worker ever reported from
# them, and workers on machines that the ledger does not know, paid for as long as they lived. (The series of hours is
# made for each instance apart, so that a short life in a long range makes few.)
_MACHINES = f"""
used AS MATERIALIZED (
  SELECT w.hour, w.machine, max(w.pool) AS pool, {_SUMS} FROM worker_hours w
  WHERE w.hour >= %(since)s AND w.hour < %(until)s AND (%(pool)s::text IS NULL OR w.pool = %(pool)s::text)
  GROUP BY w.hour, w.machine
), machines AS MATERIALIZED (
  SELECT t.hour, i.id AS machine, i.pool, greatest({_PAID.format(h="t.hour")}, 0) AS paid_s,
    {_PRICE} AS price, coalesce(nullif(i.on_demand_per_hour, 0), {_PRICE}) AS on_demand,
    coalesce(u.alive_s, 0) AS alive_s, coalesce(u.busy_s, 0) AS busy_s
  FROM instances i CROSS JOIN LATERAL generate_series(
      greatest(date_trunc('hour', i.launched_at, 'UTC'), %(since)s),
      least(coalesce(i.gone_at, now()), %(until)s) - interval '1 microsecond', interval '1 hour') t(hour)
    LEFT JOIN used u ON u.hour = t.hour AND u.machine = i.id LEFT JOIN pool_money m ON m.pool = i.pool
  WHERE i.launched_at < %(until)s AND (i.status <> 'gone' OR i.gone_at > %(since)s)
    AND (%(pool)s::text IS NULL OR i.pool = %(pool)s::text)
  UNION ALL
  SELECT u.hour, u.machine, u.pool, u.alive_s, u.price, u.price, u.alive_s, u.busy_s
  FROM used u WHERE NOT EXISTS (SELECT FROM instances i WHERE i.id = u.machine)
)
"""

# Several workers on one machine share it, so that an hour of a machine may be several of workers.
_SHARED = """
shared AS MATERIALIZED (
  SELECT hour, machine, pool, busy_s, greatest(paid_s, alive_s, 1e-6) AS whole_s,
    paid_s * price / 3600 AS cost, paid_s * on_demand / 3600 AS on_demand
  FROM machines
)
"""

_KEYS = {
    By.TENANT: ("coalesce(t.name, w.tenant_id::text)", "NULL"),
    By.MODEL: ("coalesce(m.name || '@' || m.version, w.model_id::text)", "NULL"),
    By.BATCH: (f"nullif(w.batch_id, '{_NOBODY}')::text", "NULL"),
    By.POOL: ("s.pool", "s.pool"),
    By.DAY: ("to_char(s.hour AT TIME ZONE 'UTC', 'YYYY-MM-DD')",) * 2,
}
"""What lines are told by: of work, of idle time."""

_LINES = f"""
WITH {_MACHINES}, {_SHARED}
SELECT {{busy}} AS key, false AS idle, sum(w.seconds), sum(s.cost * w.seconds / s.whole_s) AS cost,
  sum(s.on_demand * w.seconds / s.whole_s)
FROM shared s JOIN worker_hours w ON w.hour = s.hour AND w.machine = s.machine AND w.tenant_id <> 0
  LEFT JOIN tenants t ON t.id = w.tenant_id LEFT JOIN models m ON m.id = w.model_id
WHERE w.hour >= %(since)s AND w.hour < %(until)s GROUP BY 1
UNION ALL
SELECT {{idle}}, true, sum(s.whole_s - s.busy_s), sum(s.cost * (s.whole_s - s.busy_s) / s.whole_s),
  sum(s.on_demand * (s.whole_s - s.busy_s) / s.whole_s)
FROM shared s GROUP BY 1
UNION ALL
SELECT count(DISTINCT machine)::text, NULL, coalesce(sum(paid_s), 0), coalesce(sum(paid_s * price) / 3600, 0),
  coalesce(sum(paid_s * on_demand) / 3600, 0)
FROM machines
ORDER BY idle NULLS FIRST, cost DESC, key
"""
"""First the sum over all machines, added up apart but in the same moment; then lines of work; then of idle time."""

_SPENT = f"""
WITH {_MACHINES}
SELECT coalesce(sum(paid_s * price) / 3600, 0) FROM machines
"""

# What a second of a worker is worth at a place: a machine and an hour.
_WORTH = f"""
used AS MATERIALIZED (
  SELECT w.hour, w.machine, {_SUMS} FROM (SELECT DISTINCT hour, machine FROM places) p
    JOIN worker_hours w ON w.hour = p.hour AND w.machine = p.machine GROUP BY w.hour, w.machine
), paid AS (
  SELECT u.hour, u.machine, u.alive_s, {_PRICE} AS price,
    coalesce(nullif(i.on_demand_per_hour, 0), {_PRICE}) AS on_demand,
    CASE WHEN i.id IS NULL THEN u.alive_s ELSE greatest({_PAID.format(h="u.hour")}, 0) END AS paid_s
  FROM used u LEFT JOIN instances i ON i.id = u.machine LEFT JOIN pool_money m ON m.pool = i.pool
), worth AS (
  SELECT hour, machine, paid_s * price / 3600 / greatest(paid_s, alive_s, 1e-6) AS cost,
    paid_s * on_demand / 3600 / greatest(paid_s, alive_s, 1e-6) AS on_demand
  FROM paid
)
"""

_OF_BATCHES = f"""
WITH places AS MATERIALIZED (
  SELECT w.batch_id, w.hour, w.machine, sum(w.seconds) AS seconds FROM worker_hours w
  WHERE w.batch_id = ANY(%(ids)s::uuid[]) AND w.batch_id <> '{_NOBODY}' GROUP BY w.batch_id, w.hour, w.machine
), {_WORTH}
SELECT p.batch_id, sum(p.seconds * v.cost) FROM places p JOIN worth v ON v.hour = p.hour AND v.machine = p.machine
GROUP BY p.batch_id HAVING sum(p.seconds * v.cost) > 0
"""

# The worker's clock tells its hours, so the hour before may be the one.
_OF_JOB = f"""
WITH j AS MATERIALIZED (
  SELECT j.id, j.tenant_id, j.worker_id, date_trunc('hour', j.finished_at, 'UTC') AS hour,
    (r.timings->>'busy')::float8 / 1000 AS seconds
  FROM jobs j LEFT JOIN job_results r ON r.job_id = j.id WHERE j.id = %(id)s
), places AS MATERIALIZED (
  SELECT w.hour, w.machine FROM j JOIN worker_hours w
    ON w.hour BETWEEN j.hour - interval '1 hour' AND j.hour AND w.worker_id = j.worker_id
  ORDER BY w.hour DESC LIMIT 1
), {_WORTH}
SELECT j.id, j.tenant_id, v.machine, j.seconds, nullif(j.seconds * v.cost, 0), nullif(j.seconds * v.on_demand, 0)
FROM j LEFT JOIN worth v ON true
"""

_KEEP = """
INSERT INTO pool_money AS m
  (pool, price_per_hour, budget_per_day, spent_today, standing, bulk_held_until, updated_at)
VALUES (%(pool)s, %(price)s, %(budget)s, %(spent)s, %(standing)s, %(until)s, now())
ON CONFLICT (pool) DO UPDATE SET price_per_hour = excluded.price_per_hour, budget_per_day = excluded.budget_per_day,
  spent_today = excluded.spent_today, standing = excluded.standing, bulk_held_until = excluded.bulk_held_until,
  updated_at = excluded.updated_at
"""

_MONEY = """
SELECT pool, price_per_hour, budget_per_day, spent_today, standing, bulk_held_until, updated_at FROM pool_money
ORDER BY pool
"""

_PRUNE_HOURS = """
DELETE FROM worker_hours WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM worker_hours WHERE hour < now() - %(kept)s * interval '1 second' ORDER BY hour LIMIT %(step)s))
RETURNING 1
"""

_PRUNE_INSTANCES = """
DELETE FROM instances WHERE id = ANY(ARRAY(
  SELECT id FROM instances WHERE status = 'gone' AND gone_at < now() - %(kept)s * interval '1 second'
  ORDER BY gone_at LIMIT %(step)s))
RETURNING 1
"""


class CostRoom:
    """See `batchline.store.cost_contract.CostRoom`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def report(self, worker_id: uuid.UUID, used: Sequence[Used]) -> None:
        if not used:
            return
        fields = ("hour", "tenant", "model", "batch", "seconds")
        records = sorted((u.hour, u.tenant_id, u.model_id, u.batch_id or _NOBODY, u.seconds) for u in used)
        params: dict[str, object] = dict(zip(fields, columns(records, len(fields)), strict=True))
        self._db.run(_REPORT, {**params, "worker": worker_id}, prepare=True)

    def read(self, by: By, since: datetime, until: datetime, *, limit: int = 1000) -> Costs:
        since, until = _hour(since), _hour(until + timedelta(hours=1) - timedelta(microseconds=1))
        span: dict[str, object] = {"since": since, "until": until, "pool": None}
        busy, idle = _KEYS[by]
        total, *rows = self._db.run(_LINES.format(busy=busy, idle=idle), span)
        machines, _, *sums = total
        lines = [_line(by, row) for row in rows]
        return Costs(since, until, _first(lines, limit), int(machines), *(float(x) for x in sums))

    def of_batches(self, batch_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, float]:
        if not batch_ids:
            return {}
        return {row[0]: float(row[1]) for row in self._db.run(_OF_BATCHES, {"ids": list(batch_ids)}, prepare=True)}

    def of_job(self, job_id: uuid.UUID) -> JobCost | None:
        for row in self._db.run(_OF_JOB, {"id": job_id}):
            return JobCost(*row)
        return None

    def spent(self, pool: str, since: datetime) -> float:
        span = {"since": _hour(since), "until": datetime.now(UTC) + timedelta(hours=1), "pool": pool}
        return float(self._db.run(_SPENT, span)[0][0])

    def keep(self, money: PoolMoney) -> None:
        params = {
            "pool": money.pool,
            "price": money.price_per_hour,
            "budget": money.budget_per_day,
            "spent": money.spent_today,
            "standing": money.standing.value,
            "until": money.bulk_held_until,
        }
        self._db.run(_KEEP, params)

    def money(self) -> list[PoolMoney]:
        return [
            PoolMoney(pool, price, budget, spent, Standing(standing), until, at)
            for pool, price, budget, spent, standing, until, at in self._db.run(_MONEY)
        ]

    def prune(self, *, kept_s: float) -> int:
        params = {"kept": kept_s, "step": _STEP}
        return len(self._db.run(_PRUNE_HOURS, params)) + len(self._db.run(_PRUNE_INSTANCES, params))


def _hour(at: datetime) -> datetime:
    """The hour of UTC that it is in."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _line(by: By, row: Row) -> CostLine:
    key, idle, seconds, cost, on_demand = row
    if by is By.BATCH and key is not None:
        key = show_batch_id(uuid.UUID(key))
    return CostLine(key, idle, float(seconds), float(cost), float(on_demand))


def _first(lines: list[CostLine], limit: int) -> list[CostLine]:
    """The dearest lines of work, one for all others so that they still add up, and those of idle time."""
    work = [line for line in lines if not line.idle]
    shown, rest = work[:limit], work[limit:]
    if rest:
        sums = (sum(x) for x in zip(*((r.worker_s, r.cost, r.on_demand) for r in rest), strict=True))
        shown.append(CostLine(None, False, *sums))
    return [*shown, *(line for line in lines if line.idle)]
