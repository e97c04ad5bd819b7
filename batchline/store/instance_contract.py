"""The ledger of machines: what the autoscaler asked providers for, what it got, and what it decided."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from batchline.job import Lane
from batchline.store.contract import Speed


class InstanceStatus(enum.StrEnum):
    """Where an instance is in its life; it only moves down this list."""

    STARTING = "starting"
    """The provider has given it; no worker on it has registered yet."""
    SERVING = "serving"
    DRAINING = "draining"
    """Its workers claim nothing new; it is stopped when they hold nothing."""
    STOPPING = "stopping"
    """The provider is to end it; asked again until it is gone."""
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class NewInstance:
    """An instance as its provider tells of it."""

    id: str
    """The provider's name of it; the worker's row carries the same (BATCHLINE_INSTANCE)."""
    kind: str = ""
    """What is paid for: an instance type."""
    zone: str = ""
    market: str = "on_demand"
    """`spot` or `on_demand`."""
    price_per_hour: float = 0.0
    on_demand_per_hour: float = 0.0
    """What the same kind costs on demand: spot savings are counted against it."""


@dataclass(frozen=True, slots=True)
class Launch:
    """An intent, written before the provider is asked. Its id is the idempotency token of the call.

    Attributes:
        id: ClientToken and tag.
        pool: whose workers.
        provider: which adapter.
        count: instances wanted by this launch.
        total: instances of the pool wanted in all, this launch included: for providers that are told totals.
        created_at: when it was meant.
        tries: calls so far.
        instances: how many it has brought.
    """

    id: uuid.UUID
    pool: str
    provider: str
    count: int
    total: int
    created_at: datetime
    tries: int = 0
    instances: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """One machine or process that was launched; times by the database's clock."""

    id: str
    pool: str
    provider: str
    launch_id: uuid.UUID | None
    """None: it was found by its tags, of a launch that is not known any more."""
    status: InstanceStatus
    kind: str
    zone: str
    market: str
    price_per_hour: float
    on_demand_per_hour: float
    launched_at: datetime
    registered_at: datetime | None
    draining_at: datetime | None
    gone_at: datetime | None
    reason: str
    """Why it was drained or stopped."""
    age_s: float
    """Since launched_at, now or when it was gone."""
    workers: int
    """Live worker processes on it."""
    running: int
    """Jobs and slices that they hold."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """One decision, as it is kept for `GET /v1/autoscaler` and `batchline autoscaler record`."""

    at: datetime
    pool: str
    desired: int
    reason: str
    signals: dict[str, float]
    """The numbers it was made from: queued_rows, bulk_rows, running_rows, oldest_age_s, arrived_rows, done_rows,
    workers, pending, draining, rows_per_s, bulk_rows_per_s, queued_work_s, bulk_work_s, running_work_s."""


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """One model of a pool: online rows that arrived since `since`, and what one worker busy with it does."""

    arrived_rows: int
    speed: Speed


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of one pool that only grow, and what has a deadline.

    Rows of several models are added up as the worker-seconds that they take: see `work_s`.

    Attributes:
        arrived_rows: of online jobs created since `since` (see `Instances.totals`).
        done_rows: of all jobs ever, as workers have reported them with their heartbeats.
        running_rows: claimed and not finished; of a slice what is left of it.
        rows_per_s: of one worker in the online lane: the mean of the live ones that were ever busy there, else as last
            measured by any; as bulk_rows_per_s where none ever was; 0 when never.
        demands: (seconds from now, rows queued or running of slices due until then, worker-seconds that they take),
            earliest first. Paused batches have none.
        bulk_rows_per_s: as rows_per_s, of the bulk lane alone.
        running_work_s: worker-seconds that running_rows take.
        models: by id; speeds as `Workers.speeds` has them.
    """

    pool: str
    arrived_rows: int
    done_rows: int
    running_rows: int
    rows_per_s: float
    demands: tuple[tuple[float, int, float], ...]
    bulk_rows_per_s: float = 0.0
    running_work_s: float = 0.0
    models: Mapping[int, ModelTotals] = field(default_factory=dict[int, ModelTotals])

    def work_s(self, model_id: int, lane: Lane, rows: float) -> float:
        """Worker-seconds that rows of a model take: at its own measured speed in the lane, else at the pool's.

        Of a pool in which slices were never measured they count as online rows. 0 where nothing ever was.
        """
        own = self.models[model_id].speed if model_id in self.models else Speed(0.0, 0.0)
        bulk = own.bulk or self.bulk_rows_per_s or self.rows_per_s
        rate = bulk if lane is Lane.BULK else own.online or self.rows_per_s
        return rows / rate if rate > 0 else 0.0


