"""`expedite_contract.Deadlines`: what is due when, and slices that are put before all others."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import batch_stack
import pytest
import stack
from explaining import Explaining

from batchline.job import Lane, rank_us
from batchline.store import open_store, store_on
from batchline.store.contract import Failure, Speed
from batchline.store.expedite_contract import Pick

SOON, LATE = (datetime.now(UTC).replace(microsecond=7) + timedelta(hours=n) for n in (1, 2))
MOST = 1000


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


def _planned(store, url, model, sizes, **changes) -> uuid.UUID:
    """A batch whose slices are ranked from now on, a second apart."""
    batch = batch_stack.planned(store, model, sizes, **changes)
    start = rank_us(time.time(), 5)
    sql = "UPDATE jobs j SET rank = %s + number * 1000000 FROM slices s WHERE s.job_id = j.id AND s.batch_id = %s"
    stack.query(url, sql, (start, str(batch)))
    return batch


def _order(url) -> list[tuple[uuid.UUID, int]]:
    """Batches and numbers of the slices that wait, as they will be claimed."""
    sql = "SELECT s.batch_id, s.number FROM jobs j JOIN slices s ON s.job_id = j.id WHERE j.status = 'queued'"
    return [(uuid.UUID(str(batch)), n) for batch, n in stack.query(url, sql + " AND j.run_at IS NULL ORDER BY j.rank")]


def test_what_was_planned_is_told_by_deadline_with_the_workers_there(store, database_url, model):
    """Of batches in progress with a deadline, all rows; workers that drain or are dead do not count."""
    worker, *others = (stack.a_worker(store) for _ in range(4))
    store.workers.heartbeat(worker, lease_s=30.0, models="", rows_per_s=9.0, bulk_rows_per_s=500.0)
    store.workers.drain(others[0])
    store.workers.bury([others[1]])
    late = batch_stack.planned(store, model, [10, 20], deadline_at=LATE)
    batch_stack.planned(store, model, [40], deadline_at=SOON)
    batch_stack.planned(store, model, [80], deadline_at=SOON)
    batch_stack.planned(store, model, [160])
    gpu = store.catalogue.register_model(stack.a_spec("elsewhere", pool="gpu"))
    batch_stack.planned(store, gpu, [9999])
    store.batches.pause(1, batch_stack.planned(store, model, [320], deadline_at=SOON))
    store.batches.cancel(1, batch_stack.planned(store, model, [640], deadline_at=SOON))
    store.batches.submit(batch_stack.new_batch(deadline_at=SOON))
    dues = store.deadlines.planned()
    assert [(due.deadline_at, due.rows, due.slices) for due in dues] == [(SOON, 120, 2), (LATE, 30, 2)]
    assert {(due.pool, due.model_id, due.workers, due.rows_per_s) for due in dues} == {("cpu", model, 2, 500.0)}
    assert {due.busy_s for due in dues} == {160 / 500}, "the longest slice of the pool may have no deadline"
    speeds = {model: Speed(online=3.0, bulk=70.0)}
    store.workers.heartbeat(worker, lease_s=30.0, models="", rows_per_s=9.0, bulk_rows_per_s=500.0, speeds=speeds)
    dues = store.deadlines.planned()
    assert {due.rows_per_s for due in dues} == {70.0}, "the model's own, once it is known"
    batch_stack.claimed(store, worker, model, 2)
    assert store.deadlines.planned() == dues, "at least what is left"
    store.batches.pause(1, late)
    assert store.deadlines.planned() == dues[:1]


def test_what_is_left_is_what_waits_and_the_rest_of_what_runs(store, database_url, model):
    """Slices of a paused batch are nobody's work, and online jobs none of batches, though the deadline is the same."""
    batch_stack.planned(store, model, [10, 20, 30, 40], deadline_at=SOON)
    store.batches.pause(1, batch_stack.planned(store, model, [320], deadline_at=SOON))
    store.jobs.submit([stack.new_job(model, rows=640, deadline_at=SOON)])
    other = store.catalogue.register_model(stack.a_spec("other"))
    batch_stack.planned(store, other, [5], deadline_at=SOON)
    dues = store.deadlines.planned()
    assert [(d.rows, d.slices, d.queued) for d in store.deadlines.left(dues)] == [(100, 4, 4), (5, 1, 1)]
    worker = stack.a_worker(store)
    done, runs, failed = batch_stack.claimed(store, worker, model, 3)
    store.slices.finish(worker, batch_stack.finished(done))
    store.slices.progress(worker, runs, 15)
    store.claims.retry(worker, [Failure(failed.id, failed.attempt, "e", "m", 60.0)], max_failures=3)
    (mine, others) = store.deadlines.left(dues)
    assert (mine.rows, mine.slices, mine.queued) == (5 + 30 + 40, 3, 1), "a retry that waits cannot be claimed"
    assert mine == replace(dues[0], rows=75, slices=3, queued=1)
    (job,) = batch_stack.claimed(store, worker, other)
    store.slices.finish(worker, batch_stack.finished(job))
    assert store.deadlines.left([others]) == []


