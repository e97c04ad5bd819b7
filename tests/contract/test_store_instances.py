"""`instance_contract.Instances`: nothing is launched twice or beyond the limit, and nothing busy is stopped."""

from __future__ import annotations

import threading
import uuid

import pytest
import stack

from batchline.job import Lane
from batchline.store import open_store
from batchline.store.contract import Pulse
from batchline.store.instance_contract import InstanceStatus, NewInstance


@pytest.fixture
def leader(store):
    """Who holds the lease `autoscaler`."""
    holder = uuid.uuid4()
    assert store.workers.lead("autoscaler", holder, lease_s=60.0) is not None
    return holder


@pytest.fixture
def others(database_url):
    """Four stores, each with a connection of its own."""
    stores = [open_store(database_url, connections=1) for _ in range(4)]
    yield stores
    for each in stores:
        each.close()


def _intend(store, leader, count=1, *, most=8, pool="cpu", launch_id=None):
    launch_id = launch_id or uuid.uuid4()
    return store.instances.intend(leader, launch_id, pool=pool, provider="local", count=count, most=most)


def _launched(store, leader, *names, pool="cpu", **fields):
    """Instances of these names, brought by one launch."""
    launch = _intend(store, leader, len(names), most=100, pool=pool)
    store.instances.settle(launch.id, [NewInstance(name, **fields) for name in names])
    return launch


def _serving(store, leader, *names):
    """Launched, with one live worker each."""
    _launched(store, leader, *names)
    workers = [stack.a_worker(store, instance=name) for name in names]
    store.instances.registered()
    return workers


def _hold(store, worker, jobs=1):
    """Let a worker claim."""
    model = store.catalogue.register_model(stack.a_spec())
    store.jobs.submit([stack.new_job(model) for _ in range(jobs)])
    return store.claims.claim(worker, model, Lane.ONLINE, rows=jobs).jobs


def _statuses(store):
    return {i.id: i.status.value for i in store.instances.list(gone_within_s=1e6)}


def _together(works):
    """Run all at once; their answers in order."""
    answers, barrier = [None] * len(works), threading.Barrier(len(works))

    def run(n):
        barrier.wait(10)
        answers[n] = works[n]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return answers


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


def test_an_intent_goes_as_far_as_the_limit_allows(store, leader):
    """Unsettled launches count, and what is not gone, in whatever state; other pools do not."""
    first = _intend(store, leader, 3, most=5)
    second = _intend(store, leader, 3, most=5)
    assert (second.count, second.total) == (2, 5)
    assert _intend(store, leader, 1, most=5) is None
    assert _intend(store, leader, 1, most=5, pool="gpu").count == 1
    store.instances.settle(first.id, [NewInstance("a"), NewInstance("b"), NewInstance("c")])
    store.instances.settle(second.id, [], error="no capacity")
    store.instances.drain(leader, "cpu", 3, "too many")
    assert _intend(store, leader, 9, most=5).count == 2
    store.instances.gone(["a"], "ended")
    assert _intend(store, leader, 9, most=5).count == 1
    assert _intend(store, leader, 0) is None
    assert _intend(store, leader, -1) is None


def test_what_a_launch_has_brought_is_not_counted_twice(store, leader):
    """Found by its tag before it was settled: the launch may still bring the rest, even when the one is gone."""
    launch = _intend(store, leader, 3, most=4)
    store.instances.adopt("cpu", "local", launch.id, NewInstance("a"))
    assert [x.instances for x in store.instances.unsettled()] == [1]
    assert _intend(store, leader, 9, most=5).count == 2
    store.instances.gone(["a"], "ended")
    assert _intend(store, leader, 9, most=5).count == 1


def test_a_repeated_intent_is_the_launch_that_is_there(store, leader):
    """A lost reply of the commit must not ask for more; also when it has been settled, or another leads by now."""
    launch = _intend(store, leader, 2)
    assert _intend(store, leader, 5, launch_id=launch.id) == launch
    store.instances.settle(launch.id, [NewInstance("a"), NewInstance("b")])
    assert _intend(store, leader, 5, launch_id=launch.id).instances == 2
    assert len(store.instances.list()) == 2


