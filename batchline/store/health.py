"""What `batchline doctor` asks of the database, in one statement."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from batchline.store.postgres import Database

_HEALTH = """
SELECT now(),
  coalesce((SELECT lease_until > now() FROM leases WHERE name = 'scheduler'), false),
  (SELECT coalesce(sum(jobs), 0) FROM backlog),
  (SELECT extract(epoch FROM now() - min(oldest_at)) FROM backlog),
  (SELECT array_agg(DISTINCT pool ORDER BY pool) FROM models)
"""


@dataclass(frozen=True, slots=True)
class Health:
    """The system as its database sees it; queued work as of the last count."""

    now: datetime
    has_leader: bool
    queued_jobs: int
    oldest_queued_s: float | None
    pools: tuple[str, ...]
    """The pools that some model names."""


def read_health(db: Database) -> Health:
    """See Health.

    Raises:
        StoreUnavailableError: Postgres cannot be asked.
    """
    now, leader, jobs, oldest_s, pools = db.run(_HEALTH)[0]
    return Health(now, leader, int(jobs), None if oldest_s is None else float(oldest_s), tuple(pools or ()))
