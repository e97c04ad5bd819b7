"""`instance_contract.Instances`: what the autoscaler counts, by pool, and the decisions that are kept."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import batch_stack
import pytest
import stack

from batchline.job import Lane
from batchline.store import scalings
from batchline.store.contract import Speed
from batchline.store.instance_contract import Scaling


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


def _totals(store, ago_s=5.0):
    return {t.pool: t for t in store.instances.totals(datetime.now(UTC) - timedelta(seconds=ago_s))}


def _beat(store, worker, **told):
    store.workers.heartbeat(worker, **{"lease_s": 30.0, "models": "", "rows_per_s": 0.0} | told)


def test_totals_tell_what_arrived_what_runs_and_what_was_done(store, model):
    """Of every pool with a model or a worker; arrivals since a moment, whatever became of them."""
    store.jobs.submit([stack.new_job(model, rows=2) for _ in range(3)])
    worker = stack.a_worker(store)
    (job,) = store.claims.claim(worker, model, Lane.ONLINE, rows=2).jobs
    _beat(store, worker, rows_per_s=50.0, rows_done=7)
    stack.a_worker(store, pool="gpu")
    found = _totals(store)
    assert list(found) == ["cpu", "gpu"]
    cpu = found["cpu"]
    assert (cpu.arrived_rows, cpu.running_rows, cpu.done_rows, cpu.rows_per_s) == (6, 2, 7, 50.0)
    assert (cpu.demands, found["gpu"].done_rows, found["gpu"].rows_per_s) == ((), 0, 0.0)
    store.claims.finish(worker, [stack.done(job)])
    after = _totals(store)["cpu"]
    assert (after.arrived_rows, after.running_rows) == (6, 0)
    assert _totals(store, -60.0)["cpu"].arrived_rows == 0


def test_what_workers_have_done_stays_done_when_they_are_pruned(store, database_url):
    """The sum does not shrink, nor is the pool's speed forgotten: it may have been at zero for days."""
    for rows, rate in ((5, 20.0), (7, 10.0), (9, 0.0)):
        _beat(store, stack.a_worker(store), rows_done=rows, rows_per_s=rate, bulk_rows_per_s=rate * 9)
    before = _totals(store)["cpu"]
    assert (before.done_rows, before.rows_per_s, before.bulk_rows_per_s) == (21, 15.0, 135.0)
    stack.query(
        database_url,
        "UPDATE workers SET lease_until = now() - interval '2 days',"
        " heartbeat_at = now() - rows_done * interval '1 hour'",
    )
    assert _totals(store)["cpu"].rows_per_s == 20.0, "the last one that had measured"
    store.chores.prune(results_kept_s=1e7, jobs_kept_s=1e7, keys_kept_s=1e7)
    assert store.workers.list() == []
    worker = stack.a_worker(store)
    after = _totals(store)["cpu"]
    assert (after.done_rows, after.rows_per_s, after.bulk_rows_per_s) == (21, 20.0, 180.0)
    _beat(store, worker, rows_done=1, rows_per_s=3.0)
    after = _totals(store)["cpu"]
    assert (after.done_rows, after.rows_per_s, after.bulk_rows_per_s) == (22, 3.0, 180.0)


def test_workers_that_have_done_slices_alone_do_not_say_how_fast_online_work_goes(store, database_url):
    """They tell the speed of slices for both; it counts as long as nobody, alive, dead or pruned, knows better."""

    def speeds():
        cpu = _totals(store)["cpu"]
        return cpu.rows_per_s, cpu.bulk_rows_per_s

    slices = stack.a_worker(store)
    _beat(store, slices, rows_per_s=5000.0, bulk_rows_per_s=5000.0)
    assert speeds() == (5000.0, 5000.0)
    both = stack.a_worker(store)
    _beat(store, both, rows_per_s=50.0, bulk_rows_per_s=3000.0)
    assert speeds() == (50.0, 4000.0)
    store.workers.bury([both])
    assert speeds() == (50.0, 5000.0)
    store.workers.bury([slices])
    stack.query(database_url, "UPDATE workers SET lease_until = now() - interval '2 days'")
    store.chores.prune(results_kept_s=1e7, jobs_kept_s=1e7, keys_kept_s=1e7)
    _beat(store, stack.a_worker(store), rows_per_s=4000.0, bulk_rows_per_s=4000.0)
    assert speeds() == (50.0, 4000.0)


def test_so_many_deadlines_are_told_and_no_more(store, model, monkeypatch):
    """The earliest; however many batches are open, a look makes so many probes."""
    monkeypatch.setattr(scalings, "_DEMANDS", scalings._DEMANDS.replace(f"LIMIT {scalings.DEADLINES}", "LIMIT 2"))
    at = datetime.now(UTC) + timedelta(hours=1)
    for n in (3, 1, 2):
        batch_stack.planned(store, model, [n], deadline_at=at + timedelta(minutes=n))
    assert [rows for _, rows, _ in _totals(store)["cpu"].demands] == [1, 3]


