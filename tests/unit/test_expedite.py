"""When batches stop taking turns: `scheduler.chores.expedite.urgent` and `first_of`, which decide it, are pure."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batchline.store.expedite_contract import Due
from scheduler.chores.expedite import SHARE, first_of, urgent

NOW = datetime(2026, 11, 22, tzinfo=UTC)
HOUR = 3600.0


def due(
    left_s: float, work_s: float, *, slices: int = 1000, queued: int | None = None, workers: int = 2, busy_s: float = 0
) -> Due:
    """Work of so many worker-seconds at 1000 rows/s, due in so many seconds."""
    ready = slices if queued is None else queued
    return Due("cpu", 1, NOW + timedelta(seconds=left_s), int(work_s * 1000), slices, ready, workers, 1000.0, busy_s)


def test_ten_hours_of_work_due_in_six_are_urgent_for_two_workers_and_not_for_four():
    """Two do twelve until then, so none may be lost on others; four do twenty-four, so turns will do."""
    assert urgent([due(6 * HOUR, 10 * HOUR)], NOW)
    assert not urgent([due(6 * HOUR, 10 * HOUR, workers=4)], NOW)


def test_a_window_of_a_day_is_not_urgent_while_half_of_the_pool_can_do_it():
    """Requests have 24 h: batches of them take turns with all others as long as there is slack."""
    day = [due(24 * HOUR - n, 2 * HOUR) for n in range(11, -1, -1)]
    assert not urgent(day[:11], NOW)
    assert len(urgent(day, NOW)) == 12


def test_what_is_due_before_a_near_deadline_is_urgent_with_it_and_what_comes_after_is_not():
    """The work of a deadline is all that is due until then."""
    dues = [due(2 * HOUR, HOUR), due(3 * HOUR, 2.5 * HOUR), due(30 * HOUR, HOUR)]
    assert not urgent(dues[:1], NOW)
    assert urgent(dues, NOW) == dues[:2]


def test_a_slice_is_done_by_one_worker_however_many_there_are():
    """Ten workers do not make one slice of an hour that is due in two any shorter."""
    assert urgent([due(2 * HOUR, HOUR, slices=1, workers=10)], NOW)
    assert not urgent([due(2 * HOUR, HOUR, slices=10, workers=10)], NOW)


def test_a_slice_is_moved_while_it_can_still_wait_for_another_one():
    """At worst a tick, a look at the queue and the longest slice of the pool pass before it begins."""
    for busy_s in (0, 300):
        last = next(s for s in range(1000, 0, -1) if urgent([due(s, 100, slices=1, busy_s=busy_s)], NOW))
        assert last >= 5 + 10 + max(100, busy_s) + 100


@pytest.mark.parametrize("changed", [{"workers": 0}, {"rows_per_s": 0.0}])
def test_without_a_worker_or_a_speed_there_is_an_answer_all_the_same(changed):
    """As for one worker, and for a thousand rows/s."""
    assert urgent([replace(due(2 * HOUR, HOUR + 1, workers=1), **changed)], NOW)
    assert not urgent([replace(due(3 * HOUR, HOUR, workers=1), **changed)], NOW)


def test_deadlines_that_have_passed_and_work_that_is_done_press_nobody():
    """The first expire; neither adds to what is due later."""
    past, done = due(-1, 100 * HOUR), due(60, 0, slices=0)
    assert not urgent([past, done, due(24 * HOUR, HOUR)], NOW)


def test_law_more_work_less_time_fewer_workers_are_never_less_urgent():
    """For 300 random queues; and what is urgent is a beginning of the dues."""
    rng = random.Random(7)
    for _ in range(300):
        left = sorted(rng.uniform(60, 24 * HOUR) for _ in range(rng.randint(1, 5)))
        workers = rng.randint(1, 20)
        dues = [due(s, rng.uniform(1, 20 * HOUR), slices=rng.randint(1, 100), workers=workers) for s in left]
        found = len(urgent(dues, NOW))
        assert urgent(dues, NOW) == dues[:found]
        assert found <= len(urgent([replace(d, rows=d.rows * 2) for d in dues], NOW))
        assert found <= len(urgent([replace(d, workers=max(1, workers // 2)) for d in dues], NOW))
        assert found <= len(urgent(dues, NOW + timedelta(seconds=30)))
        assert found <= len(urgent(dues, NOW, share=SHARE / 2))


def test_so_many_slices_are_moved_as_last_the_pool_for_two_ticks_in_order_of_deadlines():
    """Two a worker at least, twenty at most; of those that can be claimed."""

    def moved(*dues: Due) -> list[int]:
        return [pick.most for pick in first_of(dues)]

    assert moved(due(60, 1000 * 100, slices=1000)) == [2 * 2]
    assert moved(due(60, 1000 * 2, slices=1000)) == [2 * 5]
    assert moved(due(60, 1, slices=1000)) == [2 * 20]
    assert moved(due(60, 300, slices=3, queued=1), due(70, 700, slices=7), due(80, 900, slices=9)) == [1, 3]
    assert moved(due(60, 100, slices=1, queued=0)) == []
    assert moved(due(60, 1e7, slices=100_000, workers=100_000)) == [10_000]
    assert first_of([]) == []
