"""`contract.Chores`: what the scheduler does is right whoever leads, and a crash blames nobody without proof."""

from __future__ import annotations

import json
import threading
import time

import pytest
import stack

from batchline.job import Lane, Status
from batchline.store import open_store
from batchline.store.contract import Rescued


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


def _running(store, model, count=1, rows=1):
    """A worker with so many jobs in hand."""
    store.jobs.submit([stack.new_job(model, rank=n, rows=rows) for n in range(count)])
    worker = stack.a_worker(store)
    return worker, store.claims.claim(worker, model, Lane.ONLINE, rows=count * rows).jobs


def _release_all(store, url):
    stack.query(url, "UPDATE jobs SET run_at = now() WHERE run_at IS NOT NULL")
    store.chores.release()


def test_jobs_of_a_dead_worker_come_back_as_suspects_uncharged(store, model, database_url):
    """A crash in company proves nothing, however often it happens; live workers keep theirs."""
    worker, _ = _running(store, model, count=2)
    _, kept = _running(store, model)
    assert store.chores.rescue(max_failures=1) == Rescued(0, 0)
    store.workers.bury([worker])
    assert store.chores.rescue(max_failures=1) == Rescued(requeued=2, poisoned=0)
    assert store.chores.rescue(max_failures=1) == Rescued(0, 0)
    rows = stack.query(
        database_url, "SELECT failures, attempt, worker_id, run_at FROM jobs WHERE suspect AND status = 'queued'"
    )
    assert rows == [(0, 1, None, None)] * 2
    assert store.jobs.read([kept[0].id])[kept[0].id].status is Status.RUNNING


def test_a_job_is_poison_only_when_it_crashed_alone_so_often(store, model, database_url):
    """First in company, then claimed alone but not yet run, then exposed: the last alone is counted."""
    worker, (job,) = _running(store, model, rows=2)
    for exposed, expected in (
        (False, Rescued(1, 0)),
        (True, Rescued(1, 0)),
        (False, Rescued(1, 0)),
        (True, Rescued(0, 1)),
    ):
        if job.suspect and exposed:
            assert store.claims.expose(worker, job)
        store.workers.bury([worker])
        assert store.chores.rescue(max_failures=2) == expected
        _release_all(store, database_url)
        worker = stack.a_worker(store)
        job = next(iter(store.claims.claim_suspect(worker, model).jobs), job)
    view = store.jobs.read([job.id])[job.id]
    assert (view.status, view.code, view.rows_failed, view.attempt) == (Status.FAILED, "poison", 2, 4)
    assert [(e["row"], e["code"]) for e in json.loads(view.errors)] == [(0, "poison"), (1, "poison")]


def test_a_crash_alone_delays_the_next_try(store, model, database_url):
    """Each one longer; exposure ends with the claim."""
    worker, (job,) = _running(store, model)
    assert store.claims.expose(worker, job)
    store.workers.bury([worker])
    store.chores.rescue(max_failures=3)
    failures, exposed, waits = stack.query(database_url, "SELECT failures, exposed, run_at IS NOT NULL FROM jobs")[0]
    assert (failures, exposed, waits) == (1, False, True)


