"""Workers and leaders: who is believed alive, by leases on rows of their own."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from batchline.store.contract import WorkerView
from batchline.store.postgres import Database

_REGISTER = """
INSERT INTO workers (id, host, pid, pool, device, lease_until)
VALUES (%(id)s, %(host)s, %(pid)s, %(pool)s, %(device)s, now() + %(lease)s * interval '1 second')
ON CONFLICT (id) DO NOTHING
"""

# Zero rows: the lease has run out and others may have taken the jobs; the caller must come back under a new id.
_HEARTBEAT = """
UPDATE workers SET heartbeat_at = now(), lease_until = now() + %(lease)s * interval '1 second',
  models = %(models)s, rows_per_s = %(rows_per_s)s
WHERE id = %(id)s AND lease_until > now() RETURNING draining
"""

_LIST = """
SELECT id, host, pid, pool, device, started_at, heartbeat_at, lease_until > now(), draining, models, rows_per_s
FROM workers WHERE lease_until > now() - interval '1 hour' ORDER BY started_at
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

    def register(self, worker_id: uuid.UUID, *, host: str, pid: int, pool: str, device: str, lease_s: float) -> None:
        params = {"id": worker_id, "host": host, "pid": pid, "pool": pool, "device": device, "lease": lease_s}
        self._db.run(_REGISTER, params)

    def heartbeat(self, worker_id: uuid.UUID, *, lease_s: float, models: str, rows_per_s: float) -> bool:
        params = {"id": worker_id, "lease": lease_s, "models": models, "rows_per_s": rows_per_s}
        return bool(self._db.run(_HEARTBEAT, params))

    def drain(self, worker_id: uuid.UUID) -> None:
        self._db.run("UPDATE workers SET draining = true WHERE id = %(id)s", {"id": worker_id})

    def bury(self, worker_ids: Sequence[uuid.UUID]) -> None:
        self._db.run(
            "UPDATE workers SET lease_until = now() WHERE id = ANY(%(ids)s::uuid[]) AND lease_until > now()",
            {"ids": list(worker_ids)},
        )

    def list(self) -> list[WorkerView]:
        return [WorkerView(*row) for row in self._db.run(_LIST)]

    def drain_rates(self) -> dict[str, float]:
        rows = self._db.run("SELECT pool, sum(rows_per_s) FROM workers WHERE lease_until > now() GROUP BY pool")
        return {pool: float(rate) for pool, rate in rows}

    def lead(self, name: str, holder: uuid.UUID, *, lease_s: float) -> float | None:
        rows = self._db.run(_LEAD, {"name": name, "holder": holder, "lease": lease_s})
        return float(rows[0][0]) if rows else None

    def resign(self, name: str, holder: uuid.UUID) -> None:
        self._db.run(
            "DELETE FROM leases WHERE name = %(name)s AND holder = %(holder)s", {"name": name, "holder": holder}
        )
