"""What stands behind `Store.traffic`: rules of models, copies of jobs for their shadows, and what became of both."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from batchline.job import NewJob
from batchline.traffic import Rule

WINDOW_S = 3600.0
"""How far back `lately` looks."""
WINDOW_JOBS = 20_000
"""How many jobs of all models it looks at, the newest."""
MOST_PAIRS = 256
"""How many pairs it compares, the newest."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of jobs of one version."""

    jobs: int = 0
    """Ended by a worker."""
    failed: int = 0
    """Of these: all rows."""
    p50_ms: float | None = None
    """Of the forward passes that they were in."""
    p95_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Outputs of a client's job and of its copy, JSON texts: one entry a row."""

    answered: str
    shadow: str


class Traffic(Protocol):
    """Rules and shadows."""

    def rules(self) -> dict[str, Rule]:
        """The rules that were set, by the names of models."""
        ...

    def put(self, model: str, rule: Rule) -> Rule:
        """Set the rule of a model in place of the one before. Returns it with the time of that."""
        ...

    def delete(self, model: str) -> bool:
        """Go back to no rule. False if there was none."""
        ...

    def copy(self, copies: Sequence[tuple[NewJob, uuid.UUID]]) -> None:
        """Store copies as queued jobs.

        Args:
            copies: complete jobs of SHADOW_TENANT, each with the id of the client's job.
        """
        ...

    def lately(self, roles: Mapping[str, int]) -> dict[str, Ended]:
        """How jobs ended that were created within the window, however they came to their version.

        Args:
            roles: names -> model ids. `shadow` counts copies; all others count the jobs of clients.
        """
        ...

    def pairs(self, model_id: int) -> list[Pair]:
        """The newest pairs of the window that ended well, of which both outputs are small.

        Args:
            model_id: of the shadow.
        """
        ...

    def prune(self, *, kept_s: float) -> int:
        """One step: forget of what jobs the copies were that are so old. Returns how many; call again until 0."""
        ...