def test_two_leaders_rescue_each_job_once(store, model, database_url):
    """Neither waits for the other, and their counts add up."""
    worker, _ = _running(store, model, count=300)
    store.workers.bury([worker])
    stores = [open_store(database_url, connections=1) for _ in range(2)]
    found, barrier = [], threading.Barrier(2)

    def rescue(each):
        barrier.wait(10)
        found.append(each.chores.rescue(max_failures=3).requeued)

    threads = [threading.Thread(target=rescue, args=(each,)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(found) == 300
    assert stack.query(database_url, "SELECT count(*) FROM jobs WHERE suspect") == [(300,)]
    for each in stores:
        each.close()


def test_only_queued_jobs_expire_after_their_deadline(store, model, database_url):
    """Running ones finish late; those that wait for run_at expire too."""
    worker, (running,) = _running(store, model)
    late, waits, early, free = (stack.new_job(model) for _ in range(4))
    store.jobs.submit([late, waits, early, free])
    past = "UPDATE jobs SET deadline_at = now() - interval '1 second' WHERE id = ANY(%s::uuid[])"
    stack.query(database_url, past, [[str(j.id) for j in (running, late, waits)]])
    stack.query(database_url, "UPDATE jobs SET deadline_at = now() + interval '1 day' WHERE id = %s", [str(early.id)])
    stack.query(database_url, "UPDATE jobs SET run_at = now() + interval '1 day' WHERE id = %s", [str(waits.id)])
    assert store.chores.expire() == 2
    assert store.chores.expire() == 0
    views = store.jobs.read([j.id for j in (running, late, waits, early, free)])
    assert [v.status for v in map(views.get, [j.id for j in (running, late, waits, early, free)])] == [
        "running", "expired", "expired", "queued", "queued",
    ]  # fmt: skip
    assert store.claims.finish(worker, [stack.done(running)]) == {running.id}


def test_release_opens_what_is_due(store, model, database_url):
    """A job whose run_at is to come stays out of the queue."""
    due, later = stack.new_job(model), stack.new_job(model)
    store.jobs.submit([due, later])
    stack.query(
        database_url,
        "UPDATE jobs SET run_at = now() + CASE WHEN id = %s THEN interval '0' ELSE '1 day' END",
        [str(due.id)],
    )
    assert store.chores.waiting() == []
    assert store.chores.release() == 1
    assert [job.id for job in store.claims.claim(stack.a_worker(store), model, Lane.ONLINE, rows=9).jobs] == [due.id]


def test_waiting_names_pools_and_lanes_with_claimable_work(store, model, database_url):
    """A suspect is work of its own lane."""
    gpu = store.catalogue.register_model(stack.a_spec("large", pool="gpu"))
    assert store.chores.waiting() == []
    store.jobs.submit([stack.new_job(gpu, lane=Lane.BULK), stack.new_job(gpu, lane=Lane.BULK), stack.new_job(model)])
    assert set(store.chores.waiting()) == {("gpu", Lane.BULK), ("cpu", Lane.ONLINE)}
    stack.query(database_url, "UPDATE jobs SET suspect = true WHERE lane = 'bulk'")
    assert set(store.chores.waiting()) == {("gpu", Lane.BULK), ("cpu", Lane.ONLINE)}
    stack.query(database_url, "UPDATE jobs SET suspect = true")
    assert set(store.chores.waiting()) == {("gpu", Lane.BULK), ("cpu", Lane.ONLINE)}


def test_results_go_before_rows_and_rows_before_their_time_stay(store, model, database_url):
    """First inputs and results, in a later step the row; what has not ended is never pruned."""
    worker, (job,) = _running(store, model)
    store.claims.finish(worker, [stack.done(job)])
    _running(store, model)
    store.jobs.submit([stack.new_job(model)])
    keep = {"results_kept_s": 1000.0, "jobs_kept_s": 2000.0, "keys_kept_s": 1000.0}
    assert store.chores.prune(**keep) == 0
    assert store.chores.prune(**keep | {"results_kept_s": 0.0}) == 1
    view = store.jobs.read([job.id])[job.id]
    assert (view.result_pruned, view.outputs, view.status) == (True, None, Status.SUCCEEDED)
    assert stack.query(database_url, "SELECT count(*) FROM job_inputs") == [(2,)]
    assert store.chores.prune(**keep | {"results_kept_s": 0.0}) == 0
    assert store.chores.prune(results_kept_s=0.0, jobs_kept_s=0.0, keys_kept_s=1000.0) == 1
    assert store.jobs.read([job.id]) == {}
    assert store.chores.prune(results_kept_s=0.0, jobs_kept_s=0.0, keys_kept_s=1000.0) == 0
    assert stack.query(database_url, "SELECT count(*) FROM jobs") == [(2,)]


def test_keys_and_dead_workers_go_in_their_time(store, model, database_url):
    """A dead worker's row stays while it has jobs that nobody has rescued."""
    store.jobs.submit([stack.new_job(model, idempotency_key="k", body_hash=b"h")])
    keep = {"results_kept_s": 1000.0, "jobs_kept_s": 2000.0}
    assert store.chores.prune(**keep, keys_kept_s=1000.0) == 0
    assert store.chores.prune(**keep, keys_kept_s=0.0) == 1
    worker = stack.a_worker(store)
    store.claims.claim(worker, model, Lane.ONLINE, rows=1)
    stack.query(database_url, "UPDATE workers SET lease_until = now() - interval '2 days'")
    assert store.chores.prune(**keep, keys_kept_s=0.0) == 0
    assert store.chores.rescue(max_failures=3).requeued == 1
    assert store.chores.prune(**keep, keys_kept_s=0.0) == 1


def test_a_prune_step_is_bounded(store, model, database_url, monkeypatch):
    """Large histories go in steps, so that no statement holds many locks for long."""
    monkeypatch.setattr("batchline.store.chores._STEP", 2)
    worker, jobs = _running(store, model, count=5)
    store.claims.finish(worker, [stack.done(job) for job in jobs])
    steps = iter(lambda: store.chores.prune(results_kept_s=0.0, jobs_kept_s=1e6, keys_kept_s=0.0), 0)
    assert list(steps) == [2, 2, 1]


def test_the_backlog_is_what_is_queued_by_tenant_model_and_lane(store, model, database_url):
    """Suspects and jobs that wait count too; what is gone disappears at the next count."""
    jobs = [
        stack.new_job(model, rows=3),
        stack.new_job(model, rows=4),
        stack.new_job(model, tenant_id=2, lane=Lane.BULK),
    ]
    jobs += [stack.new_job(model, rows=5)]
    store.jobs.submit(jobs)
    stack.query(database_url, "UPDATE jobs SET suspect = true WHERE rows = 4")
    stack.query(database_url, "UPDATE jobs SET run_at = now() WHERE rows = 5")
    store.chores.count_backlog(every_s=0.0)
    found = {(b.tenant_id, b.model_id, b.pool, b.lane, b.jobs, b.rows) for b in store.chores.backlog()}
    assert found == {(1, model, "cpu", Lane.ONLINE, 3, 12), (2, model, "cpu", Lane.BULK, 1, 1)}
    assert all(0 <= b.oldest_age_s < 60 for b in store.chores.backlog())
    store.jobs.cancel(2, [jobs[2].id])
    store.chores.count_backlog(every_s=3600.0)
    assert len(store.chores.backlog()) == 2
    store.chores.count_backlog(every_s=0.0)
    assert [b.tenant_id for b in store.chores.backlog()] == [1]


def test_one_process_counts_at_a_time(store, model, database_url):
    """Who finds another counting goes away at once, without waiting and without counting."""
    store.jobs.submit([stack.new_job(model)])
    with stack.connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; UPDATE chore_marks SET at = now() WHERE name = 'backlog'")
        begun = time.monotonic()
        store.chores.count_backlog(every_s=0.0)
        assert time.monotonic() - begun < 3.0
        assert store.chores.backlog() == []
