"""The ledger of instances in Postgres: an intent before each launch, what it brought, and how it is given up again."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

from batchline.store import scalings
from batchline.store.instance_contract import Instance, InstanceStatus, Launch, NewInstance, Scaling, Totals
from batchline.store.postgres import Database, Row, Transaction, columns

LEASE = "autoscaler"
"""The lease that a leader holds; see `contract.Workers.lead`."""

# The lease's row stays locked to the end of the statement, so a new leader finds all that the old one has written.
# By the clock, since a transaction that has waited for a lock is older than that.
_LEADS = f"""leads AS MATERIALIZED (
  SELECT 1 FROM leases WHERE name = '{LEASE}' AND holder = %(leader)s AND lease_until > clock_timestamp() FOR SHARE)"""

_LOCK_POOL = "SELECT pg_advisory_xact_lock(hashtext('batchline.instances'), hashtext(%(pool)s))"

_BROUGHT = "(SELECT count(*)::int FROM instances b WHERE b.launch_id = l.id)"

_LAUNCH = f"SELECT l.id, l.pool, l.provider, l.count, l.total, l.created_at, l.tries, {_BROUGHT} FROM launches l"

# The second statement of its transaction: it sees what whoever had the lock before has written.
_INTEND = f"""
WITH {_LEADS}, taken AS MATERIALIZED (
  SELECT (SELECT count(*) FROM instances i WHERE i.pool = %(pool)s AND i.status <> 'gone')
    + (SELECT coalesce(sum(greatest(l.count - {_BROUGHT}, 0)), 0) FROM launches l
       WHERE l.pool = %(pool)s AND l.settled_at IS NULL) AS n
)
INSERT INTO launches (id, pool, provider, count, total, created_at)
SELECT %(id)s, %(pool)s, %(provider)s, least(%(count)s, %(most)s - n), n + least(%(count)s, %(most)s - n),
  clock_timestamp()
FROM leads, taken WHERE least(%(count)s, %(most)s - n) > 0
"""

_TRIED = "UPDATE launches SET tries = tries + 1, error = %(error)s WHERE id = %(id)s AND settled_at IS NULL"

_NEW = """unnest(%(ids)s::text[], %(kind)s::text[], %(zone)s::text[], %(market)s::text[], %(price)s::float8[],
    %(on_demand)s::float8[]) AS t(id, kind, zone, market, price, on_demand)"""

_ENTER = """
INSERT INTO instances (id, pool, provider, launch_id, status, kind, zone, market, price_per_hour, on_demand_per_hour)
"""

_SETTLE = f"""
WITH l AS (
  UPDATE launches SET settled_at = now(), error = %(error)s WHERE id = %(launch)s AND settled_at IS NULL
  RETURNING id, pool, provider
)
{_ENTER}
SELECT t.id, l.pool, l.provider, l.id, 'starting', kind, zone, market, price, on_demand FROM l, {_NEW} ORDER BY t.id
ON CONFLICT (id) DO NOTHING
"""

_ADOPT = f"""
{_ENTER}
SELECT t.id, %(pool)s, %(provider)s, %(launch)s, 'starting', kind, zone, market, price, on_demand FROM {_NEW}
ON CONFLICT (id) DO NOTHING RETURNING id
"""

_REGISTERED = """
WITH r AS MATERIALIZED (
  SELECT i.id, w.at FROM instances i CROSS JOIN LATERAL (
    SELECT min(w.started_at) AS at FROM workers w WHERE w.instance = i.id AND w.instance <> '' AND w.lease_until > now()
  ) w WHERE i.status = 'starting' AND w.at IS NOT NULL ORDER BY i.id FOR UPDATE OF i
)
UPDATE instances i SET status = 'serving', registered_at = greatest(r.at, i.launched_at) FROM r
WHERE i.id = r.id AND i.status = 'starting' RETURNING i.id
"""

# Live workers of an instance, and the jobs of all its workers: those of a dead one are not yet back in the queue.
_ON_IT = """LATERAL (
  SELECT count(*) FILTER (WHERE w.lease_until > now()) AS workers,
    coalesce(sum((SELECT count(*) FROM jobs j WHERE j.worker_id = w.id AND j.status = 'running')), 0) AS running
  FROM workers w WHERE w.instance = i.id AND w.instance <> ''
) w"""

_DRAIN = f"""
WITH {_LEADS}, chosen AS MATERIALIZED (
  SELECT i.id FROM leads, instances i CROSS JOIN {_ON_IT}
  WHERE i.pool = %(pool)s AND i.status IN ('starting', 'serving')
  ORDER BY w.workers > 0, w.running,
    CASE WHEN %(billing)s > 0
      THEN %(billing)s - mod(extract(epoch FROM now() - i.launched_at)::numeric, %(billing)s::numeric) END,
    i.launched_at DESC, i.id
  LIMIT %(count)s FOR UPDATE OF i
)
UPDATE instances i SET status = 'draining', draining_at = clock_timestamp(), reason = %(reason)s FROM chosen
WHERE i.id = chosen.id AND i.status IN ('starting', 'serving') RETURNING i.id
"""

# The last statement of its transaction: a worker that registers meanwhile waits for the instance's row, or is seen.
_DRAIN_WORKERS = """
WITH w AS MATERIALIZED (
  SELECT id FROM workers WHERE instance = ANY(%(ids)s::text[]) AND instance <> '' AND NOT draining
  ORDER BY id FOR UPDATE
)
UPDATE workers SET draining = true FROM w WHERE workers.id = w.id
"""

_DRAINED = f"""
WITH {_LEADS}, done AS MATERIALIZED (
  SELECT i.id FROM leads, instances i CROSS JOIN {_ON_IT}
  WHERE i.status = 'draining' AND w.workers = 0 AND w.running = 0 ORDER BY i.id FOR UPDATE OF i
)
UPDATE instances i SET status = 'stopping' FROM done WHERE i.id = done.id AND i.status = 'draining'
"""

_STOP = f"""
WITH {_LEADS}, this AS MATERIALIZED (
  SELECT i.id, i.status = 'stopping' OR (w.workers = 0 AND w.running = 0) AS empty
  FROM leads, instances i CROSS JOIN {_ON_IT}
  WHERE i.id = %(id)s AND i.status <= 'stopping' FOR UPDATE OF i
)
UPDATE instances i SET status = CASE WHEN this.empty THEN 'stopping' ELSE 'draining' END::instance_status,
  draining_at = coalesce(i.draining_at, clock_timestamp()),
  reason = CASE WHEN i.status < 'draining' THEN %(reason)s ELSE i.reason END
