"""Whose this process's time is: each moment is shared evenly by the claims in hand, or it is idle."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from batchline.job import ClaimedJob, Lane
from batchline.store.cost_contract import Used

_HOUR_S = 3600
_Owner = tuple[int, int, uuid.UUID | None]
"""Tenant, model and batch."""
_IDLE: _Owner = (0, 0, None)


class Hand:
    """One claim in hand: jobs of one model that run together, or a slice."""

    def __init__(self, jobs: Sequence[ClaimedJob], lane: Lane, mark: float) -> None:
        self.lane = lane
        self.batch: uuid.UUID | None = None
        self.parts: dict[tuple[int, int], int] = defaultdict(int)
        for job in jobs:
            self.parts[job.tenant_id, job.model_id] += job.rows
        self.rows = sum(self.parts.values())
        self.mark = mark
        self.seconds = 0.0


class Meter:
    """Adds up seconds by hour (of this machine's clock) and owner. The caller sees to it that one thread is in here.

    The seconds of a claim go to its jobs by their rows. All that was added up makes the time since the beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        """Begins now.

        Args:
            clock: seconds, to measure with.
            wall: epoch seconds, to tell the hour by.
        """
        self._clock, self._wall = clock, wall
        self._at = clock()
        self._share = 0.0
        """What a claim in hand since the beginning would have got."""
        self._hands: set[Hand] = set()
        self._sums: dict[tuple[int, _Owner], float] = defaultdict(float)
        self._told: dict[tuple[int, _Owner], float] = {}
        self._busy: dict[tuple[Lane, int], float] = defaultdict(float)

    def begin(self, jobs: Sequence[ClaimedJob], lane: Lane = Lane.ONLINE) -> Hand:
        """The jobs of one claim, at least one, come into hand."""
        self._advance()
        hand = Hand(jobs, lane, self._share)
        self._hands.add(hand)
        return hand

    def name(self, hand: Hand, batch_id: uuid.UUID) -> None:
        """The claim is a slice of this batch."""
        self._advance()
        self._credit(hand)
        hand.batch = batch_id

    def end(self, hand: Hand) -> None:
        """They have left it."""
        self._advance()
        self._credit(hand)
        self._hands.discard(hand)

    def seconds(self, hand: Hand) -> float:
        """What the claim has had of this process so far."""
        self._advance()
        self._credit(hand)
        return hand.seconds

    def read(self) -> list[Used]:
        """What has grown since it was last `told`: sums since the beginning of each hour, so that repeating is safe."""
        self._advance()
        for hand in self._hands:
            self._credit(hand)
        return [
            Used(datetime.fromtimestamp(hour, UTC), *owner, seconds)
            for (hour, owner), seconds in self._sums.items()
            if self._told.get((hour, owner), 0.0) != seconds
        ]

    def told(self, used: Sequence[Used]) -> None:
        """These have been written down; what belongs to past hours is forgotten."""
        now = self._hour()
        for one in used:
            key = int(one.hour.timestamp()), (one.tenant_id, one.model_id, one.batch_id)
            self._told[key] = one.seconds
        for key in [key for key, s in self._sums.items() if key[0] < now and self._told.get(key, 0.0) == s]:
            del self._sums[key]
            self._told.pop(key, None)

    def busy(self) -> dict[tuple[Lane, int], float]:
        """Seconds by lane and model since it was last asked."""
        self._advance()
        for hand in self._hands:
            self._credit(hand)
        busy, self._busy = self._busy, defaultdict(float)
        return busy

    def restart(self) -> None:
        """Sums begin anew with what has not been told; what is in hand stays there."""
        for key, seconds in self._told.items():
            self._sums[key] -= seconds
        self._told.clear()

    def _hour(self) -> int:
        return int(self._wall() // _HOUR_S) * _HOUR_S

    def _advance(self) -> None:
        now = self._clock()
        if self._hands:
            self._share += (now - self._at) / len(self._hands)
        else:
            self._sums[self._hour(), _IDLE] += now - self._at
        self._at = now

    def _credit(self, hand: Hand) -> None:
        seconds, hand.mark = self._share - hand.mark, self._share
        hand.seconds += seconds
        hour = self._hour()
        for (tenant, model), rows in hand.parts.items():
            part = seconds * rows / hand.rows
            self._sums[hour, (tenant, model, hand.batch)] += part
            self._busy[hand.lane, model] += part
