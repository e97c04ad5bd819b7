"""What a chore is: a name, a rhythm, and one bounded step of work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chore:
    """`step` does a bounded amount of work and returns how many things it moved.

    A step that moved a full portion is run again at once, so that a backlog does not wait for the rhythm.
    """

    name: str
    every_s: float
    step: Callable[[], int]
    portion: int = 0
    """How many moved things mean that there may be more; 0: never run again at once."""
    delay_after_gap_s: float = 0.0
    """How long to wait after the leader was cut off from Postgres for longer than a worker's lease."""