def test_who_does_not_lead_writes_nothing(store, leader, database_url):
    """Never was leader, or was: neither launches, drains nor stops."""
    _launched(store, leader, "a", "b")
    store.instances.drain(leader, "cpu", 1, "too many")
    before = _statuses(store)
    for holder in (uuid.uuid4(), leader):
        if holder == leader:
            stack.query(database_url, "UPDATE leases SET lease_until = now() - interval '1 second'")
        assert _intend(store, holder) is None
        assert store.instances.drain(holder, "cpu", 1, "too many") == []
        assert store.instances.drained(holder) == []
        assert store.instances.stop(holder, "a", "orphan") is False
    assert _statuses(store) == before


def test_two_who_intend_at_once_stay_within_the_limit(store, leader, others):
    """Sixteen at a time, on four connections: their counts add up to the limit, each total is different."""
    works = [lambda s=s: [_intend(s, leader, 2, most=9) for _ in range(4)] for s in others]
    launches = [x for answer in _together(works) for x in answer if x is not None]
    assert sum(x.count for x in launches) == 9
    assert max(x.total for x in launches) == 9
    assert len({x.total for x in launches}) == len(launches)


def test_an_outcome_is_entered_once(store, leader):
    """Whoever repeats it, with whatever it says; what was found by its tags before is not entered again."""
    launch = _intend(store, leader, 2)
    assert store.instances.adopt("cpu", "local", launch.id, NewInstance("a", zone="z"))
    store.instances.settle(launch.id, [NewInstance("a"), NewInstance("b", "m5", "z1", "spot", 0.5, 2.0)])
    store.instances.settle(launch.id, [NewInstance("c")])
    store.instances.settle(uuid.uuid4(), [NewInstance("d")])
    a, b = store.instances.list()
    assert (a.id, a.zone, a.launch_id, b.id, b.launch_id) == ("a", "z", launch.id, "b", launch.id)
    assert (b.kind, b.zone, b.market, b.price_per_hour, b.on_demand_per_hour) == ("m5", "z1", "spot", 0.5, 2.0)


def test_what_is_known_is_not_adopted(store, leader):
    """Not even what is gone: a listing may be older than the ledger."""
    assert store.instances.adopt("cpu", "local", None, NewInstance("a"))
    assert not store.instances.adopt("cpu", "local", None, NewInstance("a"))
    store.instances.gone(["a"], "ended")
    assert not store.instances.adopt("cpu", "local", None, NewInstance("a"))
    assert _statuses(store) == {"a": "gone"}


def test_an_instance_goes_down_its_life(store, leader):
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
    for _ in range(2):
        assert [i.id for i in store.instances.drained(leader)] == ["a"]
    assert store.instances.gone(["a", "unknown"], "ended") == 1
    assert store.instances.gone(["a"], "ended") == 0
    assert store.instances.drained(leader) == []
    (view,) = store.instances.list(gone_within_s=60.0)
    assert (view.status, view.reason, view.workers) == (InstanceStatus.GONE, "too many", 0)
    assert store.instances.list() == []


def test_a_dead_worker_registers_no_instance(store, leader):
    """Nor does one on another instance, or on none."""
    _launched(store, leader, "a")
    store.workers.bury([stack.a_worker(store, instance="a")])
    stack.a_worker(store, instance="b")
    stack.a_worker(store)
    assert store.instances.registered() == 0


def test_those_without_workers_are_given_up_first_and_then_those_that_hold_least(store, leader):
    """What serves nobody costs nothing to lose."""
    busy, busier, _ = _serving(store, leader, "busy", "busier", "idle")
    _launched(store, leader, "starting")
    _hold(store, busy, 1)
    _hold(store, busier, 2)
    chosen = [store.instances.drain(leader, "cpu", 1, "too many") for _ in range(5)]
    assert chosen == [["starting"], ["idle"], ["busy"], ["busier"], []]