FROM this WHERE i.id = this.id AND i.status <= 'stopping' RETURNING this.empty
"""

_LOCK_INSTANCE = "SELECT 1 FROM instances WHERE id = %(id)s FOR UPDATE"

_GONE = """
WITH t AS MATERIALIZED (
  SELECT i.id FROM instances i WHERE i.id = ANY(%(ids)s::text[]) AND i.status <> 'gone' ORDER BY i.id FOR UPDATE
), w AS MATERIALIZED (
  SELECT w.id FROM t JOIN workers w ON w.instance = t.id WHERE w.instance <> '' AND w.lease_until > now()
  ORDER BY w.id FOR UPDATE OF w
), buried AS (UPDATE workers SET lease_until = now(), draining = true FROM w WHERE workers.id = w.id)
UPDATE instances i SET status = 'gone', gone_at = now(),
  reason = CASE WHEN i.reason = '' THEN %(reason)s ELSE i.reason END
FROM t WHERE i.id = t.id RETURNING i.id
"""

_VIEW = f"""
SELECT i.id, i.pool, i.provider, i.launch_id, i.status::text, i.kind, i.zone, i.market, i.price_per_hour,
  i.on_demand_per_hour, i.launched_at, i.registered_at, i.draining_at, i.gone_at, i.reason,
  extract(epoch FROM coalesce(i.gone_at, now()) - i.launched_at)::float8, w.workers::int, w.running::int
