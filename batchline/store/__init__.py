"""The store: the truth about jobs, in Postgres. `open_store` is the door; `contract` says what stands behind it."""

from __future__ import annotations

from dataclasses import dataclass

from batchline.store import catalogue, chores, claims, contract, jobs, workers
from batchline.store.postgres import Database


@dataclass(frozen=True, slots=True)
class Store:
    """Five rooms over one pool of connections; a process takes the rooms it needs."""

    db: Database
    jobs: contract.Jobs
    claims: contract.Claims
    workers: contract.Workers
    chores: contract.Chores
    catalogue: contract.Catalogue

    def close(self) -> None:
        self.db.close()


def open_store(url: str, *, connections: int = 6, statement_timeout_s: float = 30.0) -> Store:
    """Open a pool on a migrated database; connects at the first call."""
    db = Database(url, connections=connections, statement_timeout_s=statement_timeout_s)
    return Store(db, jobs.Jobs(db), claims.Claims(db), workers.Workers(db), chores.Chores(db), catalogue.Catalogue(db))