def test_of_the_idle_the_one_nearest_the_end_of_its_paid_time_is_given_up_first(store, leader, database_url):
    """Else the youngest; other pools and a count of nothing are left alone."""
    _serving(store, leader, "old", "older", "young")
    for name, minutes in (("young", 5), ("old", 115), ("older", 125)):
        stack.query(
            database_url,
            "UPDATE instances SET launched_at = now() - %s * interval '1 minute' WHERE id = %s",
            (minutes, name),
        )
    assert store.instances.drain(leader, "gpu", 5, "too many") == []
    assert store.instances.drain(leader, "cpu", 0, "too many") == []
    assert store.instances.drain(leader, "cpu", 1, "too many", billing_s=3600.0) == ["old"]
    assert store.instances.drain(leader, "cpu", 1, "too many") == ["young"]


def test_a_worker_of_a_drained_instance_claims_nothing_from_then_on(store, leader):
    """Neither do those that register later; a worker elsewhere does."""
    (worker,) = _serving(store, leader, "a")
    _hold(store, worker)
    store.instances.drain(leader, "cpu", 1, "too many")
    assert _hold(store, worker) == []
    late = stack.a_worker(store, instance="a")
    assert _hold(store, late) == []
    assert {w.draining for w in store.workers.list()} == {True}
    assert len(_hold(store, stack.a_worker(store), 3)) == 3


def test_who_registers_while_its_instance_is_given_up_drains(store, leader, others, database_url):
    """In either order: the one waits for the other's row, so that no worker is overlooked."""
    names = [f"i{n}" for n in range(12)]
    _launched(store, leader, *names)
    works = [lambda s=s, n=n: [stack.a_worker(s, instance=i) for i in names[n::3]] for n, s in enumerate(others[:3])]
    works.append(lambda: [others[3].instances.drain(leader, "cpu", 1, "too many") for _ in names])
    _together(works)
    assert set(_statuses(store).values()) == {"draining"}
    assert [w.draining for w in store.workers.list()] == [True] * 12


def test_an_uncommitted_drain_is_waited_for_by_who_registers(store, leader, others, database_url):
    """The worker's row says what the drain has decided, not what it was before."""
    _launched(store, leader, "a")
    with stack.connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; UPDATE instances SET status = 'draining' WHERE id = 'a'")
        registering = threading.Thread(target=stack.a_worker, args=(others[0],), kwargs={"instance": "a"})
        registering.start()
        registering.join(0.3)
        assert registering.is_alive()
        cursor.execute("COMMIT")
        registering.join(10)
    assert [w.draining for w in store.workers.list()] == [True]


def test_two_who_drain_at_once_choose_different_instances(store, leader, others):
    """Each tells what it has moved, and nobody else's."""
    _serving(store, leader, *"abcdef")
    answers = _together([lambda s=s: s.instances.drain(leader, "cpu", 1, "too many") for s in others])
    assert len({name for answer in answers for name in answer}) == sum(map(len, answers)) >= 1
    assert sum(s == "draining" for s in _statuses(store).values()) == sum(map(len, answers))


def test_nothing_stops_while_a_job_of_it_is_not_back_in_the_queue(store, leader, database_url):
    """Not while its worker holds it, nor when the worker is dead and nobody has taken the job back."""
    (worker,) = _serving(store, leader, "a")
    (job,) = _hold(store, worker)
    store.instances.drain(leader, "cpu", 1, "too many")
    assert store.instances.drained(leader) == []
    store.workers.bury([worker])
    assert store.instances.drained(leader) == []
    store.chores.rescue(max_failures=3)
    assert [i.id for i in store.instances.drained(leader)] == ["a"]
    assert store.claims.finish(worker, [stack.done(job)]) == set()


def test_what_never_registered_is_stopped_at_once_and_what_lives_is_drained_instead(store, leader):
    """Stopping again is well; what is unknown or gone cannot be stopped."""
    busy, _ = _serving(store, leader, "busy", "idle")
    _hold(store, busy)
    _launched(store, leader, "never")
    assert store.instances.stop(leader, "never", "did not register")
    assert store.instances.stop(leader, "never", "again")
    assert not store.instances.stop(leader, "busy", "orphan")
    assert not store.instances.stop(leader, "idle", "orphan")
    assert not store.instances.stop(leader, "unknown", "orphan")
    assert _statuses(store) == {"busy": "draining", "idle": "draining", "never": "stopping"}
    assert all(w.draining for w in store.workers.list())
    assert {i.id: i.reason for i in store.instances.list()}["never"] == "did not register"
    store.instances.gone(["never"], "ended")
    assert not store.instances.stop(leader, "never", "again")


