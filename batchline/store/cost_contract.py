"""What the store knows of money: whose time workers spent, what machines cost, and which pools are over their budget.

Costs are in the currency of the prices. A machine is an instance of the ledger or, where the ledger does not know it, a
worker whose pool has a price. What a machine costs in an hour is shared out to whom its workers spent that hour on; the
rest is idle. So the lines of a range add up to what its machines cost.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class By(enum.StrEnum):
    """What costs are told by."""

    TENANT = "tenant"
    MODEL = "model"
    BATCH = "batch"
    POOL = "pool"
    DAY = "day"


class Standing(enum.StrEnum):
    """How a pool stands with its budget of the day."""

    WELL = "well"
    WARNED = "warned"
    """Most of it is spent."""
    SPENT = "spent"
    """All of it is: bulk waits for midnight, or for a higher budget; online goes on."""


@dataclass(frozen=True, slots=True)
class Used:
    """Seconds of one worker within one hour that went to one owner; tenant 0 and model 0 are nobody: idle."""

    hour: datetime
    tenant_id: int
    model_id: int
    batch_id: uuid.UUID | None
    seconds: float


@dataclass(frozen=True, slots=True)
class CostLine:
    """A part of what machines cost.

    Attributes:
        key: the tenant's name, `model@version`, the batch's id, the pool, the day (`2026-11-22`, UTC). None where it is
            none: idle time of no pool or day, online jobs among batches, lines beyond the limit.
        idle: nobody's work, or start-up.
        worker_s: seconds of workers.
        cost: what it cost.
        on_demand: what it would have cost on demand.
    """

    key: str | None
    idle: bool
    worker_s: float
    cost: float
    on_demand: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What a range of whole hours cost.

    Attributes:
        since, until: the range, hours of UTC; the last one may still be under way.
        lines: dearest first; beyond the limit there is one for all others.
        machines: how many there were.
        machine_s: seconds that are paid.
        cost: what all machines cost, added up apart from the lines.
        on_demand: what they would have cost on demand.
    """

    since: datetime
    until: datetime
    lines: list[CostLine]
    machines: int
    machine_s: float
    cost: float
    on_demand: float


@dataclass(frozen=True, slots=True)
class JobCost:
    """What one job cost; `worker_s` and `cost` are None where it is not known: not finished, or no price."""

    job_id: uuid.UUID
    tenant_id: int
    machine: str | None
    worker_s: float | None
    cost: float | None
    on_demand: float | None


@dataclass(frozen=True, slots=True)
class PoolMoney:
    """What a pool's workers cost by configuration, and how it stands with its budget of the day (UTC)."""

    pool: str
    price_per_hour: float = 0.0
    """Of a worker or an instance that does not tell its own."""
    budget_per_day: float | None = None
    spent_today: float = 0.0
    standing: Standing = Standing.WELL
    bulk_held_until: datetime | None = None
    """Before then no slice of this pool is claimed."""
    updated_at: datetime | None = None


class CostRoom(Protocol):
    """Costs. Written by workers every few seconds and by the autoscaler; read by the API."""

    def report(self, worker_id: uuid.UUID, used: Sequence[Used]) -> None:
        """Note a worker's sums, of the whole of each hour so far: a repeat changes nothing, a smaller sum neither."""
        ...

    def read(self, by: By, since: datetime, until: datetime, *, limit: int = 1000) -> Costs:
        """What the hours from `since` (rounded down) to `until` (rounded up) cost, up to now."""
        ...

    def of_batches(self, batch_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, float]:
        """What batches cost so far, without idle time; those that have cost nothing that has a price are left out."""
        ...

    def of_job(self, job_id: uuid.UUID) -> JobCost | None:
        """Of any tenant; None for an unknown job."""
        ...

    def spent(self, pool: str, since: datetime) -> float:
        """What a pool's machines cost from `since`, rounded down to the hour, to now."""
        ...

    def keep(self, money: PoolMoney) -> None:
        """Note price, budget and standing of a pool; `updated_at` is the database's now."""
        ...

    def money(self) -> list[PoolMoney]:
        """All pools of which something was kept, by name."""
        ...

    def prune(self, *, kept_s: float) -> int:
        """One step: forget hours, and instances that are gone, for so long.

        Returns:
            How much went; call again until it is 0.
        """
        ...
