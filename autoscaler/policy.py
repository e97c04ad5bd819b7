"""Pure scaling policy: from what is seen to how many workers are wanted, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signals:
    """What is seen of one pool at one moment."""

    queued_rows: int
    oldest_age_s: float
    workers: int
    """Live and not draining."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows."""

    min_workers: int = 1
    max_workers: int = 8
    rows_per_worker: int = 1000
    """The queue rule: one worker for each so many queued rows."""
    cooldown_s: float = 60.0
    """No worker is given up while more were wanted within this time."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers are wanted, and why."""

    desired: int
    reason: str


def decide(signals: Signals, limits: Limits, wanted_before: Sequence[tuple[float, int]], now: float) -> Decision:
    """The queue rule: one worker for each `rows_per_worker` queued rows, up at once and down after the cooldown.

    Args:
        signals: what is seen now.
        limits: bounds and the rule's parameter.
        wanted_before: earlier answers of the rule as (monotonic seconds, workers), oldest first.
        now: monotonic seconds.

    Returns:
        min_workers <= desired <= max_workers.
    """
    by_rule = math.ceil(signals.queued_rows / limits.rows_per_worker)
    recent = max((n for at, n in wanted_before if now - at < limits.cooldown_s), default=0)
    bounded = min(max(by_rule, recent, limits.min_workers), limits.max_workers)
    if bounded == by_rule:
        reason = f"{signals.queued_rows} rows queued, one worker for each {limits.rows_per_worker}"
    elif by_rule > bounded:
        reason = f"{by_rule} workers would fit {signals.queued_rows} queued rows; the maximum is {limits.max_workers}"
    elif bounded == recent:
        reason = f"{recent} were wanted within the last {limits.cooldown_s:.0f} s"
    else:
        reason = f"the minimum is {limits.min_workers}"
    return Decision(bounded, reason)
