"""The simulation: a fluid queue in small steps, discrete workers, the very policies and guards that run for real.

Rows flow; workers are counted one by one. Each lane is first in, first out (batches: earliest deadline first), the
online lane goes first. Waits are read off the cumulative curves of arrivals and departures, weighted by rows.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from autoscaler.guards import guard
from autoscaler.policies.contract import Policy
from autoscaler.signals import Demand, Facts, Limits, Signals, Spent, of_one_speed
from autoscaler.simulate.fleet import Fleet, World
from autoscaler.simulate.trace import DAY_S, Floats, Trace

_TAIL_S = 3600.0
"""After the trace, rows that are left may still be done within this time."""
_LITTLE = 1e-6
"""Less of a row than this is none."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a simulation found.

    Attributes:
        trace: its name.
        policy: its name.
        wait_p50_s: of online rows, in the queue; likewise p95 and p99. A row never done waits for ever.
        late_rows: of batches, not done at their deadline.
        missed: batches with late rows.
        worker_hours: paid, from launch to stop, billing minimum included.
        cost: in the currency of the price.
        launches: workers that were launched.
        peak: most workers at once, pending ones included.
        turns: changes of direction of what was wanted.
        queue: [S] rows queued at the end of each step, both lanes.
        live: [S] workers that serve; likewise pending.
        spent: [S] cost until the end of each step.
        step_s: length of a step.
    """

    trace: str
    policy: str
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    late_rows: float
    missed: int
    worker_hours: float
    cost: float
    launches: int
    interrupted: int
    refused: int
    peak: int
    turns: int
    queue: Floats
    live: Floats
    pending: Floats
    spent: Floats
    step_s: float


@dataclass(slots=True)
class _Curves:
    arrived: list[float] = field(default_factory=list[float])
    done: list[float] = field(default_factory=list[float])
    queue: list[float] = field(default_factory=list[float])
    live: list[float] = field(default_factory=list[float])
    pending: list[float] = field(default_factory=list[float])
    worker_s: list[float] = field(default_factory=list[float])


class Simulation:
    """One trace, one policy, one world."""

    def __init__(self, trace: Trace, policy: Policy, limits: Limits, world: World, every_s: float = 10.0) -> None:
        self._trace = trace
        self._policy = policy
        self._limits = limits
        self._world = world
        self._every = max(1, round(every_s / trace.step_s))
        self._facts = Facts(world.start_s, world.billing_s, world.price_per_hour)
        self._fleet = Fleet(world)
        self._curves = _Curves()
        self._bulk: list[tuple[float, int]] = []  # (due, number), earliest due first
        self._left = [b.rows for b in trace.batches]
        self._late = [0.0] * len(trace.batches)
        self._history: list[Signals] = []
        self._launched: deque[tuple[float, int]] = deque()
        self._midnight_s = 0.0
        self._oldest = 0
        self._measured = 0.0
        self._running = 0.0
        self._bulk_done = 0.0
        self._turns = self._direction = self._peak = 0

    def run(self, within_hours: float = math.inf, wait_p95_s: float = math.inf) -> Result | None:
        """Play the trace to its end and until nothing is left.

        Returns:
            None as soon as more worker-hours than that are paid, or the p95 of the wait is certainly above that.
        """
        step_s, online = self._trace.step_s, self._trace.online.tolist()
        batches = deque(sorted(range(len(self._left)), key=lambda n: self._trace.batches[n].at_s))
        arrived = done = now = waited = 0.0
        may_wait = 0.05 * sum(online) if wait_p95_s < math.inf else math.inf
        ago = int(wait_p95_s / step_s) if wait_p95_s < math.inf else 0
        for step in range(len(online) + int(_TAIL_S / step_s)):
            if step >= len(online) and done >= arrived - _LITTLE and not self._bulk:
                break
            now = (step + 1) * step_s
            arrived += online[step] if step < len(online) else 0.0
            while batches and self._trace.batches[batches[0]].at_s < now:
                n = batches.popleft()
                insort(self._bulk, (self._trace.batches[n].due_s, n))
            self._fleet.step(now - step_s, step_s)
            done = self._serve(arrived, done, now)
            self._note(arrived, done, now)
            if (step + 1) % self._every == 0:
                self._decide(arrived, done, now)
                if self._fleet.worker_s(now) > within_hours * 3600:
                    return None
            if 0 < ago < step:
                before, overdue = self._curves.arrived[step - ago - 1], self._curves.arrived[step - ago]
                waited += max(0.0, overdue - max(done, before))
                if waited > may_wait:
                    return None
        self._fleet.set(0, now)
        return self._result()

    def _serve(self, arrived: float, done: float, now: float) -> float:
        """Let the workers work for one step; returns online rows done so far."""
        rows = self._fleet.live * self._world.rows_per_s * self._trace.step_s
        first = min(rows, arrived - done)
        left = rows - first
        while self._bulk and left > 0:
            number = self._bulk[0][1]
            n = min(left, self._left[number])
            self._left[number] -= n
            self._bulk_done += n
            left -= n
            if self._left[number] <= _LITTLE:
                self._bulk.pop(0)
        for due, number in self._bulk:
            if due > now:
                break
            if not self._late[number]:
                self._late[number] = self._left[number]
        if rows > 0:
            self._measured = self._world.rows_per_s
        self._running = (rows - left) / self._trace.step_s  # a slice takes about a second
        return done + first

    def _note(self, arrived: float, done: float, now: float) -> None:
        curves, fleet = self._curves, self._fleet
        curves.arrived.append(arrived)
        curves.done.append(done)
        curves.queue.append(arrived - done + sum(self._left[n] for _, n in self._bulk))
        curves.live.append(fleet.live)
        curves.pending.append(fleet.pending)
        curves.worker_s.append(fleet.worker_s(now))

    def _look(self, arrived: float, done: float, now: float) -> Signals:
        curve = self._curves.arrived
        while self._oldest < len(curve) and curve[self._oldest] <= done + _LITTLE:
            self._oldest += 1
        demands, bulk = list[Demand](), 0.0
        for due, number in self._bulk:
            bulk += self._left[number]
            demands.append(Demand(due - now, bulk))
        seen = Signals(
            at=now,
            queued_rows=arrived - done + bulk,
            bulk_rows=bulk,
            running_rows=self._running,
            oldest_age_s=now - self._oldest * self._trace.step_s if self._oldest < len(curve) else 0.0,
            arrived_rows=arrived,
            done_rows=done + self._bulk_done,
            workers=self._fleet.live,
            pending=self._fleet.pending,
            rows_per_s=self._measured,
            demands=tuple(demands),
        )
        return of_one_speed(seen, self._world.rows_per_s)

    def _decide(self, arrived: float, done: float, now: float) -> None:
        seen = self._look(arrived, done, now)
        self._history.append(seen)
        if len(self._history) > 2 * self._policy.remembers_s / (self._every * self._trace.step_s) + 10:
            del self._history[: len(self._history) // 2]
        wanted = self._policy.decide(self._history, self._facts, now)
        allowed = guard(wanted, seen, self._limits, self._facts, self._spent(now))
        change = allowed.desired - seen.total
        if change and (change > 0) != (self._direction > 0):
            self._turns += self._direction != 0
            self._direction = 1 if change > 0 else -1
        if launched := self._fleet.set(allowed.desired, now):
            self._launched.append((now, launched))
        self._peak = max(self._peak, self._fleet.live + self._fleet.pending)

    def _spent(self, now: float) -> Spent:
        if self._limits.max_launches_per_hour is None and self._limits.budget_per_day is None:
            return Spent()
        while self._launched and self._launched[0][0] <= now - 3600:
            self._launched.popleft()
        if now % DAY_S < self._every * self._trace.step_s:
            self._midnight_s = self._fleet.worker_s(now)
        today = (self._fleet.worker_s(now) - self._midnight_s) / 3600 * self._world.price_per_hour
        return Spent(sum(n for _, n in self._launched), today)

    def _result(self) -> Result:
        curves, fleet, world = self._curves, self._fleet, self._world
        waits = wait_quantiles(np.array(curves.arrived), np.array(curves.done), self._trace.step_s, (0.5, 0.95, 0.99))
        late = [late or (left if left > _LITTLE else 0.0) for late, left in zip(self._late, self._left, strict=True)]
        hours = fleet.paid_s / 3600
        return Result(
            trace=self._trace.name,
            policy=self._policy.name,
            wait_p50_s=waits[0],
            wait_p95_s=waits[1],
            wait_p99_s=waits[2],
            late_rows=sum(late),
            missed=sum(rows > 0 for rows in late),
            worker_hours=hours,
            cost=hours * world.price_per_hour,
            launches=fleet.launches,
            interrupted=fleet.interrupted,
            refused=fleet.refused,
            peak=self._peak,
            turns=self._turns,
            queue=np.array(curves.queue),
            live=np.array(curves.live),
            pending=np.array(curves.pending),
            spent=np.array(curves.worker_s) / 3600 * world.price_per_hour,
            step_s=self._trace.step_s,
        )


def wait_quantiles(arrived: Floats, done: Floats, step_s: float, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Quantiles of the rows' waits in a first in, first out queue.

    A row that is the y-th to arrive is the y-th to leave: it waits for done^-1(y) - arrived^-1(y). Both curves are
    linear between the ends of steps, so the wait is linear in y between their corners; each stretch counts with its
    rows.

    Args:
        arrived: [S] rows that have arrived until the end of each step.
        done: [S] rows that have left the queue until then.
        step_s: length of a step.
        shares: of the rows, each in 0..1.

    Returns:
        seconds, one for each share; infinite where rows never leave.
    """
    a, d = np.concatenate([[0.0], arrived]), np.concatenate([[0.0], done])
    times = np.arange(len(a)) * step_s
    corners = np.unique(np.concatenate([a, d]))
    rows = np.diff(corners)
    if not len(rows) or a[-1] <= 0:
        return tuple(0.0 for _ in shares)
    middle = corners[:-1] + rows / 2
    left = np.where(middle <= d[-1], np.interp(middle, d, times), np.inf)
    waits = np.maximum(left - np.interp(middle, a, times), 0.0)
    order = np.argsort(waits)
    reached = np.cumsum(rows[order]) / rows.sum()
    return tuple(float(waits[order[min(np.searchsorted(reached, share), len(order) - 1)]]) for share in shares)


def simulate(trace: Trace, policy: Policy, limits: Limits, world: World, every_s: float = 10.0) -> Result:
    """Play a trace under a policy.

    Args:
        trace: what arrives.
        policy: decides every `every_s`.
        limits: held by the guards.
        world: how fast workers are, how long they start, what they cost.
        every_s: between two decisions; a multiple of the trace's step.
    """
    result = Simulation(trace, policy, limits, world, every_s).run()
    if result is None:
        raise ValueError("a simulation without a limit of worker-hours has none to exceed")
    return result
