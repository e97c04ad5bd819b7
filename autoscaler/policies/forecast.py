"""What the history says of the near future: arriving work, age of the backlog, when pending workers come."""

from __future__ import annotations

from collections.abc import Sequence

from autoscaler.policies.contract import within
from autoscaler.signals import Facts, Signals


def rate(history: Sequence[Signals], now: float, over_s: float) -> float:
    """Online work arriving, in worker-seconds a second, over the last `over_s` or as has been seen; never below 0."""
    looks = within(history, now - over_s)
    seconds = looks[-1].at - looks[0].at
    if seconds <= 0:
        return 0.0
    return max(0.0, (looks[-1].arrived_work_s - looks[0].arrived_work_s) / seconds)


def backlog(history: Sequence[Signals], now: float) -> list[tuple[float, float]]:
    """The queued online work by age: (seconds waited, worker-seconds), oldest first.

    The queue is first in, first out: what waits is what arrived last, and the curve of arrivals says when. What
    arrived before the first look is as old as the oldest job.
    """
    left = history[-1].online_work_s
    oldest = max(0.0, history[-1].oldest_age_s)
    found = list[tuple[float, float]]()
    for n in range(len(history) - 1, 0, -1):
        if left <= 0:
            break
        work_s = min(left, history[n].arrived_work_s - history[n - 1].arrived_work_s)
        if work_s > 0:
            found.append((now - history[n - 1].at, work_s))
            left -= work_s
    if left > 0:
        found.append((oldest, left))
    return [(min(age, oldest) if oldest else age, work_s) for age, work_s in reversed(found)]


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
