"""`contract.Workers`: a lease is believed until it ends, and never after."""

from __future__ import annotations

import threading
import uuid

import stack

from batchline.job import Lane
from batchline.store import open_store
from batchline.store.contract import Pulse, Speed


def _expire(url, table="workers"):
    stack.query(url, f"UPDATE {table} SET lease_until = now() - interval '1 second'")


def _beat(store, worker, **changes):
    return store.workers.heartbeat(worker, **{"lease_s": 30.0, "models": "a@1", "rows_per_s": 10.0} | changes)


def test_a_heartbeat_renews_and_reports(store):
    """The view shows what it said."""
    worker = stack.a_worker(store)
    assert _beat(store, worker, models="a@1 b@2", rows_per_s=12.5) is Pulse.LIVE
    (view,) = store.workers.list()
    assert (view.id, view.live, view.draining, view.models, view.rows_per_s) == (worker, True, False, "a@1 b@2", 12.5)
    assert view.instance == ""


def test_a_view_shows_the_speeds_of_the_last_beat(store):
    """By model; what it tells no more is not shown."""
    worker = stack.a_worker(store)
    _beat(store, worker, speeds={7: Speed(640.0, 0.0)})
    assert [view.speeds for view in store.workers.list()] == [{7: (640.0, 0.0)}]
    _beat(store, worker)
    assert [view.speeds for view in store.workers.list()] == [{}]


def test_a_heartbeat_after_the_lease_is_refused(store, database_url):
    """And stays refused: the process must come back under a new id, registering the old one does not help."""
    worker = stack.a_worker(store)
    _expire(database_url)
    assert _beat(store, worker) is Pulse.LOST
    store.workers.register(worker, host="here", pid=1, pool="cpu", device="cpu", lease_s=30.0)
    assert _beat(store, worker) is Pulse.LOST
    assert _beat(store, uuid.uuid4()) is Pulse.LOST
    assert [view.live for view in store.workers.list()] == [False]


def test_a_buried_worker_is_dead_and_others_are_not(store):
    """Burying twice is burying once."""
    dead, alive = stack.a_worker(store), stack.a_worker(store)
    for _ in range(2):
        store.workers.bury([dead])
    assert {view.id: view.live for view in store.workers.list()} == {dead: False, alive: True}


def test_a_draining_worker_lives_on(store):
    """It finishes what it holds, so its lease is renewed; its heartbeat tells it."""
    worker = stack.a_worker(store)
    store.workers.drain(worker)
    assert _beat(store, worker) is Pulse.DRAINING
    assert [(view.live, view.draining) for view in store.workers.list()] == [(True, True)]


def test_rates_add_up_over_the_live_workers_of_a_pool(store):
    """The dead drain nothing, and the speed of slices, of which a worker may know nothing else, is no online rate."""
    workers = [stack.a_worker(store, pool=pool) for pool in ("cpu", "cpu", "gpu", "gpu", "slices", "new")]
    for worker, rate, bulk in zip(workers, (1.0, 2.0, 4.0, 8.0, 900.0, 0.0), (0, 300.0, 0, 0, 900.0, 0), strict=True):
        _beat(store, worker, rows_per_s=rate, bulk_rows_per_s=bulk)
    store.workers.bury([workers[3]])
    assert store.workers.drain_rates(Lane.ONLINE) == {"cpu": 3.0, "gpu": 4.0}
    assert store.workers.drain_rates(Lane.BULK) == {"cpu": 301.0, "gpu": 4.0, "slices": 900.0}


