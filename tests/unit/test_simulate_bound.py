"""The clairvoyant lower bound is one: what can be known by hand, and below every policy."""

import numpy as np
import pytest

from autoscaler.policies import DrainTime, QueueRule
from autoscaler.signals import Limits
from autoscaler.simulate.engine import simulate
from autoscaler.simulate.fleet import World
from autoscaler.simulate.fluid import bound
from autoscaler.simulate.rivals import Keda
from autoscaler.simulate.trace import Batch, Trace

pytest.importorskip("scipy")
WORLD = World(rows_per_s=10.0, start_s=60.0, billing_s=60.0)


def test_a_steady_stream_needs_its_work_and_its_starts():
    """100 rows/s for an hour, 10 rows/s a worker: ten worker-hours of work, ten starts of a minute, no more."""
    trace = Trace("steady", 5.0, np.full(720, 500.0))
    found = bound(trace, WORLD, 120.0, 100)
    assert 10.0 < found.worker_hours <= 10.0 + 10 / 60
    assert found.late_rows == pytest.approx(0, abs=1e-3)


def test_a_pulse_needs_a_start_for_each_worker():
    """6,000 rows at once, to be served within two minutes, one of which is start: ten workers for two minutes.

    5 % of the rows may come later, and do when there is time: a little fewer workers, a little longer.
    """
    rows = np.zeros(720)
    rows[360] = 6000.0
    found = bound(Trace("pulse", 5.0, rows), WORLD, 120.0, 100)
    work = 6000 / 10 / 3600
    assert work + 0.02 <= found.worker_hours <= work + 10 * 60 / 3600


def test_what_cannot_be_in_time_is_late_for_the_clairvoyant_too():
    """One worker at most, 3,600 rows due after five minutes: it starts before they come, and 600 are late still."""
    trace = Trace("batch", 5.0, np.zeros(240), (Batch(120.0, 3600, 420.0),))
    assert bound(trace, WORLD, 120.0, 1).late_rows == pytest.approx(600, abs=160)
    assert bound(trace, WORLD, 120.0, 3).late_rows == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_policy_is_below_it(seed):
    """Random traces: every policy whose p95 is within the target pays at least as much."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.uniform(0, 300, 12), 60) * 5.0
    trace = Trace("random", 5.0, rng.poisson(levels).astype(float))
    for policy in (DrainTime(), QueueRule(rows_per_worker=400), Keda(rows_per_worker=300.0)):
        result = simulate(trace, policy, Limits(max_workers=60), WORLD, every_s=15.0)
        least = bound(trace, WORLD, max(120.0, result.wait_p95_s), 60)
        assert least.worker_hours <= result.worker_hours + 1e-6
