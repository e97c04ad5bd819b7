"""Workers of a simulation: launched, starting, serving, stopped or taken away, and what they cost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class World:
    """What the pool runs on.

    Attributes:
        rows_per_s: of one busy worker.
        start_s: from launch to the first claim.
        billing_s: a worker costs at least this long.
        drain_s: from being told to stop to being gone.
        price_per_hour: of a worker.
        interruptions_per_hour: of one worker, at random (spot).
        capacity_errors: share of launches that the provider refuses.
        seed: of what happens at random.
    """

    rows_per_s: float = 50.0
    start_s: float = 60.0
    billing_s: float = 60.0
    drain_s: float = 2.0
    price_per_hour: float = 0.5
    interruptions_per_hour: float = 0.0
    capacity_errors: float = 0.0
    seed: int = 1


class Fleet:
    """Workers by launch, oldest first; counted, not named, so that ten thousand cost no more than ten."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = np.random.default_rng(world.seed)
        self._live: deque[list[float]] = deque()  # [launched at, workers]
        self._starting: deque[list[float]] = deque()
        self.live = 0
        self.pending = 0
        self.launches = 0
        self.interrupted = 0
        self.refused = 0
        self.paid_s = 0.0
        """Worker-seconds of workers that are gone, billing minimum included."""
        self._launched_sum = 0.0

    def step(self, now: float, step_s: float) -> None:
        """Let started workers serve, and spot capacity be taken away."""
        while self._starting and self._starting[0][0] + self._world.start_s <= now + 1e-9:
            launch = self._starting.popleft()
            self._live.append(launch)
            self.pending -= int(launch[1])
            self.live += int(launch[1])
        if self._world.interruptions_per_hour > 0 and self.live:
            lost = int(self._rng.binomial(self.live, 1 - np.exp(-self._world.interruptions_per_hour * step_s / 3600)))
            self.interrupted += lost
            self.live -= lost
            self._take(self._live, lost, now, oldest=True)

    def set(self, desired: int, now: float) -> int:
        """Launch or stop until live and pending workers are as desired; pending ones are given up first.

        Returns:
            workers asked of the provider; it may refuse some.
        """
        more = desired - self.live - self.pending
        if more > 0:
            refused = int(self._rng.binomial(more, self._world.capacity_errors)) if self._world.capacity_errors else 0
            self.refused += refused
            self.launches += more - refused
            if more > refused:
                self._starting.append([now, more - refused])
                self._launched_sum += now * (more - refused)
                self.pending += more - refused
            return more
        cancelled = min(-more, self.pending)
        self.pending -= cancelled
        self._take(self._starting, cancelled, now, oldest=False)
        stopped = -more - cancelled
        self.live -= stopped
        self._take(self._live, stopped, now + self._world.drain_s, oldest=True)
        return 0

    def worker_s(self, now: float) -> float:
        """Worker-seconds paid until now, of all workers that ever were."""
        return self.paid_s + (self.live + self.pending) * now - self._launched_sum

    def _take(self, launches: deque[list[float]], workers: int, end: float, *, oldest: bool) -> None:
        while workers > 0:
            launch = launches[0] if oldest else launches[-1]
            n = min(workers, int(launch[1]))
            self.paid_s += n * max(self._world.billing_s, end - launch[0])
            self._launched_sum -= n * launch[0]
            launch[1] -= n
            workers -= n
            if launch[1] <= 0:
                launches.popleft() if oldest else launches.pop()
