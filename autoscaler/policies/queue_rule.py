"""The queue rule: one worker for each so many queued rows, up at once and down after a cooldown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.policies.contract import within
from autoscaler.signals import Decision, Facts, Signals


@dataclass(frozen=True, slots=True)
class QueueRule:
    """Simple, and blind to how fast workers are."""

    rows_per_worker: int = 1000
    cooldown_s: float = 60.0
    """No worker is given up while more were wanted within this time."""
    name: str = "queue"

    @property
    def remembers_s(self) -> float:
        return self.cooldown_s

    def decide(self, history: Sequence[Signals], facts: Facts, now: float) -> Decision:  # noqa: ARG002 - the contract's
        rows = history[-1].queued_rows
        wanted = self._workers(rows)
        recent = max(self._workers(seen.queued_rows) for seen in within(history, now - self.cooldown_s))
        if recent > wanted:
            return Decision(recent, f"{recent} were wanted within the last {self.cooldown_s:.0f} s")
        return Decision(wanted, f"{rows:.0f} rows queued, one worker for each {self.rows_per_worker}")

    def _workers(self, rows: float) -> int:
        return math.ceil(rows / self.rows_per_worker)
