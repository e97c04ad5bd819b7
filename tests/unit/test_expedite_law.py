"""Whatever batches there are: deadlines that the earliest of them going first would meet are met by the chore too."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from batchline.store.expedite_contract import Due
from scheduler.chores.expedite import EVERY_S, first_of, urgent

POOLS = 100
START = datetime(2026, 11, 22, tzinfo=UTC)


@dataclass(eq=False)
class Batch:
    """Slices of so many seconds; `ranks` are of those that wait, first in the order of the queue."""

    at_s: float
    slice_s: float
    slices: int
    due_s: float = math.inf
    waits: deque[tuple[int, float]] = field(default_factory=deque[tuple[int, float]])
    running: list[float] = field(default_factory=list[float])
    ended_s: float = math.inf

    def rank(self, workers: int, *, first: bool) -> None:
        """By turns, as it is planned; or `first`, all by its deadline."""
        for n in range(self.slices):
            start = min(self.at_s + n * self.slice_s / workers, self.due_s - 5)
            self.waits.append((0, self.due_s) if first and self.due_s < math.inf else (1, start))

    def due(self, now_s: float, workers: int, busy_s: float) -> Due:
        left_s = len(self.waits) * self.slice_s + sum(max(0.0, end - now_s) for end in self.running)
        slices, at = len(self.waits) + len(self.running), START + timedelta(seconds=self.due_s)
        return Due("cpu", 1, at, int(left_s * 1000), slices, len(self.waits), workers, 1000.0, busy_s)


def some_batches(rng: random.Random, workers: int) -> list[Batch]:
    """Two to six, some without a deadline, others with a little more time than they take, or a lot."""
    found: list[Batch] = []
    for _ in range(rng.randint(2, 6)):
        batch = Batch(rng.choice([0.0, 0.0, rng.uniform(0, 1800)]), rng.choice([5.0, 20.0, 60.0]), rng.randint(3, 40))
        if rng.random() < 0.55:
            takes_s = batch.slice_s * batch.slices / workers * rng.uniform(1.3, 6)
            batch.due_s = batch.at_s + takes_s + 5 * batch.slice_s + rng.uniform(0, 60)
        found.append(batch)
    return found


def move(batches: list[Batch], now_s: float, workers: int) -> None:
    """One tick of the chore."""
    there = [b for b in batches if b.waits or b.running]
    busy_s = max((b.slice_s for b in there), default=0.0)
    by_due = sorted((b for b in there if b.due_s < math.inf), key=lambda b: b.due_s)
    dues = [b.due(now_s, workers, busy_s) for b in by_due]
    for pick in first_of(urgent(dues, START + timedelta(seconds=now_s))):
        batch = next(b for b, due in zip(by_due, dues, strict=True) if due.deadline_at == pick.deadline_at)
        for n in range(pick.most):
            batch.waits[n] = (0, batch.due_s)


def missed(seed: int, rule: str) -> set[int]:
    """Play one pool by `turns`, `first` (always by deadline) or `chore`; the numbers of batches that ended late."""
    rng = random.Random(seed)
    workers = rng.choice([1, 2, 4, 8])
    batches = some_batches(rng, workers)
    coming = sorted(batches, key=lambda b: b.at_s)
    free_s = [0.0] * workers
    now_s = tick_s = 0.0
    while coming or any(b.waits for b in batches):
        while coming and coming[0].at_s <= now_s:
            coming.pop(0).rank(workers, first=rule == "first")
        for batch in batches:
            batch.running = [end for end in batch.running if end > now_s]
        if rule == "chore" and now_s >= tick_s:
            move(batches, now_s, workers)
            tick_s = now_s + EVERY_S
        for n in range(workers):
            waiting = [b for b in batches if b.waits]
            if free_s[n] <= now_s and waiting:
                batch = min(waiting, key=lambda b: b.waits[0])
                batch.waits.popleft()
                free_s[n] = now_s + batch.slice_s * rng.uniform(0.9, 1.1)
                batch.running.append(free_s[n])
                batch.ended_s = max(free_s[n], 0.0 if batch.ended_s == math.inf else batch.ended_s)
        nexts = [s for s in free_s if s > now_s] + [b.at_s for b in coming]
        now_s = min([*nexts, *([tick_s] if rule == "chore" and nexts else [])])
    return {n for n, b in enumerate(batches) if b.ended_s > b.due_s}


def test_law_deadlines_that_can_be_met_by_going_first_are_met():
    """Of a hundred random pools; by turns, many of them are missed."""
    by_turns = by_chore = 0
    for seed in range(POOLS):
        hopeless = missed(seed, "first")
        by_turns += len(missed(seed, "turns") - hopeless)
        by_chore += len(missed(seed, "chore") - hopeless)
    assert by_chore == 0
    assert by_turns > POOLS / 5
