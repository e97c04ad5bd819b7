"""`workers.usage`: every second of a process belongs to somebody or is idle, and none to two."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.job import ClaimedJob, Lane
from batchline.store.cost_contract import Used
from workers.reporting import Reporter
from workers.turns import Turns
from workers.usage import Meter

BATCH = uuid.UUID(int=5)
HOUR = datetime(2026, 11, 22, 9, tzinfo=UTC)


class Time:
    """A clock that is moved by hand; the wall shows 09:30."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def wall(self):
        return HOUR.timestamp() + 1800 + self.now

    def meter(self):
        return Meter(self, self.wall)


def a_job(tenant=1, rows=1, model=1):
    return ClaimedJob(uuid.uuid4(), tenant, model, 1, 0, rows, False, 1.0, b"")


def seconds(meter):
    return {(u.hour, u.tenant_id, u.model_id, u.batch_id): pytest.approx(u.seconds) for u in meter.read()}


def test_time_is_shared_evenly_by_the_claims_in_hand_and_by_rows_within_one():
    """A slice beside a micro-batch of two tenants: half the time each, while both are in hand."""
    time = Time()
    meter = time.meter()
    time.now = 3.0
    online = meter.begin([a_job(1, rows=3), a_job(2, rows=1)])
    time.now = 5.0
    bulk = meter.begin([a_job(1, rows=1000)])
    meter.name(bulk, BATCH)
    time.now = 9.0
    assert meter.seconds(online) == pytest.approx(4.0)
    meter.end(online)
    time.now = 10.0
    expected = {(HOUR, 0, 0, None): 3.0, (HOUR, 1, 1, None): 3.0, (HOUR, 2, 1, None): 1.0, (HOUR, 1, 1, BATCH): 3.0}
    assert seconds(meter) == expected


def test_seconds_of_a_model_are_those_it_had_of_the_process_not_those_it_was_in_hand():
    """Two models that overlap share the time, so that rows/s times seconds of both make what the process did."""
    time = Time()
    meter = time.meter()
    fast = meter.begin([a_job(1, 10, model=1), a_job(2, 10, model=1)])
    slow = meter.begin([a_job(model=2)], Lane.BULK)
    time.now = 4.0
    assert meter.busy() == {(Lane.ONLINE, 1): 2.0, (Lane.BULK, 2): 2.0}
    meter.end(fast)
    time.now = 7.0
    meter.end(slow)
    assert meter.busy() == {(Lane.ONLINE, 1): 0.0, (Lane.BULK, 2): 3.0}
    time.now = 100.0
    assert meter.busy() == {}


def test_rows_are_counted_by_lane_and_model_since_the_last_look():
    """And with the seconds in which they were done; what was told once is not told again."""
    turns = Turns()
    with turns.hold([a_job(model=7)]), turns.hold([a_job(model=8)], Lane.BULK):
        turns.count(3, 7)
        turns.count(500, 8, Lane.BULK)
    worked = turns.worked()
    assert {key: rows for key, (rows, _) in worked.items()} == {(Lane.ONLINE, 7): 3, (Lane.BULK, 8): 500}
    assert all(seconds > 0 for _, seconds in worked.values())
    assert turns.worked() == {}


def test_sums_are_told_until_they_are_known_and_begin_anew_with_each_hour_and_name():
    """What has not been told goes on under the new name; nothing is told twice."""
    time = Time()
    meter = time.meter()
    hand = meter.begin([a_job()])
    time.now = 10.0
    first = meter.read()
    assert meter.read() == first == [Used(HOUR, 1, 1, None, 10.0)]
    meter.told(first)
    assert meter.read() == []
    time.now = 15.0
    meter.restart()
    assert meter.read() == [Used(HOUR, 1, 1, None, 5.0)]
    time.now = 1805.0
    meter.end(hand)
    later = meter.read()
    assert [(u.hour.hour, u.seconds) for u in later] == [(9, 5.0), (10, 1790.0)]
    meter.told(later)
    assert meter.read() == []
    assert {hour for hour, _ in meter._sums} == {later[1].hour.timestamp()}


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 2), st.integers(1, 50), st.booleans()), max_size=40))
def test_all_sums_make_the_time_that_has_passed(steps):
    """Whatever comes into hand and leaves it."""
    time = Time()
    meter, hands = time.meter(), []
    for passed, tenant, rows, ends in steps:
        time.now += passed
        if ends and hands:
            meter.end(hands.pop(rows % len(hands)))
        else:
            hands.append(meter.begin([a_job(tenant + 1, rows), a_job(1, 1)]))
    assert sum(u.seconds for u in meter.read()) == pytest.approx(time.now)


def test_the_reporter_repeats_what_did_not_arrive_and_outlives_any_failure():
    """A worker goes on without being accounted for; a new id gets only what is new."""

    class Refuses:
        down = True

        def __init__(self):
            self.got = {}

        def report(self, worker_id, used):
            if self.down:
                raise RuntimeError("no table")
            for u in used:
                self.got[worker_id, u.tenant_id] = u.seconds

    costs, turns = Refuses(), Turns()
    reporter = Reporter(costs, turns)
    old, new = uuid.uuid4(), uuid.uuid4()
    job = a_job(tenant=3, rows=10)
    with turns.hold([job], Lane.BULK):
        turns.belongs(job.id, BATCH)
        reporter.tell(old)
        costs.down = False
        reporter.tell(old)
        spent = turns.spent_s(job.id)
    reporter.tell(new)
    assert 0 < costs.got[old, 3] <= spent
    assert costs.got[old, 0] > 0
    assert costs.got[new, 3] < 1.0
    assert turns.spent_s(job.id) == 0.0


def test_a_job_that_is_in_hand_twice_is_counted_for_both():
    """Its lease ran out, and this very process claimed it again under a new id."""
    turns, job = Turns(), a_job()
    with turns.hold([job]), turns.hold([job]):
        assert turns.spent_s(job.id) >= 0
    assert {u.tenant_id for u in turns.used()} == {0, 1}
