"""What a scaling policy is: a pure function of what has been seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from autoscaler.signals import Decision, Facts, Signals


class Policy(Protocol):
    """Decides from the history alone: the same history gives the same decision, so any decision can be replayed."""

    @property
    def name(self) -> str:
        """As settings and tables call it."""
        ...

    @property
    def remembers_s(self) -> float:
        """How much history to keep for it."""
        ...

    def decide(self, history: Sequence[Signals], facts: Facts, now: float) -> Decision:
        """How many workers are wanted, pending ones included; limits come afterwards, by `guards`.

        Args:
            history: looks at the pool, oldest first; the last one is the present. Never empty.
            facts: start-up time, billing and price of a worker.
            now: epoch seconds.

        Returns:
            desired >= 0, and a reason that a person can check against the signals.
        """
        ...


def within(history: Sequence[Signals], since: float) -> Sequence[Signals]:
    """The looks at or after `since`, and at least the last one."""
    first = len(history) - 1
    while first > 0 and history[first - 1].at >= since:
        first -= 1
    return history[first:]
