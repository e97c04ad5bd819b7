"""Scaling policies: pure rules behind one contract."""

from __future__ import annotations

from collections.abc import Callable

from autoscaler.policies.contract import Policy
from autoscaler.policies.drain_time import DrainTime
from autoscaler.policies.queue_rule import QueueRule
from autoscaler.policies.target_in_flight import TargetInFlight

__all__ = ["POLICIES", "DrainTime", "Policy", "QueueRule", "TargetInFlight"]

POLICIES: dict[str, Callable[[], Policy]] = {
    "queue": QueueRule,
    "target_in_flight": TargetInFlight,
    "drain_time": DrainTime,
}
"""By name, with their defaults."""
