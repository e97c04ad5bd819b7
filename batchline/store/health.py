"""What `batchline doctor` asks of the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
import psycopg2

from batchline.errors import StoreUnavailableError
from batchline.model import ModelSpec
from batchline.store.catalogue import decoded
from batchline.store.postgres import Database

_HEALTH = """
SELECT now(),
  coalesce((SELECT lease_until > now() FROM leases WHERE name = 'scheduler'), false),
  (SELECT coalesce(sum(jobs), 0) FROM backlog),
  (SELECT extract(epoch FROM now() - min(oldest_at)) FROM backlog),
  (SELECT array_agg(DISTINCT pool ORDER BY pool) FROM models)
"""


_MODELS = """
SELECT m.name, m.version, m.pool, m.spec::text, sum(b.jobs), extract(epoch FROM now() - min(b.oldest_at))
FROM models m LEFT JOIN backlog b ON b.model_id = m.id GROUP BY m.id ORDER BY m.name, m.version
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


def read_schema(db: Database) -> str | None:
    """The schema version of the database; None when it has none.

    Raises:
        StoreUnavailableError: Postgres cannot be asked.
    """
    try:
        rows = db.run("SELECT version_num FROM alembic_version")
    except StoreUnavailableError as e:
        if isinstance(e.__cause__, psycopg2.errors.UndefinedTable):
            return None
        raise
    return str(rows[0][0]) if rows else None


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """One catalogue entry, and the work that waits for it as of the last count."""

    ref: str
    pool: str
    spec: ModelSpec | None
    fault: str
    """Why there is no spec: the entry is broken, or of another release."""
    queued_jobs: int
    oldest_queued_s: float


def read_models(db: Database) -> list[ModelHealth]:
    """All entries, by name and version; also those that `Catalogue.models` passes over.

    Raises:
        StoreUnavailableError: Postgres cannot be asked.
    """
    found: list[ModelHealth] = []
    for name, version, pool, text, jobs, oldest_s in db.run(_MODELS):
        spec, fault = None, ""
        try:
            spec = decoded(text)
        except msgspec.ValidationError as e:
            fault = str(e)
        found.append(ModelHealth(f"{name}@{version}", pool, spec, fault, int(jobs or 0), float(oldest_s or 0.0)))
    return found
