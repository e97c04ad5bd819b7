"""Ours: the fewest workers that finish every row in time, and none that would idle.

Two questions are asked at each look, of a fluid queue: cumulative work due against cumulative work that can be served.
Work is worker-seconds, a row's by the measured speed of its model; a live worker serves one a second.

Too late? Every online row is due `aim` after it arrived, every batch a margin before its deadline. With n live workers,
pending ones that come at s_j, and Q(h) worker-seconds due within h from now (backlog and forecast arrivals),

    extra = max over h of (Q(h) - n h - sum_j (h - s_j)+) / (h - start),     h > start

workers launched now, which serve from `start` on, are the fewest that make every row on time.

Idle? n workers serve n L within L, the break-even time: keeping an idle worker that long costs what a new one costs
before it serves. If backlog and arrivals within L are less than that, the workers in excess would idle; they are given
up, as many as are not needed for any Q(h).

Between "too late" and "idle" nothing is changed: the target wait itself is the hysteresis. Nothing is given up within a
break-even time of the last launch, so that within any such time direction changes at most twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.policies import forecast
from autoscaler.signals import Decision, Facts, Signals

_EPSILON = 1e-6
_Due = tuple[float, float, str]


@dataclass(frozen=True, slots=True)
class DrainTime:
    """Rows wait at most `target_wait_s`, at p95; deadlines are met; worker-hours are as few as that allows."""

    target_wait_s: float = 60.0
    aim: float = 0.8
    """The share of the target that is planned for; the rest is for what no forecast knows."""
    fast_s: float = 20.0
    """Arrivals are averaged over this to notice a change."""
    slow_s: float = 300.0
    """And over this to say what comes until a deadline, hours ahead."""
    catch_up_s: float = 10.0
    """Rows due before a launched worker could serve are done within this time after it does."""
    bulk_wait_s: float = 3600.0
    """Batches without a deadline, and those that no launch can save, are done within this time."""
    name: str = "drain_time"

    @property
    def remembers_s(self) -> float:
        return max(10 * self.target_wait_s, 2 * self.slow_s, 900.0)

    def decide(self, history: Sequence[Signals], facts: Facts, now: float) -> Decision:
        seen = history[-1]
        if seen.rows_per_s <= 0:
            return self._unmeasured(seen)
        pool = _Pool(seen.workers, forecast.pending(history, facts, now), facts)
        due = self._due(history, facts, now)
        extra, why = self._extra(due, pool)
        if extra > 0:
            return Decision(seen.total + extra, why)
        if not seen.total and seen.queued_rows >= 1:
            return Decision(1, f"{seen.queued_rows:.0f} rows queued and nobody there")
        return self._fewer(history, now, due + self._at_hand(seen, facts), pool)

    @staticmethod
    def _unmeasured(seen: Signals) -> Decision:
        if seen.queued_rows + seen.running_rows <= 0:
            return Decision(0, "nothing to do")
        return Decision(max(1, seen.total), "nothing is measured yet: one worker shows how fast it is")

    def _due(self, history: Sequence[Signals], facts: Facts, now: float) -> list[_Due]:
        """Q(h): (seconds from now, all work due until then, what it is), by h within online and within bulk work."""
        aim = self.aim * self.target_wait_s
        soon, later = forecast.rate(history, now, self.fast_s), forecast.rate(history, now, self.slow_s)
        found, work_s = list[_Due](), 0.0
        for age, part_s in forecast.backlog(history, now):
            work_s += part_s
            found.append((aim - age, work_s, "queued rows"))
        horizon = aim + facts.start_s + self.catch_up_s
        for k in range(1, 9):
            h = k * horizon / 8
            found.append((aim + h, work_s + soon * h, "arriving rows"))
        online = history[-1].online_work_s
        margin = facts.start_s + self.target_wait_s
        for demand in history[-1].demands:
            if demand.due_s > facts.start_s + self.catch_up_s:
                h = max(demand.due_s - margin, 0.75 * demand.due_s)
                found.append((h, online + later * h + demand.work_s, f"rows due in {demand.due_s:.0f} s"))
        if history[-1].bulk_rows > 0:
            h = max(self.bulk_wait_s, *(demand.due_s for demand in history[-1].demands[-1:]), 2 * margin)
            found.append((h, online + later * h + history[-1].bulk_work_s, "rows of batches"))
            found += self._undated(history[-1], online, later, margin)
        return found

    def _undated(self, seen: Signals, online: float, later: float, margin: float) -> list[_Due]:
        """Batches without a deadline beside those that have one: neither may wait for the other's time.

        What runs counts in demands and not as queued. It may all have deadlines, so so much of them is not taken off.
        """
        if not seen.demands:
            return []
        work_s = seen.bulk_work_s - max(0.0, seen.demands[-1].work_s - seen.running_work_s)
        if work_s <= 0:
            return []
        h = max(self.bulk_wait_s, 2 * margin)
        sooner = max((demand.work_s for demand in seen.demands if demand.due_s <= h), default=0.0)
        return [(h, online + later * h + sooner + work_s, "rows of batches, those without a deadline included")]

    def _at_hand(self, seen: Signals, facts: Facts) -> list[_Due]:
        """Batches that are due before a launch could help: those who are there are needed the more."""
        latest = facts.start_s + self.catch_up_s
        return [(d.due_s, seen.online_work_s + d.work_s, "") for d in seen.demands if 0 < d.due_s <= latest]

    def _extra(self, due: list[_Due], pool: _Pool) -> tuple[int, str]:
        """The fewest workers to launch now that make everything on time, and what asks for them."""
        most, why = 0.0, ""
        for due_s, work_s, what in due:
            h = max(due_s, pool.facts.start_s + self.catch_up_s)
            served_s = pool.workers * h + pool.by_pending(h)
            extra = (work_s - served_s) / (h - pool.facts.start_s)
            if extra > most:
                can = f"{served_s:.0f} can be served within {h:.0f} s"
                most, why = extra, f"{_figure(work_s)} worker-seconds of {what}, {can}"
        return math.ceil(most - _EPSILON), why

    def _fewer(self, history: Sequence[Signals], now: float, due: list[_Due], pool: _Pool) -> Decision:
        """Give up the workers that would idle, if there are any."""
        seen = history[-1]
        span = max(pool.facts.start_s, pool.facts.billing_s)
        work_s = seen.queued_work_s + seen.running_work_s + forecast.rate(history, now, span) * span
        busy = max(pool.needed(span, work_s), int(seen.queued_rows + seen.running_rows >= 1))
        if busy >= seen.workers:
            return Decision(seen.total, "all are busy and everything is on time")
        if (since := forecast.since_rise(history, now)) < span:
            return Decision(seen.total, f"nothing is given up {since:.0f} s after a launch, {span:.0f} s must pass")
        keep = min(seen.workers, max(busy, max((pool.needed(h, n) for h, n, _ in due), default=0)))
        if keep == seen.workers:
            return Decision(seen.total, "everything is on time, barely")
        why = f"{_figure(work_s)} worker-seconds of work within {span:.0f} s keep {keep} workers busy"
        return Decision(keep + seen.pending, why)


@dataclass(frozen=True, slots=True)
class _Pool:
    """What serves: live workers, and pending ones as (seconds until they serve, workers)."""

    workers: int
    coming: list[tuple[float, int]]
    facts: Facts

    def by_pending(self, h: float) -> float:
        """Worker-seconds that pending workers serve within h."""
        return sum(n * max(0.0, h - s) for s, n in self.coming)

    def needed(self, h: float, work_s: float) -> int:
        """Live workers that serve this work within h."""
        h = max(h, 1.0)
        return max(0, math.ceil((work_s - self.by_pending(h)) / h - _EPSILON))


def _figure(work_s: float) -> str:
    return f"{work_s:.0f}" if work_s >= 10 else f"{work_s:.2g}"
