"""Where a worker looks for work: floors by lane, and looks at the whole queue as rare as they are dear."""

from __future__ import annotations

import types
import uuid
from typing import Any

import pytest

from batchline.job import Lane
from batchline.store.contract import Claim, Head
from workers import claiming
from workers.claiming import Claimer

WORKER = uuid.uuid4()
MODEL: Any = types.SimpleNamespace(id=1, spec=types.SimpleNamespace(ref="m@1"))
NOW_US = 1_000_000_000


class Queues:
    """A store that notes the floors it was asked with; a look at the whole takes `whole_s` of the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.heads_of: dict[Lane, list[Head]] = {lane: [Head(1, NOW_US, False)] for lane in Lane}
        self.whole_s = 0.001
        self.floors: list[int] = []
        self.claimed_from: list[int] = []
        self.job: Any = types.SimpleNamespace(id=uuid.uuid4())

    def heads(self, pool, lane, *, floor=0):
        self.floors.append(floor)
        self.clock.now += 0.001 if floor else self.whole_s
        return [h for h in self.heads_of[lane] if h.rank >= floor]

    def claim(self, worker_id, model_id, lane, *, rows, floor=0):
        self.claimed_from.append(floor)
        found = [h for h in self.heads_of[lane] if h.rank >= floor]
        return Claim([self.job] if found else [], more=False, first_rank=found[0].rank if found else 0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(claiming, "time", clock)
    return clock


def looks(claimer: Claimer, queues: Queues, clock: Clock, seconds: float) -> int:
    """How many looks at the whole there are while a worker chooses every 0.1 s."""
    queues.floors.clear()
    until = clock.now + seconds
    while clock.now < until:
        claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
        clock.now += 0.1
    return queues.floors.count(0)


def test_the_whole_is_looked_at_twice_a_second(clock):
    """Jobs that come back have old ranks: none waits much longer than half a second behind newer ones."""
    queues = Queues(clock)
    claimer = Claimer(queues, "cpu", list)
    assert 15 <= looks(claimer, queues, clock, 10.0) <= 20


def test_dear_looks_at_the_whole_take_a_small_share_of_the_time(clock):
    """Under a held snapshot each reads all dead entries; a busy worker spends about 2 % on them."""
    queues = Queues(clock)
    queues.whole_s = 0.1
    claimer = Claimer(queues, "cpu", list)
    looks(claimer, queues, clock, 10.0)
    assert 1 <= looks(claimer, queues, clock, 50.0) <= 11


def test_one_slow_look_is_no_dear_look(clock):
    """The quicker of two counts: a hiccup of the machine must not hide old jobs for seconds."""
    queues = Queues(clock)
    claimer = Claimer(queues, "cpu", list)
    looks(claimer, queues, clock, 2.0)
    queues.whole_s = 1.0
    looks(claimer, queues, clock, 1.0)
    queues.whole_s = 0.001
    assert looks(claimer, queues, clock, 2.0) >= 3


@pytest.mark.parametrize(("lane", "whole_s"), [(lane, whole_s) for lane in Lane for whole_s in (0.001, 0.5, 3.0)])
def test_however_slow_postgres_is_an_idle_worker_finds_what_came_back_within_seconds(clock, lane, whole_s):
    """A slice given back, or rescued, keeps its old rank: below the floor only a look at the whole shows it."""
    queues = Queues(clock)
    queues.whole_s = whole_s
    claimer = Claimer(queues, "cpu", list)
    for _ in range(600):  # a minute of work at most: both of the last two looks took that long
        claimer.choose(WORKER, lane, lambda _: True, may_load=True)
        clock.now += 0.1
    queues.heads_of[lane] = []
    claimer.choose(WORKER, lane, lambda _: True, may_load=True)
    queues.heads_of[lane] = [Head(1, NOW_US // 2, False)]
    began = clock.now
    while claimer.choose(WORKER, lane, lambda _: True, may_load=True) is None:
        clock.now += 0.2
        assert clock.now - began < 60
    assert clock.now - began <= 2.5 + whole_s
    assert claimer.claim(WORKER, MODEL, lane, rows=1).jobs


def test_while_there_is_newer_work_what_came_back_waits_ten_seconds_at_most(clock):
    """However dear a look at the whole is."""
    queues = Queues(clock)
    queues.whole_s = 3.0
    claimer = Claimer(queues, "cpu", list)
    looks(claimer, queues, clock, 60.0)
    assert looks(claimer, queues, clock, 60.0) >= 4


def test_a_suspect_that_cannot_be_run_now_hides_no_normal_work(clock):
    """Its model is not loaded, and another one is being loaded: what came back of a loaded model is found at once."""
    queues = Queues(clock)
    suspect = Head(2, NOW_US, suspect=True)
    claimer = Claimer(queues, "cpu", list)
    claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
    clock.now += 0.1
    queues.heads_of[Lane.ONLINE] = [Head(1, NOW_US // 2, False), suspect]
    chosen = claimer.choose(WORKER, Lane.ONLINE, lambda model_id: model_id == 1, may_load=False)
    assert chosen == queues.heads_of[Lane.ONLINE][0]


def test_a_queue_that_looks_empty_is_looked_at_as_a_whole_at_once(clock):
    """A job with an old rank is found by the very nudge that tells of it."""
    queues = Queues(clock)
    claimer = Claimer(queues, "cpu", list)
    claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
    clock.now += 0.1
    queues.heads_of[Lane.ONLINE] = [Head(1, NOW_US // 2, False)]
    chosen = claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
    assert chosen is not None
    assert claimer.claim(WORKER, MODEL, Lane.ONLINE, rows=1).jobs


def test_a_claim_finds_every_head_that_was_seen(clock):
    """Its floor follows the claims upwards and the heads downwards."""
    queues = Queues(clock)
    claimer = Claimer(queues, "cpu", list)
    claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
    claimer.claim(WORKER, MODEL, Lane.ONLINE, rows=1)
    claimer.claim(WORKER, MODEL, Lane.ONLINE, rows=1)
    assert queues.claimed_from[-1] == NOW_US
    clock.now += 0.1
    queues.heads_of[Lane.ONLINE] = [Head(1, NOW_US - 1000, False)]
    claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
    assert claimer.claim(WORKER, MODEL, Lane.ONLINE, rows=1).jobs


def test_lanes_have_floors_of_their_own(clock):
    """Bulk ranks lie elsewhere than online ones."""
    queues = Queues(clock)
    queues.heads_of[Lane.BULK] = [Head(1, NOW_US // 4, False)]
    claimer = Claimer(queues, "cpu", list)
    for lane in Lane:
        assert claimer.choose(WORKER, lane, lambda _: True, may_load=True) == queues.heads_of[lane][0]
        assert claimer.claim(WORKER, MODEL, lane, rows=1).jobs


@pytest.mark.parametrize("pause_s", [0.01, 0.1])
def test_copies_that_wait_hide_nothing_that_is_submitted_after_them(clock, pause_s):
    """Copies for shadows rank an hour ahead: neither a floor up there nor a look that is still fresh hides the next
    client's job, or the nudge for it would bring a copy only."""
    queues = Queues(clock)
    copies = Head(2, NOW_US + 3_600_000_000, False)
    queues.heads_of[Lane.ONLINE] = [copies]
    claimer = Claimer(queues, "cpu", list)
    assert claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True) == copies
    clock.now += pause_s
    new = Head(1, int(clock.now * 1e6), False)
    queues.heads_of[Lane.ONLINE] = [new, copies]
    assert claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True) == new
    assert queues.floors.count(0) == 1


def test_an_old_look_hides_no_job_of_another_model(clock):
    """A claim of what the old look had shown would use up the nudge for it; it would wait for a look unasked."""
    queues = Queues(clock)
    claimer = Claimer(queues, "cpu", list)
    one, other = Head(1, NOW_US, False), Head(2, NOW_US + 1, False)
    queues.heads_of[Lane.ONLINE] = [one, other]
    claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
    clock.now += 0.1
    queues.heads_of[Lane.ONLINE] = [one]
    claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
    queues.heads_of[Lane.ONLINE] = [one, other]
    clock.now += 0.01
    claimer.choose(WORKER, Lane.ONLINE, lambda _: True, may_load=True)
    assert claimer.others_wait(Lane.ONLINE, 1)