FROM instances i CROSS JOIN {_ON_IT}
"""

_IN_POOL = "(%(pool)s::text IS NULL OR i.pool = %(pool)s)"

_LIST = f"""
SELECT * FROM ({_VIEW} WHERE i.status <> 'gone' AND {_IN_POOL}
UNION ALL {_VIEW} WHERE i.status = 'gone' AND i.gone_at > now() - %(gone)s * interval '1 second' AND {_IN_POOL}) v
ORDER BY launched_at, id
"""

_LAUNCHES_WITHIN = f"""
SELECT coalesce(sum(CASE WHEN l.settled_at IS NULL THEN greatest(l.count, {_BROUGHT}) ELSE {_BROUGHT} END), 0)
FROM launches l WHERE l.pool = %(pool)s AND l.created_at > now() - %(seconds)s * interval '1 second'
"""

_PRICED = """
WITH t AS MATERIALIZED (
  SELECT i.id, p.price FROM unnest(%(ids)s::text[], %(prices)s::float8[]) AS p(id, price) JOIN instances i USING (id)
  WHERE i.status <> 'gone' AND i.price_per_hour <> p.price ORDER BY i.id FOR UPDATE OF i
)
UPDATE instances i SET price_per_hour = t.price FROM t WHERE i.id = t.id RETURNING i.id
"""


class Instances:
    """See `batchline.store.instance_contract.Instances`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def intend(
        self, leader: uuid.UUID, launch_id: uuid.UUID, *, pool: str, provider: str, count: int, most: int
    ) -> Launch | None:
        params = {"leader": leader, "id": launch_id, "pool": pool, "provider": provider, "count": count, "most": most}

        def intend(transaction: Transaction) -> list[Row]:
            transaction.run(_LOCK_POOL, params)
            known = f"{_LAUNCH} WHERE l.id = %(id)s"
            found = transaction.run(known, params)
            if not found:
                transaction.run(_INTEND, params)
                found = transaction.run(known, params)
            return found

        rows = self._db.transact(intend)
        return Launch(*rows[0]) if rows else None

    def unsettled(self) -> builtins.list[Launch]:
        rows = self._db.run(f"{_LAUNCH} WHERE l.settled_at IS NULL ORDER BY l.created_at, l.id")
        return [Launch(*row) for row in rows]

    def tried(self, launch_id: uuid.UUID, error: str) -> None:
        self._db.run(_TRIED, {"id": launch_id, "error": _storable(error)})

    def settle(self, launch_id: uuid.UUID, brought: Sequence[NewInstance], *, error: str = "") -> None:
        self._db.run(_SETTLE, {"launch": launch_id, "error": _storable(error), **_columns_of(brought)})

    def adopt(self, pool: str, provider: str, launch_id: uuid.UUID | None, found: NewInstance) -> bool:
        params = {"pool": pool, "provider": provider, "launch": launch_id, **_columns_of([found])}
        return bool(self._db.run(_ADOPT, params))

    def registered(self) -> int:
        return len(self._db.run(_REGISTERED))

    def drain(
        self, leader: uuid.UUID, pool: str, count: int, reason: str, *, billing_s: float = 0.0
    ) -> builtins.list[str]:
        params = {"leader": leader, "pool": pool, "count": max(count, 0), "reason": reason, "billing": billing_s}

        def drain(transaction: Transaction) -> list[str]:
            ids = [row[0] for row in transaction.run(_DRAIN, params)]
            if ids:
                transaction.run(_DRAIN_WORKERS, {"ids": ids})
            return ids

        return self._db.transact(drain, repeat=False)

    def drained(self, leader: uuid.UUID) -> builtins.list[Instance]:
        self._db.run(_DRAINED, {"leader": leader})
        return [_instance(row) for row in self._db.run(f"{_VIEW} WHERE i.status = 'stopping' ORDER BY i.id")]

    def stop(self, leader: uuid.UUID, instance_id: str, reason: str) -> bool:
        params = {"leader": leader, "id": instance_id, "reason": reason}

        def stop(transaction: Transaction) -> bool:
            transaction.run(_LOCK_INSTANCE, params)
            rows = transaction.run(_STOP, params)
            if rows:
                transaction.run(_DRAIN_WORKERS, {"ids": [instance_id]})
            return bool(rows and rows[0][0])

        return self._db.transact(stop)

    def gone(self, instance_ids: Sequence[str], reason: str) -> int:
        return len(self._db.run(_GONE, {"ids": list(instance_ids), "reason": reason}))

    def list(self, *, pool: str | None = None, gone_within_s: float = 0.0) -> builtins.list[Instance]:
        return [_instance(row) for row in self._db.run(_LIST, {"pool": pool, "gone": gone_within_s})]

    def launches_within(self, pool: str, seconds: float) -> int:
        return int(self._db.run(_LAUNCHES_WITHIN, {"pool": pool, "seconds": seconds})[0][0])

    def priced(self, prices: Mapping[str, float]) -> int:
        return len(self._db.run(_PRICED, {"ids": list(prices), "prices": list(prices.values())})) if prices else 0

    def decided(self, scaling: Scaling, *, kept_s: float = 7 * 86400.0) -> None:
        scalings.keep(self._db, scaling, kept_s)

    def decisions(
        self, *, pool: str | None = None, limit: int = 100, since: datetime | None = None
    ) -> builtins.list[Scaling]:
        return scalings.read(self._db, pool, limit, since)

    def totals(self, since: datetime) -> builtins.list[Totals]:
        return scalings.totals(self._db, since)


def _columns_of(instances: Sequence[NewInstance]) -> dict[str, object]:
    names = ("ids", "kind", "zone", "market", "price", "on_demand")
    records = [(i.id, i.kind, i.zone, i.market, i.price_per_hour, i.on_demand_per_hour) for i in instances]
    return dict(zip(names, columns(records, len(names)), strict=True))


def _storable(error: str) -> str:
    """What a provider says may hold anything; Postgres takes neither NUL nor lone surrogates."""
    return error.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _instance(row: Row) -> Instance:
    values = list(row)
    values[4] = InstanceStatus(values[4])
    return Instance(*values)
