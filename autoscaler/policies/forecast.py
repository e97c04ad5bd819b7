"""What the history says of the near future: arrival rate, age of the backlog, when pending workers come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoscaler.policies.contract import within
from autoscaler.signals import Demand, Facts, Signals


def rate(history: Sequence[Signals], now: float, over_s: float) -> float:
    """Online rows/s over the last `over_s`, or as long as has been seen; never below 0."""
    looks = within(history, now - over_s)
    seconds = looks[-1].at - looks[0].at
    if seconds <= 0:
        return 0.0
    return max(0.0, (looks[-1].arrived_rows - looks[0].arrived_rows) / seconds)


def service_rate(history: Sequence[Signals]) -> float:
    """Rows/s of one busy worker as last measured; 0 if never."""
    return next((seen.rows_per_s for seen in reversed(history) if seen.rows_per_s > 0), 0.0)


def weighed(history: Sequence[Signals]) -> Sequence[Signals]:
    """The history with a present whose bulk rows count as the online rows that take a worker as long.

    Slices go many times as fast as jobs of a row, or are of a dearer model: one rate for both would see a batch as done
    in a minute, or as a reason for every worker there may be. What runs is weighed as bulk; of online work little runs.
    """
    seen = history[-1]
    bulk = next((look.bulk_rows_per_s for look in reversed(history) if look.bulk_rows_per_s > 0), 0.0)
    weight = service_rate(history) / bulk if bulk > 0 else 1.0
    if weight in (0.0, 1.0):
        return history
    present = replace(
        seen,
        queued_rows=seen.online_rows + seen.bulk_rows * weight,
        bulk_rows=seen.bulk_rows * weight,
        running_rows=seen.running_rows * weight,
        demands=tuple(Demand(demand.due_s, demand.rows * weight) for demand in seen.demands),
    )
    return [*history[:-1], present]


def backlog(history: Sequence[Signals], now: float) -> list[tuple[float, float]]:
    """The queued online rows by age: (seconds waited, rows), oldest first.

    The queue is first in, first out: what waits is what arrived last, and the curve of arrivals says when. What
    arrived before the first look is as old as the oldest job.
    """
    left = history[-1].online_rows
    oldest = max(0.0, history[-1].oldest_age_s)
    found = list[tuple[float, float]]()
    for n in range(len(history) - 1, 0, -1):
        if left <= 0:
            break
        rows = min(left, history[n].arrived_rows - history[n - 1].arrived_rows)
        if rows > 0:
            found.append((now - history[n - 1].at, rows))
            left -= rows
    if left > 0:
        found.append((oldest, left))
    return [(min(age, oldest) if oldest else age, rows) for age, rows in reversed(found)]


def pending(history: Sequence[Signals], facts: Facts, now: float) -> list[tuple[float, int]]:
    """When the workers that are launched and not there yet will be: (seconds from now, workers), newest first."""
    left = history[-1].pending
    found = list[tuple[float, int]]()
    for n in range(len(history) - 1, 0, -1):
        if left <= 0 or now - history[n].at > facts.start_s:
            break
        launched = min(left, history[n].total - history[n - 1].total)
        if launched > 0:
            found.append((max(0.0, facts.start_s - (now - history[n - 1].at)), launched))
            left -= launched
    if left > 0:
        found.append((0.0 if found else facts.start_s / 2, left))
    return found


def since_rise(history: Sequence[Signals], now: float) -> float:
    """Seconds since the number of workers, pending ones included, last rose; infinite if not within the history."""
    for n in range(len(history) - 1, 0, -1):
        if history[n].total > history[n - 1].total:
            return now - history[n - 1].at
    return float("inf")
