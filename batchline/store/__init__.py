"""The store: the truth about jobs, in Postgres. `open_store` is the door; `contract` says what stands behind it."""

from __future__ import annotations

from dataclasses import dataclass

from batchline.store.catalogue import Catalogue
from batchline.store.chores import Chores
from batchline.store.claims import Claims
from batchline.store.jobs import Jobs
from batchline.store.postgres import Database
from batchline.store.workers import Workers


@dataclass(frozen=True, slots=True)
class Store:
    """Five rooms over one pool of connections; a process takes the rooms it needs."""

    db: Database
    jobs: Jobs
    claims: Claims
    workers: Workers
    chores: Chores
    catalogue: Catalogue

    def close(self) -> None:
        self.db.close()


def open_store(url: str, *, connections: int = 6, statement_timeout_s: float = 30.0) -> Store:
    """Open a pool on a migrated database; connects at the first call."""
    db = Database(url, connections=connections, statement_timeout_s=statement_timeout_s)
    return Store(db, Jobs(db), Claims(db), Workers(db), Chores(db), Catalogue(db))