def test_expedited_slices_go_first_by_deadline_and_number(store, database_url, model):
    """Before any slice of any model of the pool; the rest stays where it was, and a repeat changes nothing."""
    free = _planned(store, database_url, model, [1] * 3)
    late = _planned(store, database_url, model, [1] * 3, deadline_at=LATE)
    soon = _planned(store, database_url, model, [1] * 3, deadline_at=SOON)
    assert [batch for batch, n in _order(database_url) if n == 0] == [free, late, soon], "they take turns"
    picks = [Pick(model, SOON, 2), Pick(model, LATE, 1)]
    assert store.deadlines.expedite(picks) == 3
    first = [(soon, 0), (soon, 1), (late, 0)]
    rest = [(free, 0), (free, 1), (late, 1), (free, 2), (late, 2), (soon, 2)]
    order = _order(database_url)
    assert order[:3] == first
    assert sorted(order[3:]) == sorted(rest)
    assert store.deadlines.expedite(picks) == 0
    assert store.deadlines.expedite([Pick(model, SOON, 3), Pick(model, LATE, 3)]) == 3
    assert _order(database_url)[:6] == [(soon, n) for n in range(3)] + [(late, n) for n in range(3)]
    (low,) = stack.query(database_url, "SELECT min(rank) FROM jobs")[0]
    assert low >= 0, "claims look from 0 on"
    heads = store.claims.heads("cpu", Lane.BULK)
    assert [head.rank for head in heads] == [low]


@pytest.mark.parametrize("way", ["give back", "retry", "rescue", "pause"])
def test_the_place_is_kept_whatever_happens_to_the_slice(store, database_url, model, way):
    """Its batch is as near to its deadline as before."""
    batch = _planned(store, database_url, model, [1, 1], deadline_at=SOON)
    store.deadlines.expedite([Pick(model, SOON, 2)])
    before = stack.query(database_url, "SELECT id, rank FROM jobs ORDER BY id")
    worker = stack.a_worker(store)
    (job,) = batch_stack.claimed(store, worker, model)
    if way == "give back":
        store.claims.give_back(worker, [job])
    elif way == "retry":
        store.claims.retry(worker, [Failure(job.id, job.attempt, "e", "m", 0.0)], max_failures=3)
        assert store.chores.release() == 1
    elif way == "rescue":
        store.workers.bury([worker])
        assert store.chores.rescue(max_failures=3).requeued == 1
    else:
        store.claims.give_back(worker, [job])
        store.batches.pause(1, batch)
        store.batches.resume(1, batch)
    assert stack.query(database_url, "SELECT id, rank FROM jobs ORDER BY id") == before
    assert stack.query(database_url, "SELECT DISTINCT status FROM jobs") == [("queued",)]
    assert store.deadlines.expedite([Pick(model, SOON, 2)]) == 0


