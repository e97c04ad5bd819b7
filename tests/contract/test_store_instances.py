"""`instance_contract.Instances`: nothing is launched twice or beyond the limit, and nothing busy is stopped."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
import stack

from batchline.job import Lane
from batchline.store.contract import Pulse
from batchline.store.instance_contract import InstanceStatus, NewInstance, Scaling


@pytest.fixture
def leader(store):
    """Who holds the lease `autoscaler`."""
    holder = uuid.uuid4()
    assert store.workers.lead("autoscaler", holder, lease_s=60.0) is not None
    return holder


def _intend(store, leader, count=1, *, most=8, pool="cpu", launch_id=None):
    launch_id = launch_id or uuid.uuid4()
    return store.instances.intend(leader, launch_id, pool=pool, provider="local", count=count, most=most)


def _launched(store, leader, *names, pool="cpu", **fields):
    """Instances of these names, brought by one launch."""
    launch = _intend(store, leader, len(names), most=100, pool=pool)
    store.instances.settle(launch.id, [NewInstance(name, **fields) for name in names])
    return launch


def _statuses(store, **which):
    return {i.id: i.status.value for i in store.instances.list(gone_within_s=1e6, **which)}


def test_a_launch_is_written_before_it_is_made(store, leader):
    """It is unsettled until its outcome is known, counts failed calls, and keeps its id."""
    launch = _intend(store, leader, 3)
    assert (launch.count, launch.total, launch.pool, launch.provider) == (3, 3, "cpu", "local")
    store.instances.tried(launch.id, "no reply\0\ud800")
    (open_one,) = store.instances.unsettled()
    assert (open_one.id, open_one.tries, open_one.instances) == (launch.id, 1, 0)
    store.instances.settle(launch.id, [NewInstance("a"), NewInstance("b")])
    assert store.instances.unsettled() == []
    assert _statuses(store) == {"a": "starting", "b": "starting"}


def test_an_instance_goes_down_its_life(store, leader, database_url):
    """starting, serving, draining, stopping, gone; its worker learns of it and is buried at the end."""
    _launched(store, leader, "a")
    assert store.instances.registered() == 0
    worker = stack.a_worker(store, instance="a")
    assert [w.instance for w in store.workers.list()] == ["a"]
    assert store.instances.registered() == 1
    assert _statuses(store) == {"a": "serving"}
    assert store.instances.drain(leader, "cpu", 1, "too many") == ["a"]
    assert store.workers.heartbeat(worker, lease_s=30.0, models="", rows_per_s=0.0) is Pulse.DRAINING
    assert store.instances.drained(leader) == []
    store.workers.bury([worker])
    assert [i.id for i in store.instances.drained(leader)] == ["a"]
    assert [i.id for i in store.instances.drained(leader)] == ["a"]
    assert store.instances.gone(["a", "unknown"], "ended") == 1
    assert store.instances.gone(["a"], "ended") == 0
    assert store.instances.drained(leader) == []
    (view,) = store.instances.list(gone_within_s=60.0)
    assert (view.status, view.reason, view.workers) == (InstanceStatus.GONE, "too many", 0)
    assert store.instances.list() == []


def test_totals_tell_what_arrived_runs_and_was_done(store, leader, database_url):
    """By pool."""
    model = store.catalogue.register_model(stack.a_spec())
    start = datetime.now(UTC) - timedelta(seconds=5)
    store.jobs.submit([stack.new_job(model, rows=2) for _ in range(3)])
    worker = stack.a_worker(store)
    store.claims.claim(worker, model, Lane.ONLINE, rows=2)
    store.workers.heartbeat(worker, lease_s=30.0, models="", rows_per_s=50.0, rows_done=7)
    (totals,) = store.instances.totals(start)
    assert (totals.pool, totals.arrived_rows, totals.running_rows, totals.done_rows) == ("cpu", 6, 2, 7)
    assert (totals.rows_per_s, totals.demands) == (50.0, ())
    assert store.instances.totals(datetime.now(UTC) + timedelta(seconds=60))[0].arrived_rows == 0


def test_decisions_come_back_newest_first(store):
    """And the old ones go."""
    now = datetime.now(UTC)
    for n in range(3):
        store.instances.decided(Scaling(now - timedelta(hours=n), "cpu", n, "why", {"queued_rows": 1.5}))
    store.instances.decided(Scaling(now, "gpu", 9, "why", {}), kept_s=3600 * 1.5)
    assert [d.desired for d in store.instances.decisions(pool="cpu")] == [0, 1]
    assert [(d.pool, d.signals) for d in store.instances.decisions(limit=1)] == [("cpu", {"queued_rows": 1.5})]
    assert [d.pool for d in store.instances.decisions(since=now)] == ["cpu", "gpu"]


def test_cost_is_time_times_price(store, leader, database_url):
    """Since a moment, and of what is gone too."""
    _launched(store, leader, "a", "b", price_per_hour=2.0)
    store.instances.gone(["b"], "ended")
    stack.query(database_url, "UPDATE instances SET launched_at = now() - interval '2 hours'")
    since = datetime.now(UTC) - timedelta(hours=1)
    assert store.instances.cost_since("cpu", since) == pytest.approx(4.0, abs=0.01)
    assert store.instances.cost_since("cpu", since - timedelta(days=1)) == pytest.approx(8.0, abs=0.01)
    assert store.instances.cost_since("gpu", since) == 0.0
