"""Workers and leaders: who is believed alive, by leases on rows of their own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import msgspec

from batchline.job import Lane
from batchline.store.contract import Pulse, Speed, WorkerView
from batchline.store.postgres import Database
from batchline.store.speeds import SPEEDS

# On an instance that is given up a worker drains from its first moment; who gives it up right now is waited for.
_REGISTER = """
WITH home AS MATERIALIZED (SELECT status FROM instances WHERE id = %(instance)s FOR SHARE)
INSERT INTO workers (id, host, pid, pool, device, instance, lease_until, draining)
VALUES (%(id)s, %(host)s, %(pid)s, %(pool)s, %(device)s, %(instance)s, now() + %(lease)s * interval '1 second',
  EXISTS (SELECT FROM home WHERE status >= 'draining'))
ON CONFLICT (id) DO NOTHING
"""

# Zero rows: the lease has run out and others may have taken the jobs; the caller must come back under a new id.
_HEARTBEAT = """
UPDATE workers SET heartbeat_at = now(), lease_until = now() + %(lease)s * interval '1 second',
  models = %(models)s, rows_per_s = %(rows_per_s)s, bulk_rows_per_s = %(bulk)s,
  rows_done = %(rows_done)s, speeds = %(speeds)s::jsonb
WHERE id = %(id)s AND lease_until > now() RETURNING draining
"""

_LIST = """
SELECT id, host, pid, pool, device, started_at, heartbeat_at, lease_until > now(), draining, models, rows_per_s,
  instance, speeds
FROM workers WHERE lease_until > now() - interval '1 hour' ORDER BY started_at
"""

# A worker that had work in one lane tells its speed for both. Slices are a hundred times as fast: that is no online
# rate, whereas slices are at least as fast as single jobs.
_RATE = "SELECT pool, sum({rate}) FROM workers WHERE lease_until > now() AND {rate} > 0 GROUP BY pool"
_RATES = {
    Lane.ONLINE: _RATE.format(rate="nullif(rows_per_s, bulk_rows_per_s)"),
    Lane.BULK: _RATE.format(rate="coalesce(nullif(bulk_rows_per_s, 0), rows_per_s)"),
}

_BULK_RATE = f"""
WITH {SPEEDS}
SELECT bulk * greatest((SELECT count(*) FROM workers WHERE pool = %(pool)s AND lease_until > now()), 1)
FROM speeds WHERE model_id = %(model)s AND bulk > 0
"""

# A lease that ran out is taken over; the holder keeps its own. `since` moves only when the holder changes or came late.
_LEAD = """
INSERT INTO leases AS l (name, holder, lease_until)
VALUES (%(name)s, %(holder)s, now() + %(lease)s * interval '1 second')
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, lease_until = excluded.lease_until,
  since = CASE WHEN l.holder = excluded.holder AND l.lease_until > now() THEN l.since ELSE now() END
WHERE l.holder = excluded.holder OR l.lease_until < now()
RETURNING extract(epoch FROM now() - since)
"""


class Workers:
    """See `batchline.store.contract.Workers`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def register(
        self, worker_id: uuid.UUID, *, host: str, pid: int, pool: str, device: str, lease_s: float, instance: str = ""
    ) -> None:
        params = {"id": worker_id, "host": host, "pid": pid, "pool": pool, "device": device, "lease": lease_s}
        self._db.run(_REGISTER, {**params, "instance": instance})

    def heartbeat(
        self,
        worker_id: uuid.UUID,
        *,
        lease_s: float,
        models: str,
        rows_per_s: float,
        bulk_rows_per_s: float = 0.0,
        rows_done: int = 0,
        speeds: Mapping[int, Speed] | None = None,
    ) -> Pulse:
        params = {
            "id": worker_id,
            "lease": lease_s,
            "models": models,
            "rows_per_s": rows_per_s,
            "bulk": bulk_rows_per_s,
            "rows_done": rows_done,
            "speeds": msgspec.json.encode(speeds or {}).decode(),
        }
        rows = self._db.run(_HEARTBEAT, params)
        if not rows:
            return Pulse.LOST
        return Pulse.DRAINING if rows[0][0] else Pulse.LIVE

    def drain(self, worker_id: uuid.UUID) -> None:
        self._db.run("UPDATE workers SET draining = true WHERE id = %(id)s", {"id": worker_id})

    def bury(self, worker_ids: Sequence[uuid.UUID]) -> None:
        self._db.run(
            "UPDATE workers SET lease_until = now() WHERE id = ANY(%(ids)s::uuid[]) AND lease_until > now()",
            {"ids": list(worker_ids)},
        )

    def list(self) -> list[WorkerView]:
        return [
            WorkerView(*about, speeds={int(model_id): Speed(*speed) for model_id, speed in speeds.items()})
            for *about, speeds in self._db.run(_LIST)
        ]

    def drain_rates(self, lane: Lane) -> dict[str, float]:
        return {pool: float(rate) for pool, rate in self._db.run(_RATES[lane])}

    def speeds(self) -> dict[int, Speed]:
        found = self._db.run(f"WITH {SPEEDS} SELECT model_id, coalesce(online, 0), coalesce(bulk, 0) FROM speeds")
        return {model_id: Speed(online, bulk) for model_id, online, bulk in found}

    def bulk_rate(self, pool: str, model_id: int) -> float:
        rows = self._db.run(_BULK_RATE, {"pool": pool, "model": model_id})
        return float(rows[0][0]) if rows else 0.0

    def lead(self, name: str, holder: uuid.UUID, *, lease_s: float) -> float | None:
        rows = self._db.run(_LEAD, {"name": name, "holder": holder, "lease": lease_s})
        return float(rows[0][0]) if rows else None

    def leader(self, name: str) -> uuid.UUID | None:
        rows = self._db.run("SELECT holder FROM leases WHERE name = %(name)s AND lease_until > now()", {"name": name})
        return rows[0][0] if rows else None

    def resign(self, name: str, holder: uuid.UUID) -> None:
        self._db.run(
            "DELETE FROM leases WHERE name = %(name)s AND holder = %(holder)s", {"name": name, "holder": holder}
        )
