"""The scheduler's loop: who leads, what is due, what a failing chore may not do."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from batchline.clock import FakeClock
from batchline.errors import StoreUnavailableError
from scheduler.chore import Chore
from scheduler.leader import Leader


class LeaseRow:
    """The lease row as one value: grants, refuses or cannot be asked."""

    def __init__(self):
        self.answer: float | Exception | None = 0.0
        self.resigned = False

    def lead(self, name, holder, *, lease_s):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def resign(self, name, holder):
        self.resigned = True


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def row():
    return LeaseRow()


def make(row, clock, *chores):
    return Leader(SimpleNamespace(workers=row), chores, clock, lease_s=9.0, worker_lease_s=30.0)


def test_without_the_lease_no_chore_runs(row, clock):
    """A process that is refused the lease only asks again."""
    runs = []
    row.answer = None
    leader = make(row, clock, Chore("a", 1.0, lambda: runs.append(1) or 0))
    assert leader.tick() == 3.0
    assert not runs


def test_a_chore_runs_in_its_rhythm(row, clock):
    """Once per `every_s`, however often the loop turns."""
    runs = []
    leader = make(row, clock, Chore("a", 1.0, lambda: runs.append(1) or 0))
    for _ in range(10):
        leader.tick()
        clock.advance(0.5)
    assert len(runs) == 5


def test_a_full_portion_runs_again_at_once(row, clock):
    """A backlog does not wait for the rhythm."""
    moved = [10, 10, 3, 0]
    leader = make(row, clock, Chore("a", 60.0, lambda: moved.pop(0), portion=10))
    waits = [leader.tick() for _ in range(3)]
    assert waits == [0.0, 0.0, 3.0]
    assert moved == [0]


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), RuntimeError("a bug")])
def test_a_failing_chore_stops_neither_itself_nor_its_neighbours(row, clock, error):
    """It is tried again in its rhythm."""
    runs = []

    def broken():
        runs.append("broken")
        raise error

    leader = make(row, clock, Chore("a", 1.0, broken), Chore("b", 1.0, lambda: runs.append("b") or 0))
    leader.tick()
    clock.advance(1.0)
    leader.tick()
    assert runs == ["broken", "b", "broken", "b"]


def test_after_a_gap_longer_than_a_lease_rescue_waits_one_lease(row, clock):
    """Nobody could renew while Postgres was away: workers get the time to finish what they hold."""
    runs = []
    leader = make(row, clock, Chore("rescue", 5.0, lambda: runs.append(clock.monotonic()) or 0, delay_after_gap_s=30.0))
    leader.tick()
    assert len(runs) == 1, "a fresh leader rescues at once"
    row.answer = StoreUnavailableError("away")
    for _ in range(20):
        clock.advance(3.0)
        leader.tick()
    row.answer = 0.0
    runs.clear()
    back_at = clock.monotonic() + 3.0
    for _ in range(20):
        clock.advance(3.0)
        leader.tick()
    assert runs[0] >= back_at + 30.0


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), LookupError("no such table")])
def test_who_cannot_ask_for_the_lease_asks_again(row, clock, error):
    """Whatever the reason: a database may be restored beneath a process that runs."""
    runs = []
    leader = make(row, clock, Chore("a", 1.0, lambda: runs.append(1) or 0))
    row.answer = error
    clock.advance(leader.tick())
    assert not leader.leads()
    row.answer = 0.0
    leader.tick()
    assert runs == [1]


def test_stopping_gives_the_lease_back(row, clock):
    """The next leader need not wait for it to run out."""
    stop = threading.Event()
    leader = make(row, clock, Chore("a", 1.0, lambda: stop.set() or 0))
    leader.run(stop)
    assert row.resigned