def test_only_slices_that_wait_are_moved(store, database_url, model):
    """Neither what runs or has ended, nor slices of a paused batch, nor online jobs, nor another deadline or model."""
    other = store.catalogue.register_model(stack.a_spec("other"))
    _planned(store, database_url, model, [1] * 4, deadline_at=SOON)
    worker = stack.a_worker(store)
    done, runs, waits = batch_stack.claimed(store, worker, model, 3)
    store.slices.finish(worker, batch_stack.finished(done))
    store.claims.retry(worker, [Failure(waits.id, waits.attempt, "e", "m", 60.0)], max_failures=3)
    store.batches.pause(1, _planned(store, database_url, model, [1], deadline_at=SOON))
    store.jobs.submit([stack.new_job(model, deadline_at=SOON)])
    for changes in ({"model": other, "deadline_at": SOON}, {"model": model, "deadline_at": LATE}, {"model": model}):
        _planned(store, database_url, changes.pop("model"), [1], **changes)
    before = dict(stack.query(database_url, "SELECT id, rank FROM jobs"))
    assert store.deadlines.expedite([Pick(model, SOON, MOST)]) == 1
    after = dict(stack.query(database_url, "SELECT id, rank FROM jobs"))
    (moved,) = (job for job in before if before[job] != after[job])
    assert stack.query(database_url, "SELECT number FROM slices WHERE job_id = %s", [str(moved)]) == [(3,)]
    assert store.slices.progress(worker, runs, 1), "the fence of what runs is as it was"


def test_two_leaders_move_each_slice_once_and_wait_for_nobody(store, database_url, model):
    """Nor for a claim under way; what is locked is left to the next tick."""
    _planned(store, database_url, model, [1] * 200, deadline_at=SOON)
    stores = [open_store(database_url, connections=1) for _ in range(2)]
    found, barrier = [], threading.Barrier(2)

    def move(each):
        barrier.wait(10)
        found.append(each.deadlines.expedite([Pick(model, SOON, MOST)]))

    with stack.connected(database_url) as holder, holder.cursor() as cursor:
        cursor.execute("BEGIN; SELECT 1 FROM jobs ORDER BY rank LIMIT 5 FOR UPDATE")
        threads = [threading.Thread(target=move, args=(each,)) for each in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(found) == 2
        moved = sum(found) + store.deadlines.expedite([Pick(model, SOON, MOST)])
        assert moved == 195
        cursor.execute("ROLLBACK")
    assert store.deadlines.expedite([Pick(model, SOON, MOST)]) == 5
    for each in stores:
        each.close()


FILL = """
INSERT INTO batches (id, tenant_id, kind, status, body, model_id, priority, deadline_at, rows_total, slices)
  SELECT uuidv7(), 1, 'data_set', 'in_progress', '\\x7b7d', 1, 5, now() + n * interval '1 minute', 1000, 20
  FROM generate_series(1, 500) n;
INSERT INTO slices (job_id, batch_id, number, first_row, rows)
  SELECT uuidv7(), id, n, n * 50, 50 FROM batches, generate_series(0, 19) n;
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, deadline_at)
  SELECT s.job_id, 1, 1, 'bulk', 'queued', 5, 1700000000000000 + s.number, 50, b.deadline_at
  FROM slices s JOIN batches b ON b.id = s.batch_id;
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, deadline_at)
  SELECT uuidv7(), 1, 1, 'online', 'queued', 5, n, 1, now() + n * interval '1 second' FROM generate_series(1, 20000) n;
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, finished_at)
  SELECT uuidv7(), 1, 1, 'bulk', 'succeeded', 5, n, 1, now() FROM generate_series(1, 20000) n;
"""


@pytest.mark.parametrize("analyzed", [True, False])
def test_a_tick_reads_no_slice_unless_in_doubt_and_moves_by_an_index(postgres, template, analyzed):
    """Plans are told by the batches alone; a count reads what is counted; a move reads the deadlines that it names."""
    with stack.database_from(postgres.url, template) as url:
        stack.query(url, "ALTER TABLE jobs SET (autovacuum_enabled = off)")
        with_model = open_store(url)
        with_model.catalogue.register_model(stack.a_spec())
        with_model.close()
        stack.query(url, FILL)
        if analyzed:
            stack.query(url, "VACUUM ANALYZE")
        db = Explaining(url)
        store = store_on(db)
        dues = store.deadlines.planned()
        assert len(dues) == 500
        assert db.pages() < 3000
        db.plans.clear()
        assert sum(due.slices for due in store.deadlines.left(dues)) == 10_000
        assert db.pages() < 40_000
        db.plans.clear()
        picks = [Pick(1, due.deadline_at, 10) for due in dues[:4]]
        assert store.deadlines.expedite(picks) == 40
        assert db.pages() < 40 * 60
        assert not db.scanned() & {"jobs", "slices"}
