"""The store: the truth about jobs, in Postgres. `open_store` is the door; the two contracts say what stands behind."""

from __future__ import annotations

from dataclasses import dataclass

from batchline.store import (
    batch_contract,
    batch_results,
    batches,
    catalogue,
    chores,
    claims,
    contract,
    cost_contract,
    costs,
    expedite,
    expedite_contract,
    files,
    instance_contract,
    instances,
    jobs,
    schedules,
    slices,
    traffic,
    traffic_contract,
    webhook_contract,
    webhooks,
    workers,
)
from batchline.store.postgres import Database


@dataclass(frozen=True, slots=True)
class Store:
    """Fifteen rooms over one pool of connections; a process takes the rooms it needs."""

    db: Database
    jobs: contract.Jobs
    claims: contract.Claims
    workers: contract.Workers
    chores: contract.Chores
    catalogue: contract.Catalogue
    batches: batch_contract.Batches
    slices: batch_contract.Slices
    results: batch_contract.Results
    files: batch_contract.Files
    schedules: batch_contract.Schedules
    instances: instance_contract.Instances
    costs: cost_contract.CostRoom
    deadlines: expedite_contract.Deadlines
    traffic: traffic_contract.Traffic
    webhooks: webhook_contract.Webhooks

    def close(self) -> None:
        self.db.close()


def open_store(url: str, *, connections: int = 6, statement_timeout_s: float = 30.0) -> Store:
    """Open a pool on a migrated database; connects at the first call."""
    return store_on(Database(url, connections=connections, statement_timeout_s=statement_timeout_s))


def store_on(db: Database) -> Store:
    """The rooms over a pool that is there already."""
    return Store(
        db,
        jobs.Jobs(db),
        claims.Claims(db),
        workers.Workers(db),
        chores.Chores(db),
        catalogue.Catalogue(db),
        batches.Batches(db),
        slices.Slices(db),
        batch_results.Results(db),
        files.Files(db),
        schedules.Schedules(db),
        instances.Instances(db),
        costs.CostRoom(db),
        expedite.Deadlines(db),
        traffic.Traffic(db),
        webhooks.Webhooks(db),
    )
