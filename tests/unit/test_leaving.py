"""How a worker leaves: what it holds has a time to finish, and there is an end in any case."""

from __future__ import annotations

import os
import threading
import time
import uuid
from typing import Any

import pytest

from batchline.errors import StoreUnavailableError
from batchline.job import ClaimedJob, new_job_id
from workers import leaving
from workers.leaving import Leave, give_back
from workers.turns import Turns


def a_job() -> ClaimedJob:
    return ClaimedJob(new_job_id(), 1, 1, 1, 0, 1, suspect=False, queued_ms=0.0, payload=b"")


@pytest.fixture
def leave() -> Leave:
    return Leave()


def test_without_time_all_is_given_back_at_once(leave: Leave) -> None:
    """SIGTERM."""
    leave.begin("SIGTERM")
    assert (leave.closing.is_set(), leave.draining.is_set(), leave.left_s) == (True, True, 0.0)


def test_with_time_nothing_is_claimed_and_nothing_given_back(leave: Leave) -> None:
    """A spot notice."""
    leave.begin("spot", 60.0)
    assert (leave.closing.is_set(), leave.draining.is_set()) == (True, False)
    assert 59 < leave.left_s <= 60


def test_who_asks_again_can_only_shorten_the_time(leave: Leave) -> None:
    """A drain of half a minute comes after a notice of two, and not the other way round; SIGTERM outranks both."""
    leave.begin("spot", 100.0)
    leave.begin("drain", 30.0)
    assert (leave.reason, leave.left_s <= 30) == ("drain", True)
    leave.begin("spot", 100.0)
    assert (leave.reason, leave.left_s <= 30) == ("drain", True)
    leave.begin("SIGTERM")
    assert (leave.reason, leave.left_s, leave.draining.is_set()) == ("SIGTERM", 0.0, True)


def test_with_empty_hands_nobody_waits(leave: Leave) -> None:
    leave.begin("spot", 60.0)
    began = time.monotonic()
    leave.let_finish(Turns())
    assert leave.draining.is_set()
    assert time.monotonic() - began < 30


def test_what_is_in_hand_goes_on_until_the_time_is_up(leave: Leave) -> None:
    """Then the rest is given back, by whoever has it in hand."""
    turns = Turns()
    with turns.hold([a_job()]):
        leave.begin("spot", 0.3)
        began = time.monotonic()
        leave.let_finish(turns)
        assert time.monotonic() - began >= 0.3
    assert leave.draining.is_set()


def test_less_time_while_waiting_is_noticed(leave: Leave) -> None:
    """SIGTERM comes while a slice is being finished."""
    turns = Turns()
    with turns.hold([a_job()]):
        leave.begin("spot", 600.0)
        thread = threading.Thread(target=leave.let_finish, args=(turns,), daemon=True)
        thread.start()
        leave.begin("SIGTERM")
        thread.join(20)
        assert not thread.is_alive()


def test_a_signal_that_interrupts_the_handler_of_another_does_not_wait_for_it(leave: Leave) -> None:
    """SIGTERM twice within a moment: both are heeded, whatever lock the first one held; the events' own, even."""
    threading.Thread(target=leave.heed, daemon=True).start()
    with leave.closing._cond, leave.draining._cond:
        leave.ask("SIGTERM")
        leave.ask("SIGTERM")
    assert leave.draining.wait(20)
    assert leave.closing.wait(20)
    assert (leave.reason, leave.left_s) == ("SIGTERM", 0.0)


def test_the_time_is_up_also_while_postgres_is_still_being_told(leave: Leave) -> None:
    """Giving back does not wait for the note of the drain, which a slow Postgres takes half a minute for."""
    turns, told = Turns(), threading.Event()
    with turns.hold([a_job()]):
        way_out = {"note": told.wait, "stop": lambda: None, "give_back_s": 600.0}
        threading.Thread(target=leave.see_out, args=(turns,), kwargs=way_out, daemon=True).start()
        leave.begin("spot", 0.1)
        assert leave.draining.wait(20)
    told.set()


def test_the_way_out_is_noted_first_and_ends_the_process_if_nothing_else_does(
    leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres knows before nudges stop; a thread that gives nothing back keeps nobody alive."""
    steps: list[object] = []
    monkeypatch.setattr(os, "_exit", steps.append)
    turns = Turns()
    with turns.hold([a_job()]):
        out = threading.Thread(
            target=lambda: leave.see_out(
                turns, note=lambda: steps.append("noted"), stop=lambda: steps.append("stopped"), give_back_s=0.05
            ),
            daemon=True,
        )
        out.start()
        assert steps == []
        leave.begin("spot", 0.1)
        out.join(20)
    assert steps == ["noted", "stopped", 1]


class Away:
    """Postgres, away for the first so many questions."""

    def __init__(self, questions: float) -> None:
        self.left = questions
        self.given: list[Any] = []

    def give_back(self, worker_id: uuid.UUID, jobs: Any) -> set[uuid.UUID]:
        self.left -= 1
        if self.left >= 0:
            raise StoreUnavailableError("away")
        self.given += jobs
        return {job.id for job in jobs}


def test_a_postgres_that_restarts_takes_back_what_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the slice would wait for the lease of a worker that has left; who stays away is not asked for ever."""
    job, claims = a_job(), Away(3)
    give_back(claims, uuid.uuid4(), [job])
    assert claims.given == [job]
    monkeypatch.setattr(leaving, "_INSIST_S", 0.2)
    with pytest.raises(StoreUnavailableError):
        give_back(Away(float("inf")), uuid.uuid4(), [job])