def test_demands_are_the_rows_of_slices_by_their_deadline(store, model, database_url):
    """Those due earlier included; of a running slice what is left; none of paused batches, of online jobs, or ended."""
    now = datetime.now(UTC)
    soon, late = now + timedelta(seconds=100), now + timedelta(seconds=1000)
    batch_stack.planned(store, model, [10, 20], deadline_at=soon)
    batch_stack.planned(store, model, [40], deadline_at=late)
    batch_stack.planned(store, model, [80])
    paused = batch_stack.planned(store, model, [160], deadline_at=late)
    store.batches.pause(1, paused)
    store.jobs.submit([stack.new_job(model, rows=320, deadline_at=soon)])
    due = _totals(store)["cpu"].demands
    assert [rows for _, rows, _ in due] == [30, 70]
    assert [round(seconds, -2) for seconds, *_ in due] == [100, 1000]
    worker = stack.a_worker(store)
    (job,) = batch_stack.claimed(store, worker, model)
    assert job.rows == 10
    store.slices.progress(worker, job, job.rows - 1)
    found = _totals(store)["cpu"]
    assert found.running_rows == 1
    assert [rows for _, rows, _ in found.demands] == [21, 61]


def test_rows_count_as_the_time_that_one_worker_takes_for_them(store, model, database_url):
    """At the model's own speed in their lane, however fast others of the pool are; at the pool's while it has none."""
    slow = store.catalogue.register_model(stack.a_spec("slow"))
    worker, soon = stack.a_worker(store), datetime.now(UTC) + timedelta(seconds=100)
    held = []
    for each in (model, slow):
        store.jobs.submit([stack.new_job(each, rows=20)])
        held += store.claims.claim(worker, each, Lane.ONLINE, rows=20).jobs
        batch_stack.planned(store, each, [600], deadline_at=soon)
    assert (_totals(store)["cpu"].running_work_s, _totals(store)["cpu"].demands[0][1:]) == (0.0, (1200, 0.0))
    _beat(store, worker, rows_per_s=10.0, bulk_rows_per_s=100.0, speeds={model: Speed(1000.0, 6000.0)})
    told = _totals(store)["cpu"]
    assert (told.running_rows, told.running_work_s) == (40, 20 / 1000 + 20 / 10)
    assert told.demands[0][1:] == (1200, 600 / 6000 + 600 / 100)
    _beat(store, worker, rows_per_s=10.0, speeds={model: Speed(1000.0, 6000.0), slow: Speed(5.0, 3.0)})
    told = _totals(store)["cpu"]
    assert (told.running_work_s, told.demands[0][1:]) == (20 / 1000 + 20 / 5, (1200, 600 / 6000 + 600 / 3))
    assert [told.models[each].arrived_rows for each in (model, slow)] == [20, 20]
    store.claims.finish(worker, [stack.done(job) for job in held])
    stack.query(database_url, "UPDATE workers SET lease_until = now() - interval '2 days'")
    store.chores.prune(results_kept_s=1e7, jobs_kept_s=1e7, keys_kept_s=1e7)
    assert store.workers.list() == []
    told = _totals(store)["cpu"]
    assert (told.running_work_s, told.demands[0][1:]) == (0.0, (1200, 600 / 6000 + 600 / 3))
    assert (told.work_s(slow, Lane.ONLINE, 50), told.work_s(-1, Lane.ONLINE, 50)) == (10.0, 5.0), "-1: never measured"


def test_decisions_come_back_newest_first(store):
    """Of one pool or all, since a moment or ever; the old ones go, and a repeat is kept once."""
    now = datetime.now(UTC)
    for n in range(3):
        store.instances.decided(Scaling(now - timedelta(hours=n), "cpu", n, "why", {"queued_rows": 1.5}))
    for _ in range(2):
        store.instances.decided(Scaling(now, "gpu", 9, "why", {}), kept_s=3600 * 1.5)
    assert [d.desired for d in store.instances.decisions(pool="cpu")] == [0, 1]
    assert [(d.pool, d.signals) for d in store.instances.decisions(limit=1)] == [("cpu", {"queued_rows": 1.5})]
    assert [d.pool for d in store.instances.decisions(since=now)] == ["cpu", "gpu"]
    assert store.instances.decisions(since=now + timedelta(seconds=1)) == []


def test_a_worker_that_comes_back_counts_anew(store):
    """Its new id starts at nothing; what the old one has told stands."""
    _beat(store, stack.a_worker(store), rows_done=5)
    _beat(store, stack.a_worker(store), rows_done=0)
    _beat(store, uuid.uuid4(), rows_done=100)
    assert _totals(store)["cpu"].done_rows == 5
