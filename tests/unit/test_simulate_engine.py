"""The simulation keeps its books: rows, waits, workers and money."""

import math

import numpy as np
import pytest

from autoscaler.policies import DrainTime, QueueRule
from autoscaler.signals import Decision, Limits
from autoscaler.simulate.engine import Simulation, simulate, wait_quantiles
from autoscaler.simulate.fleet import Fleet, World
from autoscaler.simulate.trace import SHAPES, Batch, Trace

WORLD = World(rows_per_s=10.0, start_s=60.0, billing_s=60.0, drain_s=0.0, price_per_hour=1.0)
FREE = Limits(max_workers=100)


class Always:
    """A policy that wants the same number all the time."""

    name, remembers_s = "always", 0.0

    def __init__(self, workers):
        self.workers = workers

    def decide(self, history, facts, now):
        return Decision(self.workers, "always")


def steady(rows_per_s, minutes, batches=()):
    return Trace("steady", 5.0, np.full(12 * minutes, 5.0 * rows_per_s), tuple(batches))


def test_waits_are_read_off_the_cumulative_curves():
    """Every row leaves three steps after it came: all wait as long; if half never leave, p95 is infinite."""
    arrived = np.minimum(np.arange(1, 21), 10.0)
    done = np.clip(np.arange(1, 21) - 3.0, 0, 10)
    assert wait_quantiles(arrived, done, 5.0, (0.01, 0.5, 0.99)) == pytest.approx((15, 15, 15))
    assert wait_quantiles(arrived, np.minimum(done, 5.0), 5.0, (0.25, 0.95)) == pytest.approx((15, math.inf))
    assert wait_quantiles(np.zeros(3), np.zeros(3), 5.0, (0.5,)) == (0.0,)


def test_no_row_waits_less_than_a_start_and_none_is_lost():
    """From nothing, the first rows wait for a worker to start; in the end nothing is queued."""
    result = simulate(steady(50, 30), Always(10), FREE, WORLD)
    assert 30 <= result.wait_p99_s <= 75
    assert result.queue[-1] == pytest.approx(0, abs=1e-6)
    assert result.peak == result.live.max() == 10
    assert result.worker_hours >= 50 * 1800 / 10 / 3600


def test_too_few_workers_keep_rows_waiting_as_long_as_arithmetic_says():
    """20 rows/s for 10 minutes, 10 rows/s done: the last row waits for about as long as rows came."""
    result = simulate(steady(20, 10), Always(1), FREE, WORLD)
    assert result.wait_p99_s == pytest.approx(600 + 70, rel=0.03)
    assert result.wait_p50_s == pytest.approx(300 + 70, rel=0.03)


def test_a_worker_costs_its_minimum_and_no_more_than_its_life():
    """Stopped after 20 s it costs 60; after 100 s, 100."""
    fleet = Fleet(WORLD)
    fleet.set(2, 0.0)
    fleet.set(1, 20.0)
    assert fleet.paid_s == 60.0
    fleet.step(60.0, 5.0)
    assert (fleet.live, fleet.pending) == (1, 0)
    fleet.set(0, 100.0)
    assert fleet.paid_s == fleet.worker_s(500.0) == 160.0


def test_batches_are_late_when_they_are_late():
    """10 rows/s do 3,600 rows in six minutes after the start: in time for ten minutes, not for five."""
    for due_s, missed in ((600.0, 0), (300.0, 1)):
        trace = Trace("batch", 5.0, np.zeros(240), (Batch(0.0, 3600, due_s),))
        result = simulate(trace, Always(1), FREE, WORLD)
        assert result.missed == missed
        assert (result.late_rows > 0) == bool(missed)


def test_the_online_lane_goes_first():
    """A large batch makes no online row wait."""
    batch = Batch(600.0, 10_000, 7200.0)
    alone, beside = (simulate(steady(50, 60, more), Always(8), FREE, WORLD) for more in ((), (batch,)))
    assert beside.wait_p99_s == pytest.approx(alone.wait_p99_s)


def test_what_spot_takes_is_launched_again_and_refused_launches_are_tried_again():
    """Interrupted and refused workers cost time, never rows; the same seed gives the same run."""
    world = World(10.0, 60.0, 60.0, interruptions_per_hour=2.0, capacity_errors=0.3, seed=7)
    first, second = (simulate(steady(100, 120), DrainTime(), FREE, world) for _ in range(2))
    assert first.interrupted > 5
    assert first.refused > 5
    assert first.queue[-1] == pytest.approx(0, abs=1e-6)
    assert (first.worker_hours, first.launches, first.wait_p95_s) == (
        second.worker_hours, second.launches, second.wait_p95_s
    )  # fmt: skip


def test_limits_hold_in_every_step():
    """The guards of the real thing: maximum, launches an hour, budget of a day."""
    trace = SHAPES["flash"](200.0, 3)
    limits = Limits(min_workers=1, max_workers=12, max_launches_per_hour=6, budget_per_day=40.0)
    result = simulate(trace, QueueRule(rows_per_worker=100), limits, WORLD)
    there = result.live + result.pending
    assert there.max() <= 12
    assert result.launches <= 6 * 25
    spent = result.spent[int(86_400 / 5) - 2]
    assert spent <= 40.0 + 12 * 60 / 3600


def test_a_run_that_costs_more_than_asked_for_is_given_up():
    """A search need not finish what is already worse than its best."""
    assert Simulation(steady(50, 30), Always(50), FREE, WORLD).run(within_hours=2.0) is None
    late = simulate(steady(50, 30), Always(6), FREE, WORLD)
    for wait_s, whole in ((late.wait_p95_s - 20, False), (late.wait_p95_s + 20, True)):
        found = Simulation(steady(50, 30), Always(6), FREE, WORLD).run(wait_p95_s=wait_s)
        assert (found is not None) == whole


@pytest.mark.parametrize("shape", SHAPES)
def test_drain_time_keeps_its_promise_on_every_shape(shape):
    """p95 within the target, no deadline missed, hardly a worker-second wasted."""
    world = World()
    trace = SHAPES[shape](1000.0, 1)
    result = simulate(trace, DrainTime(target_wait_s=60), FREE, world)
    assert result.wait_p95_s <= 60
    assert result.missed == 0
    assert result.worker_hours <= 1.3 * trace.rows / world.rows_per_s / 3600