class Instances(Protocol):
    """The ledger. `leader` is the holder of the lease `autoscaler`: who has lost it writes nothing."""

    def intend(
        self, leader: uuid.UUID, launch_id: uuid.UUID, *, pool: str, provider: str, count: int, most: int
    ) -> Launch | None:
        """Write an intent of up to `count` instances, as far as `most` allows.

        Instances that are not gone and what unsettled launches may still bring count towards `most`, under a lock.

        Returns:
            The launch, with the count that is allowed; None when that is 0, or `leader` does not lead. Repeated with
            an id that is known, it answers with that launch as it stands.
        """
        ...

    def unsettled(self) -> list[Launch]:
        """Intents whose outcome is not known, oldest first: to be called again with the same id."""
        ...

    def tried(self, launch_id: uuid.UUID, error: str) -> None:
        """A call failed, with or without effect: count it and keep why. The launch stays unsettled."""
        ...

    def settle(self, launch_id: uuid.UUID, brought: Sequence[NewInstance], *, error: str = "") -> None:
        """The outcome is known, be it nothing: enter the instances; once, whoever repeats it."""
        ...

    def adopt(self, pool: str, provider: str, launch_id: uuid.UUID | None, found: NewInstance) -> bool:
        """Enter an instance that was found by its tags and is not known. False if it is known, be it as gone."""
        ...

    def registered(self) -> int:
        """Move STARTING to SERVING where a live worker names the instance. Returns how many."""
        ...

    def drain(self, leader: uuid.UUID, pool: str, count: int, reason: str, *, billing_s: float = 0.0) -> list[str]:
        """Choose up to `count` instances to give up, and tell their workers.

        Those without workers first, then those that hold least; among equals the nearest to the end of a paid period
        of `billing_s`, then the youngest. Their workers are marked as draining in the same transaction: they claim
        nothing from then on, learn of it with their next heartbeat, finish what they hold, end their lease and exit.
        A worker that registers later on such an instance drains from its first moment.
        """
        ...

    def drained(self, leader: uuid.UUID) -> list[Instance]:
        """Move DRAINING to STOPPING where no worker lives and no job is held by any, dead or alive.

        A worker ends its lease when no claim of its is under way and nothing is in hand, so none can come up after.

        Returns:
            Every instance that is STOPPING: the provider is to end them, again if it was asked before.
        """
        ...

    def stop(self, leader: uuid.UUID, instance_id: str, reason: str) -> bool:
        """Move an instance to STOPPING at once: it never registered, or is an orphan.

        Returns:
            True if it is STOPPING. False if a worker lives on it or a job is held: then it is drained, and `drained`
            will tell of it. Also False if it is unknown or gone, or `leader` does not lead.
        """
        ...

    def gone(self, instance_ids: Sequence[str], reason: str) -> int:
        """Move to GONE what the provider says is no more, and bury its workers."""
        ...

    def list(self, *, pool: str | None = None, gone_within_s: float = 0.0) -> list[Instance]:
        """Instances that are not gone, and those gone since, by launch time."""
        ...

    def launches_within(self, pool: str, seconds: float) -> int:
        """Instances that launches since then have brought or may still bring: for the limit of launches an hour."""
        ...

    def priced(self, prices: Mapping[str, float]) -> int:
        """Note what instances cost an hour now, by id; hours that workers have reported before keep their price.

        Returns:
            how many cost something else than before.
        """
        ...

    def decided(self, scaling: Scaling, *, kept_s: float = 7 * 86400.0) -> None:
        """Keep a decision; those older than `kept_s` go."""
        ...

    def decisions(self, *, pool: str | None = None, limit: int = 100, since: datetime | None = None) -> list[Scaling]:
        """Newest first."""
        ...

    def totals(self, since: datetime) -> list[Totals]:
        """Of every pool with a model or a worker.

        Args:
            since: moment from which arrivals are counted. Reads the online jobs since then, so move it on every minute:
                add to what was counted what `totals(old)` has more than `totals(new)`, with `new` some seconds ago.
        """
        ...
