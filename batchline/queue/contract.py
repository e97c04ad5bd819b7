"""What the processes ask of the queue. All of it is best effort: lost, doubled and late messages do no harm."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from batchline.job import Lane


class Nudger(Protocol):
    """Tells a pool's workers that there is work."""

    def nudge(self, pool: str, lane: Lane, *, force: bool = False) -> None:
        """Ask for one nudge and return at once; never blocks, never raises.

        At most one nudge is out per pool and lane (a marker with a life of 2 s); `force` ignores the marker.
        """
        ...

    def close(self) -> None:
        """Send what is pending, for at most a second."""
        ...


class Finished(Protocol):
    """Tells the API processes which jobs have ended."""

    def publish(self, job_ids: Sequence[uuid.UUID]) -> None:
        """Announce ended jobs; never raises."""
        ...

    def listen(self, on_finished: Callable[[Sequence[uuid.UUID]], None]) -> None:
        """Call back from a thread of its own for every announcement until closed; reconnects by itself."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...
