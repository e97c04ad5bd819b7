"""Cortex's rule: rows in flight, averaged over a window, divided by a target; tolerance, steps, stabilisation.

After https://github.com/cortexlabs/cortex/blob/master/docs/workloads/async/autoscaling.md: a recommendation is the
average over `window_s` divided by the target, held back by the tolerances and the factors of one step; what is asked
for is not below the highest recommendation of `down_stable_s` and not above the lowest of `up_stable_s`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.signals import Decision, Facts, Signals


@dataclass(frozen=True, slots=True)
class TargetInFlight:
    """Cortex's defaults; `target` has none there but the concurrency of a replica."""

    target: float = 1000.0
    """Rows queued and running for each worker."""
    window_s: float = 60.0
    down_stable_s: float = 300.0
    up_stable_s: float = 60.0
    max_down_factor: float = 0.75
    max_up_factor: float = 1.5
    down_tolerance: float = 0.05
    up_tolerance: float = 0.05
    name: str = "target_in_flight"

    @property
    def remembers_s(self) -> float:
        return max(self.down_stable_s, self.up_stable_s) + self.window_s

    def decide(self, history: Sequence[Signals], facts: Facts, now: float) -> Decision:  # noqa: ARG002 - the contract's
        current = history[-1].total
        latest = self._recommended(history, now)[0]
        if latest < current and (held := max(self._recommended(history, now - self.down_stable_s))) > latest:
            return Decision(min(held, current), f"{held} workers were recommended within {self.down_stable_s:.0f} s")
        if latest > current and (held := min(self._recommended(history, now - self.up_stable_s))) < latest:
            return Decision(max(held, current), f"only {held} workers were recommended within {self.up_stable_s:.0f} s")
        reason = f"for each worker {self.target:.0f} rows in flight, averaged over {self.window_s:.0f} s"
        return Decision(latest, reason)

    def _recommended(self, history: Sequence[Signals], since: float) -> list[int]:
        """What each look since then recommends, newest first; at least the last one's."""
        found = list[int]()
        oldest, rows = len(history), 0.0
        for newest in range(len(history) - 1, -1, -1):
            at = history[newest].at
            if found and at < since:
                break
            while oldest > 0 and (oldest > newest or history[oldest - 1].at > at - self.window_s):
                oldest -= 1
                rows += _in_flight(history[oldest])
            found.append(self._recommend(rows / (newest - oldest + 1), history[newest].total))
            rows -= _in_flight(history[newest])
        return found

    def _recommend(self, rows: float, current: int) -> int:
        wanted = math.ceil(rows / self.target)
        if current * (1 - self.down_tolerance) < wanted < current * (1 + self.up_tolerance):
            return current
        least = min(current - 1, math.ceil(current * self.max_down_factor))
        most = max(current + 1, math.ceil(current * self.max_up_factor))
        return max(min(max(wanted, least), most), 0)


def _in_flight(seen: Signals) -> float:
    return seen.queued_rows + seen.running_rows
