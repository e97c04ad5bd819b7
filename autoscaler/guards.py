"""What the operator allows, after any policy: any decision in, one within the limits out, and which limit held."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from autoscaler.signals import Decision, Facts, Limits, Signals, Spent
from batchline.errors import SettingsError

_HOURS = 24


def check(limits: Limits) -> None:
    """Refuse limits that contradict themselves or allow nothing.

    Raises:
        SettingsError: lists every fault, each with what to do.
    """
    faults = list[str]()
    if limits.min_workers < 0:
        faults.append(f"the minimum of workers is {limits.min_workers}; use 0 or more")
    if limits.max_workers < 1:
        faults.append(f"the maximum of workers is {limits.max_workers}; use 1 or more, or switch the autoscaler off")
    if limits.min_workers > limits.max_workers:
        faults.append(
            f"the minimum of {limits.min_workers} workers is above the maximum of {limits.max_workers}; raise that"
        )
    if limits.budget_per_day is not None and limits.budget_per_day <= 0:
        faults.append("the budget of a day is 0: nothing could run; leave it out for no budget, or switch off")
    if not 0 < limits.budget_warn_at <= 1:
        faults.append(f"budget_warn_at is {limits.budget_warn_at}; use a share of the budget above 0, up to 1")
    if limits.max_launches_per_hour is not None and limits.max_launches_per_hour < 1:
        faults.append("0 launches an hour: nothing could start; leave it out for no limit, or switch off")
    for start, end, workers in limits.floors:
        if not (0 <= start < _HOURS and 0 <= end <= _HOURS and start != end):
            faults.append(f"the floor from {start} to {end} h is no span of hours; use 0 to 24, as in 8 to 18")
        if not 0 <= workers <= limits.max_workers:
            faults.append(f"the floor of {workers} workers is not within 0 and the maximum of {limits.max_workers}")
    if faults:
        raise SettingsError("; ".join(faults))


def floor_at(limits: Limits, now: float) -> int:
    """The least workers at this time: the minimum, or the highest floor of the hour.

    Args:
        limits: of the pool.
        now: epoch seconds.
    """
    hour = datetime.fromtimestamp(now, UTC).hour
    found = [n for a, b, n in limits.floors if (a <= hour < b if a < b else hour >= a or hour < b)]
    return max([limits.min_workers, *found])


def guard(wanted: Decision, seen: Signals, limits: Limits, facts: Facts, spent: Spent) -> Decision:
    """Bring a decision within the limits, each outranking those before it.

    floor < launches of an hour < maximum < budget < kill switch. Pure: says the same to the same.

    Args:
        wanted: a policy's answer.
        seen: the present look.
        limits: of the pool.
        facts: start-up time, billing and price of a worker.
        spent: launches of the last hour and cost of the day.

    Returns:
        0 <= desired <= max_workers, unless switched off, when desired is what is there.
        The reason ends with the limit that held, if one did.
    """
    if not limits.enabled:
        return Decision(seen.total, f"{wanted.reason}; switched off: nothing is launched or stopped")
    desired, held = max(wanted.desired, 0), ""
    if desired < (floor := floor_at(limits, seen.at)):
        hours = "of this hour" if floor > limits.min_workers else "of workers"
        desired, held = floor, f"the minimum {hours} is {floor}"
    if limits.max_launches_per_hour is not None:
        most = seen.total + max(0, limits.max_launches_per_hour - spent.launches_last_hour)
        if desired > most:
            desired, held = most, f"launches are limited to {limits.max_launches_per_hour} an hour"
    if desired > limits.max_workers:
        desired, held = limits.max_workers, f"the maximum is {limits.max_workers}"
    if limits.budget_per_day is not None and facts.price_per_hour > 0:
        paid = _payable(limits.budget_per_day - spent.today, facts)
        if desired > paid:
            left = max(0.0, limits.budget_per_day - spent.today)
            desired, held = paid, f"the budget of {limits.budget_per_day:g} a day leaves {left:.2f}"
    return Decision(desired, f"{wanted.reason}; {held}" if held else wanted.reason)


def _payable(left: float, facts: Facts) -> int:
    """Workers whose next billing minimum, start included, can still be paid."""
    hours = max(facts.billing_s, facts.start_s, 60.0) / 3600
    return max(0, math.floor(left / (facts.price_per_hour * hours)))