def test_a_model_has_a_speed_of_its_own_that_outlives_who_measured_it(store, database_url):
    """The mean of the living that measured it, else as the last told it, else as kept; each lane for itself."""
    a, b, c = workers = [stack.a_worker(store) for _ in range(3)]
    assert store.workers.speeds() == {}
    _beat(store, a, speeds={7: Speed(10.0, 0.0), 8: Speed(1e-7, 900.0)})
    _beat(store, b, speeds={7: Speed(30.0, 500.0)})
    _beat(store, c, speeds={7: Speed(0.0, 700.0)})
    assert store.workers.speeds() == {7: (20.0, 600.0), 8: (1e-7, 900.0)}
    store.workers.bury([a])
    assert store.workers.speeds() == {7: (30.0, 600.0), 8: (1e-7, 900.0)}
    for age, worker in enumerate(workers):
        stack.query(
            database_url,
            f"UPDATE workers SET lease_until = now() - interval '2 days',"
            f" heartbeat_at = now() - interval '{age + 50} hours' WHERE id = '{worker}'",
        )
    told = {7: (10.0, 500.0), 8: (1e-7, 900.0)}
    assert store.workers.speeds() == told
    for _ in range(2):
        store.chores.prune(results_kept_s=1e7, jobs_kept_s=1e7, keys_kept_s=1e7)
        assert store.workers.list() == []
        assert store.workers.speeds() == told
    d = stack.a_worker(store)
    _beat(store, d, speeds={7: Speed(40.0, 0.0)})
    assert store.workers.speeds() == {7: (40.0, 500.0), 8: (1e-7, 900.0)}
    stack.query(database_url, "UPDATE workers SET lease_until = now() - interval '2 days'")
    store.chores.prune(results_kept_s=1e7, jobs_kept_s=1e7, keys_kept_s=1e7)
    assert store.workers.speeds() == {7: (40.0, 500.0), 8: (1e-7, 900.0)}


def test_slices_of_a_model_go_at_its_own_speed_on_each_live_worker_of_the_pool(store, database_url):
    """Those that have not measured it are reckoned alike, and of none that lives as of one."""
    workers = [stack.a_worker(store, pool=pool) for pool in ("cpu", "cpu", "gpu")]
    assert store.workers.bulk_rate("cpu", 7) == 0.0
    _beat(store, workers[0], bulk_rows_per_s=9000.0, speeds={7: Speed(0.0, 50.0), 8: Speed(1.0, 0.0)})
    assert [store.workers.bulk_rate("cpu", model) for model in (7, 8, 9)] == [100.0, 0.0, 0.0]
    store.workers.bury(workers)
    assert store.workers.bulk_rate("cpu", 7) == 50.0


def test_one_leads_until_its_lease_ends_or_it_resigns(store, database_url):
    """The others are told so; the lease names are independent."""
    a, b = uuid.uuid4(), uuid.uuid4()
    assert store.workers.leader("scheduler") is None
    assert store.workers.lead("scheduler", a, lease_s=30.0) == 0.0
    assert store.workers.leader("scheduler") == a
    assert store.workers.lead("scheduler", b, lease_s=30.0) is None
    assert store.workers.lead("other", b, lease_s=30.0) == 0.0
    store.workers.resign("scheduler", b)
    assert store.workers.lead("scheduler", b, lease_s=30.0) is None
    store.workers.resign("scheduler", a)
    assert store.workers.lead("scheduler", b, lease_s=30.0) == 0.0
    _expire(database_url, "leases")
    assert store.workers.leader("scheduler") is None
    assert store.workers.lead("scheduler", a, lease_s=30.0) == 0.0
    assert store.workers.lead("scheduler", b, lease_s=30.0) is None


def test_leading_since_is_without_a_gap(store, database_url):
    """Renewing in time goes on; a holder that comes late begins anew, so that it waits before it rescues."""
    a = uuid.uuid4()
    store.workers.lead("scheduler", a, lease_s=30.0)
    stack.query(database_url, "UPDATE leases SET since = now() - interval '100 seconds'")
    assert 100 <= store.workers.lead("scheduler", a, lease_s=30.0) < 130
    _expire(database_url, "leases")
    assert store.workers.lead("scheduler", a, lease_s=30.0) == 0.0


def test_of_many_candidates_one_leads(database_url):
    """All ask at once for a lease that nobody has."""
    stores = [open_store(database_url, connections=1) for _ in range(4)]
    answers, barrier = [], threading.Barrier(4)

    def run(each):
        each.db.ping()
        barrier.wait(10)
        answers.append(each.workers.lead("scheduler", uuid.uuid4(), lease_s=30.0))

    threads = [threading.Thread(target=run, args=(each,)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answer is None for answer in answers) == [False, True, True, True]
    for each in stores:
        each.close()
