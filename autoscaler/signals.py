"""What is seen of a pool, and what is decided from it: values that policies, guards and simulator share."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Demand:
    """Work with a deadline: `rows` of the bulk lane, those of earlier demands included, are due within `due_s`.

    They take one worker `work_s`.
    """

    due_s: float
    rows: float
    work_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Signals:
    """One look at one pool. Rows, since jobs differ in size; rates per second.

    Rows of models differ in cost: what is called work is the worker-seconds that the rows take, those of each model at
    its own measured speed in their lane, or at the pool's while it has none. All work is 0 while nothing is measured.

    Attributes:
        at: epoch seconds.
        queued_rows: waiting, both lanes.
        bulk_rows: those of them in the bulk lane.
        running_rows: claimed and not finished, both lanes.
        oldest_age_s: of the first queued online job.
        arrived_rows: rows of the online lane that have arrived since some moment; only grows.
        done_rows: rows of both lanes that have been finished since some moment; only grows.
        workers: live and not draining: what counts as capacity.
        pending: launched and not yet registered.
        draining: live, taking nothing new.
        rows_per_s: of one busy worker as last measured, also while none is live; 0 when never measured. Of the online
            lane if it was ever busy.
        demands: work with deadlines, earliest first.
        bulk_rows_per_s: of one worker busy with bulk; 0 when never measured.
        queued_work_s: of queued_rows.
        bulk_work_s: of bulk_rows.
        running_work_s: of running_rows.
        arrived_work_s: of the rows that arrived since some moment, at the speeds of when they did; only grows.
    """

    at: float
    queued_rows: float = 0.0
    bulk_rows: float = 0.0
    running_rows: float = 0.0
    oldest_age_s: float = 0.0
    arrived_rows: float = 0.0
    done_rows: float = 0.0
    workers: int = 0
    pending: int = 0
    draining: int = 0
    rows_per_s: float = 0.0
    demands: tuple[Demand, ...] = ()
    bulk_rows_per_s: float = 0.0
    queued_work_s: float = 0.0
    bulk_work_s: float = 0.0
    running_work_s: float = 0.0
    arrived_work_s: float = 0.0

    @property
    def online_rows(self) -> float:
        """Waiting in the online lane."""
        return max(0.0, self.queued_rows - self.bulk_rows)

    @property
    def online_work_s(self) -> float:
        """Of online_rows."""
        return max(0.0, self.queued_work_s - self.bulk_work_s)

    @property
    def total(self) -> int:
        """Workers that are or will be there: live and pending."""
        return self.workers + self.pending


def of_one_speed(seen: Signals, speed: float, bulk_speed: float = 0.0) -> Signals:
    """The look with its work filled in, of a pool whose models are alike.

    Args:
        seen: its rows count; those that run count as bulk.
        speed: online rows/s of one worker.
        bulk_speed: in the bulk lane; 0: the same.
    """
    bulk_speed = bulk_speed or speed
    return replace(
        seen,
        queued_work_s=seen.online_rows / speed + seen.bulk_rows / bulk_speed,
        bulk_work_s=seen.bulk_rows / bulk_speed,
        running_work_s=seen.running_rows / bulk_speed,
        arrived_work_s=seen.arrived_rows / speed,
        demands=tuple(replace(demand, work_s=demand.rows / bulk_speed) for demand in seen.demands),
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows, whatever a policy wants; `guards.check` refuses what contradicts itself."""

    min_workers: int = 0
    max_workers: int = 8
    max_launches_per_hour: int | None = None
    budget_per_day: float | None = None
    """In the currency of the prices, by UTC days."""
    floors: tuple[tuple[int, int, int], ...] = ()
    """(from hour, to hour, workers) by UTC: at least so many workers at these hours; 22 to 6 goes past midnight."""
    enabled: bool = True
    """The kill switch: off, nothing is launched or stopped."""
    budget_warn_at: float = 0.8
    """Share of the budget from which on it is told."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a policy may know of the pool beside its signals."""

    start_s: float = 30.0
    """Time from launch to the first claim; measured to the worker's registration, once its models are loaded."""
    billing_s: float = 60.0
    """A launched worker costs at least this long."""
    price_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Spent:
    """What the ledger knows of a pool's past, as far as limits ask for it."""

    launches_last_hour: int = 0
    today: float = 0.0
    """Cost since midnight UTC, in the currency of the prices."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers are wanted, pending ones included, and why."""

    desired: int
    reason: str
