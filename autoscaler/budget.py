"""The budget of a day: most of it spent warns; all of it spent holds bulk until midnight UTC, while online goes on.

`Budgets.watch` counts, logs, sets metrics, and keeps the standing in the store, where claims of slices look at it.
`online_of` and `within` are what then becomes of the policy's signals and limits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from autoscaler.config import PoolConfig
from autoscaler.guards import guard
from autoscaler.signals import Decision, Facts, Limits, Signals, Spent
from batchline.clock import Clock
from batchline.metrics import BUDGET, BUDGET_SPENT
from batchline.store.cost_contract import CostRoom, PoolMoney, Standing

log = logging.getLogger("autoscaler")

_COUNT_S = 15.0
"""What has been spent is counted this often."""
_KEEP_S = 60.0


def standing_of(spent: float, budget: float | None, warn_at: float) -> Standing:
    """How a pool stands.

    Args:
        spent: since midnight UTC.
        budget: of a day; None: no limit.
        warn_at: share of it from which on it is told.
    """
    if budget is None:
        return Standing.WELL
    if spent >= budget:
        return Standing.SPENT
    return Standing.WARNED if spent >= warn_at * budget else Standing.WELL


def online_of(seen: Signals) -> Signals:
    """What is left to serve while bulk is held."""
    online = {"queued_rows": seen.online_rows, "queued_work_s": seen.online_work_s}
    return replace(seen, **online, bulk_rows=0.0, bulk_work_s=0.0, demands=())


def within(standing: Standing, seen: Signals, limits: Limits, facts: Facts, spent: Spent) -> Limits:
    """The limits under which online goes on when the money runs out.

    By itself the guard takes away what the rest of the budget cannot pay. Here nothing is added any more, and what is
    there stays for as long as the policy wants it, or one worker; once all is spent no minimum keeps it.
    """
    there = max(1, seen.total)
    if limits.budget_per_day is None:
        return limits
    payable = guard(Decision(there, ""), seen, Limits(0, there, budget_per_day=limits.budget_per_day), facts, spent)
    if standing is not Standing.SPENT and payable.desired >= there:
        return limits
    kept = replace(limits, budget_per_day=None, max_workers=min(limits.max_workers, there))
    return replace(kept, min_workers=0, floors=()) if standing is Standing.SPENT else kept


def midnight_of(now: datetime) -> datetime:
    """When the day of UTC began."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


@dataclass(slots=True)
class _Seen:
    """What is known of one pool, and under which rules: day, limits, price, and whether we led."""

    money: PoolMoney
    rules: tuple[object, ...] = ()
    counted_at: float = -math.inf
    kept_at: float = -math.inf


class Budgets:
    """Watches all pools; who leads tells, keeps, and so holds and frees bulk."""

    def __init__(self, costs: CostRoom, clock: Clock) -> None:
        self._costs = costs
        self._clock = clock
        self._pools: dict[str, _Seen] = {}

    def watch(self, config: PoolConfig, *, leads: bool) -> Standing:
        """Look at one pool, and keep what was seen: at most every 15 s, or once its rules are others."""
        now, day = self._clock.monotonic(), midnight_of(self._clock.now())
        seen = self._pools.setdefault(config.pool, _Seen(PoolMoney(config.pool)))
        rules = (day, config.limits, config.price_per_hour, leads)
        if now - seen.counted_at < _COUNT_S and rules == seen.rules:
            return seen.money.standing
        money = self._look(config, day)
        due = rules != seen.rules or money.standing is not seen.money.standing or now - seen.kept_at >= _KEEP_S
        before, seen.money, seen.rules, seen.counted_at = seen.money, money, rules, now
        if leads and due:
            self._costs.keep(money)
            seen.kept_at = now
        if leads and money.standing is not before.standing:
            _tell(money)
        return money.standing

    def free(self, named: Container[str]) -> None:
        """Hold bulk of no pool any more that nobody watches: it has left the file, and its budget with it."""
        for money in self._costs.money():
            if money.pool not in named and money.standing is not Standing.WELL:
                self._costs.keep(PoolMoney(money.pool, money.price_per_hour))
                self._pools.pop(money.pool, None)
                log.info("the pool has left the file: its budget holds nothing", extra={"pool": money.pool})

    def _look(self, config: PoolConfig, day: datetime) -> PoolMoney:
        limits, pool = config.limits, config.pool
        budget = limits.budget_per_day
        spent = self._costs.spent(pool, day) if budget is not None else 0.0
        standing = standing_of(spent, budget, limits.budget_warn_at)
        BUDGET.labels(pool).set(budget if budget is not None else math.inf)
        BUDGET_SPENT.labels(pool).set(spent)
        until = day + timedelta(days=1) if standing is Standing.SPENT else None
        return PoolMoney(pool, config.price_per_hour, budget, spent, standing, until)


def _tell(money: PoolMoney) -> None:
    about = {"pool": money.pool, "spent": round(money.spent_today, 4), "budget": money.budget_per_day}
    if money.standing is Standing.SPENT:
        log.error("the budget of the day is spent: batches wait for midnight UTC or a higher one", extra=about)
    elif money.standing is Standing.WARNED:
        log.warning("most of the budget of the day is spent", extra=about)
    else:
        log.info("within the budget of the day", extra=about)