def test_what_is_gone_takes_its_workers_along(store, leader):
    """Their jobs are for others at the next rescue, and a process that lives on comes back draining."""
    worker, other = _serving(store, leader, "a", "b")
    _hold(store, worker)
    assert store.instances.gone(["a"], "vanished") == 1
    assert {w.id: w.live for w in store.workers.list()} == {worker: False, other: True}
    assert store.workers.heartbeat(worker, lease_s=30.0, models="", rows_per_s=0.0) is Pulse.LOST
    assert store.chores.rescue(max_failures=3).requeued == 1
    assert _hold(store, stack.a_worker(store, instance="a")) == []


def test_the_list_tells_age_workers_and_what_they_hold(store, leader, database_url):
    """By launch time; of one pool, or all; with what is gone, as long as is asked for."""
    (worker,) = _serving(store, leader, "a")
    stack.a_worker(store, instance="a")
    _hold(store, worker, 3)
    _launched(store, leader, "b", pool="gpu")
    store.instances.gone(["b"], "ended")
    stack.query(database_url, "UPDATE instances SET launched_at = now() - interval '100 seconds' WHERE id = 'a'")
    stack.query(
        database_url,
        "UPDATE instances SET launched_at = now() - interval '90 seconds', gone_at = now() - interval '50 seconds'"
        " WHERE id = 'b'",
    )
    (a,) = store.instances.list()
    assert (a.id, a.workers, a.running, a.registered_at is not None) == ("a", 2, 3, True)
    assert 100 <= a.age_s < 130
    assert [i.id for i in store.instances.list(gone_within_s=60.0)] == ["a", "b"]
    assert [round(i.age_s) for i in store.instances.list(pool="gpu", gone_within_s=60.0)] == [40]
    assert store.instances.list(pool="gpu", gone_within_s=40.0) == []


def test_launches_are_counted_by_what_they_brought_or_may_bring(store, leader, database_url):
    """A launch that found no capacity has launched nothing; old ones do not count."""
    _launched(store, leader, "a", "b")
    store.instances.settle(_intend(store, leader, 3).id, [], error="no capacity")
    _intend(store, leader, 4)
    _intend(store, leader, 1, pool="gpu")
    assert store.instances.launches_within("cpu", 3600.0) == 6
    stack.query(database_url, "UPDATE launches SET created_at = now() - interval '2 hours' WHERE settled_at IS NULL")
    assert store.instances.launches_within("cpu", 3600.0) == 2


def test_prices_follow_those_that_are_told(store, leader):
    """Of what is not gone; what is unknown is left out, what costs the same is not counted."""
    _launched(store, leader, "a", "b", "c", price_per_hour=0.5)
    store.instances.gone(["c"], "a test")
    assert store.instances.priced({"a": 0.25, "b": 0.5, "c": 7.0, "nobody": 1.0}) == 1
    assert store.instances.priced({"a": 0.25, "b": 0.6}) == 1
    prices = {i.id: i.price_per_hour for i in store.instances.list(gone_within_s=60.0)}
    assert prices == {"a": 0.25, "b": 0.6, "c": 0.5}
    assert store.instances.priced({}) == 0


def test_settled_launches_are_forgotten_after_a_week(store, leader, database_url):
    """Their instances stay, and so does a launch whose outcome nobody knows yet."""
    _launched(store, leader, "a")
    waiting = _intend(store, leader)
    stack.query(database_url, "UPDATE launches SET created_at = now() - interval '8 days'")
    assert store.chores.prune(results_kept_s=1e7, jobs_kept_s=1e7, keys_kept_s=1e7) == 1
    assert store.chores.prune(results_kept_s=1e7, jobs_kept_s=1e7, keys_kept_s=1e7) == 0
    assert [x.id for x in store.instances.unsettled()] == [waiting.id]
    assert _statuses(store) == {"a": "starting"}
