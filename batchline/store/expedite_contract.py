"""What the store knows of deadlines: how much bulk work is due when, and how slices are put before all others.

As in `batchline.store.contract`: every method is one short statement that happens whole or not at all, and raises
StoreUnavailableError when Postgres cannot be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Due:
    """Work of batches that have one model and one deadline, and who is there to do it."""

    pool: str
    model_id: int
    deadline_at: datetime
    rows: int
    slices: int
    """Those that have not ended."""
    queued: int
    """Those of them that can be claimed now."""
    workers: int
    """Of the pool: live, and not draining."""
    rows_per_s: float
    """Of one worker busy with slices of the model, or of its pool where nobody has measured it; 0: neither has been."""
    busy_s: float
    """So long is a slice of the batch in the pool that has the longest, with a deadline or without; 0: not measured."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The first `most` slices that wait, of the batches that have one model and one deadline."""

    model_id: int
    deadline_at: datetime
    most: int


class Deadlines(Protocol):
    """Deadlines of batches that are in progress and not paused. Safe under two leaders."""

    def planned(self) -> list[Due]:
        """All there was to do when these batches were planned, by deadline: at least what is left. Looks at no slice.

        However many there are, the earliest 10,000.
        """
        ...

    def left(self, dues: Sequence[Due]) -> list[Due]:
        """The same with what is left of each, running slices included; those that have nothing left are left out."""
        ...

    def expedite(self, picks: Sequence[Pick]) -> int:
        """Rank these slices before all that is not expedited, among themselves by deadline and number.

        Slices keep that rank for good: through retry, give-back and rescue. Those that run stay as they are.

        Returns:
            How many were moved; those that had been already do not count.
        """
        ...
