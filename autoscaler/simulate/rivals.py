"""Other systems' rules, to compare with: KEDA's on the Horizontal Pod Autoscaler.

Cortex's rule is a policy of its own, `autoscaler.policies.target_in_flight`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.policies.contract import within
from autoscaler.signals import Decision, Facts, Signals


@dataclass(frozen=True, slots=True)
class Keda:
    """A ScaledObject on the length of the queue, with the HPA's default behaviour.

    The HPA wants ceil(queue / threshold), and leaves it where that is within the tolerance of what there is; it goes
    down to the highest recommendation of the stabilisation window, and up by at most 100 % or 4 pods in 15 s. KEDA
    activates the first pod when its poll sees a queue, and takes the last one when none was seen for the cooldown.
    https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ and
    https://keda.sh/docs/latest/reference/scaledobject-spec/
    """

    rows_per_worker: float = 1000.0
    bulk_rows_per_worker: float = 0.0
    """A trigger of its own for the bulk lane, the larger answer counts; 0: one trigger for both lanes together."""
    polling_s: float = 30.0
    tolerance: float = 0.1
    stabilisation_s: float = 300.0
    cooldown_s: float = 300.0
    up_share: float = 1.0
    up_pods: int = 4
    up_period_s: float = 15.0
    name: str = "keda"

    @property
    def remembers_s(self) -> float:
        return max(self.stabilisation_s, self.cooldown_s, self.up_period_s, self.polling_s) + 30.0

    def decide(self, history: Sequence[Signals], facts: Facts, now: float) -> Decision:  # noqa: ARG002 - the contract's
        current = history[-1].total
        rows = history[-1].queued_rows
        if current == 0:
            active = rows > 0 and now % self.polling_s < 1e-6
            return Decision(int(active), f"{rows:.0f} rows at the poll" if active else "not active")
        looks = within(history, now - self.cooldown_s)
        if len(looks) < len(history) and all(seen.queued_rows + seen.running_rows <= 0 for seen in looks):
            return Decision(0, f"nothing queued for {self.cooldown_s:.0f} s")
        wanted = max(1, self._recommend(history[-1]))
        if wanted >= current:
            before = min(seen.total for seen in within(history, now - self.up_period_s + 1e-6))
            most = max(math.ceil(before * (1 + self.up_share)), before + self.up_pods)
            return Decision(max(current, min(wanted, most)), f"{rows:.0f} rows, {self.rows_per_worker:.0f} a pod")
        held = max(max(1, self._recommend(seen)) for seen in within(history, now - self.stabilisation_s))
        return Decision(min(current, held), f"{held} were recommended within {self.stabilisation_s:.0f} s")

    def _recommend(self, seen: Signals) -> int:
        """ceil(metric / threshold) by the trigger that asks for most; what there is if that is within the tolerance."""
        shares = [seen.queued_rows / self.rows_per_worker]
        if self.bulk_rows_per_worker > 0:
            shares = [seen.online_rows / self.rows_per_worker, seen.bulk_rows / self.bulk_rows_per_worker]
        wanted = [seen.total if abs(s - seen.total) <= self.tolerance * seen.total else math.ceil(s) for s in shares]
        return max(wanted)
