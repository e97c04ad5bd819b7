"""`batch_contract.Slices`: a slice is finished once, by whoever holds it; a row that kills is found and left out."""

from __future__ import annotations

import uuid

import batch_stack
import pytest
import stack

from batchline.batch import BatchStatus, Counts, Staged, bits_to_rows
from batchline.job import Lane, Status
from batchline.store.contract import Failure, Rescued


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


@pytest.fixture
def worker(store):
    return stack.a_worker(store)


@pytest.fixture
def batch(store, model):
    return batch_stack.planned(store, model, [10, 20])


@pytest.fixture
def job(store, model, worker, batch):
    (found,) = batch_stack.claimed(store, worker, model)
    return found


def _crash(store, worker):
    """The worker dies, its jobs are rescued, and a new worker is there."""
    store.workers.bury([worker])
    done = store.chores.rescue(max_failures=3)
    return stack.a_worker(store), done


def test_work_is_the_batch_and_what_is_known_of_the_rows(store, batch, job):
    """Without counts, which nobody needs there; None when the batch is gone."""
    work = store.slices.work(job)
    assert (work.batch.id, work.batch.body, work.batch.model) == (batch, batch_stack.BODY, "digits")
    assert (work.batch.counts, tuple(work.poison), work.exposed) == (Counts(), (), None)
    store.batches.cancel(1, batch)
    store.batches.take_to_end(batch_stack.HOLDER, lease_s=9.0)
    store.batches.end(batch_stack.HOLDER, batch, BatchStatus.CANCELLED)
    while store.batches.prune(results_kept_s=0.0, batches_kept_s=0.0):
        pass
    assert store.slices.work(job) is None


@pytest.mark.parametrize("lost", ["cancelled", "batch cancelled", "rescued", "claimed again", "another worker's"])
def test_nothing_is_written_of_a_slice_that_is_not_mine_any_more(store, worker, batch, job, lost):
    """Every call of Slices says so."""
    holder = worker
    if lost == "cancelled":
        store.jobs.cancel(1, [job.id])
    elif lost == "batch cancelled":
        store.batches.cancel(1, batch)
    elif lost == "rescued":
        _crash(store, worker)
    elif lost == "claimed again":
        store.claims.give_back(worker, [job])
        assert batch_stack.claimed(store, worker, job.model_id)[0].id == job.id
    else:
        holder = stack.a_worker(store)
    facts = "SELECT s.*, j.status, j.exposed FROM slices s JOIN jobs j ON j.id = s.job_id ORDER BY s.number"
    before = store.db.run(facts)
    assert not store.slices.progress(holder, job, 5)
    assert not store.slices.expose(holder, job, (0, 5))
    assert not store.slices.condemn(holder, job, 3)
    assert not store.slices.finish(holder, batch_stack.finished(job))
    assert store.db.run(facts) == before
    assert store.db.run("SELECT count(*) FROM job_results") == [(0,)]


def test_a_finish_is_whole_and_may_be_repeated(store, worker, batch, job):
    """Status, counts, failed rows and what is staged, together; after it the slice is nobody's."""
    done = batch_stack.finished(
        job, rows=12, failed=[0, 11], poison=[11], staged=Staged([{"a": "b"}], 12, 2, 99), timings='{"load":1}'
    )
    for _ in range(2):
        assert store.slices.finish(worker, done)
    (found, _) = store.batches.slices(batch)
    assert (found.status, found.rows, found.rows_failed, found.staged) == ("succeeded", 12, 2, done.staged)
    assert bits_to_rows(found.failed) == [0, 11]
    view = store.jobs.read([job.id])[job.id]
    assert (view.rows, view.rows_failed, view.timings, view.code) == (12, 2, '{"load":1}', None)
    assert not store.slices.progress(worker, job, 3)
    assert not store.slices.finish(stack.a_worker(store), done)


def test_a_slice_whose_rows_all_failed_has_failed(store, worker, batch, job):
    """One without rows has succeeded."""
    assert store.slices.finish(worker, batch_stack.finished(job, failed=list(range(10))))
    assert store.jobs.read([job.id])[job.id].status is Status.FAILED
    (other,) = batch_stack.claimed(store, worker, job.model_id)
    assert store.slices.finish(worker, batch_stack.finished(other, rows=0))
    assert store.jobs.read([other.id])[other.id].status is Status.SUCCEEDED
    assert store.batches.read(batch).counts == Counts(total=10, failed=10)


def test_progress_shows_until_the_attempt_is_over(store, worker, batch, job):
    """What an attempt that was given back had done counts for nothing."""
    assert store.slices.progress(worker, job, 9)
    assert store.batches.read(batch).rows_per_s > 0
    store.claims.give_back(worker, [job])
    assert store.batches.read(batch).rows_per_s == 0
    batch_stack.claimed(store, worker, job.model_id)
    assert store.batches.read(batch).rows_per_s == 0


def test_parts_are_unpublished_until_they_are_marked(store, worker, batch, job):
    """A slice that left nothing to publish never shows; marking twice does no harm."""
    (other,) = batch_stack.claimed(store, worker, job.model_id)
    staged = Staged([{"name": "part"}], 10, 0, 5)
    store.slices.finish(worker, batch_stack.finished(job, staged=staged))
    store.slices.finish(worker, batch_stack.finished(other))
    assert store.slices.unpublished(limit=9) == [(job.id, batch, 0, staged)]
    assert store.slices.unpublished(limit=0) == []
    for _ in range(2):
        store.slices.published([job.id, other.id, uuid.uuid4()])
    assert store.slices.unpublished(limit=9) == []
    assert [s.published for s in store.batches.slices(batch)] == [True, True]


def test_a_crash_while_rows_are_exposed_charges_nothing_and_tells_the_next_attempt(store, worker, batch, job):
    """First in company, unexposed: a suspect. Then each attempt learns what was exposed when the last one died."""
    worker, done = _crash(store, worker)
    assert done == Rescued(1, 0)
    exposed = None
    for rows in ((0, 10), (0, 5), (3, 5), (3, 4)):
        (job,) = store.claims.claim_suspect(worker, job.model_id, Lane.BULK).jobs
        assert (store.slices.work(job).exposed, job.failures, job.suspect) == (exposed, 0, True)
        assert store.slices.expose(worker, job, rows)
        assert store.slices.work(job).exposed is None
        worker, done = _crash(store, worker)
        assert done == Rescued(1, 0)
        exposed = rows
    (job,) = store.claims.claim_suspect(worker, job.model_id, Lane.BULK).jobs
    assert store.slices.work(job).exposed == (3, 4)
    for _ in range(2):
        assert store.slices.condemn(worker, job, 3)
    work = store.slices.work(job)
    assert (tuple(work.poison), work.exposed) == ((3,), None)
    assert store.slices.condemn(worker, job, 7)
    assert tuple(store.slices.work(job).poison) == (3, 7)
    assert store.slices.finish(worker, batch_stack.finished(job, failed=[3, 7]))
    assert store.batches.read(batch).counts == Counts(total=30, succeeded=8, failed=2, queued=20)


def test_what_was_exposed_and_survived_tells_nothing(store, model, worker, job):
    """A slice that was given back afterwards begins anew, and a crash elsewhere does not point at old rows."""
    assert store.slices.expose(worker, job, (0, 5))
    store.claims.give_back(worker, [job])
    (job,) = batch_stack.claimed(store, worker, model)
    assert store.slices.work(job).exposed is None
    worker, _ = _crash(store, worker)
    (job,) = store.claims.claim_suspect(worker, model, Lane.BULK).jobs
    assert store.slices.work(job).exposed is None


def test_a_slice_that_crashes_alone_for_ever_is_poison(store, batch, worker, job):
    """At 200 times, wherever it crashed; all its rows failed, with one error in all."""
    worker, _ = _crash(store, worker)
    store.claims.claim_suspect(worker, job.model_id, Lane.BULK)
    store.db.run("UPDATE slices SET crashes = 199 WHERE number = 0")
    worker, done = _crash(store, worker)
    assert done == Rescued(1, 0)
    store.claims.claim_suspect(worker, job.model_id, Lane.BULK)
    _, done = _crash(store, worker)
    assert done == Rescued(0, 1)
    found = store.batches.slices(batch)[0]
    assert (found.status, found.code, found.rows_failed, found.staged) == ("failed", "poison", 10, None)
    assert "died" in found.message
    assert store.batches.read(batch).counts == Counts(total=30, failed=10, queued=20)
    assert store.batches.over_threshold() == [batch]


def test_errors_of_a_slice_are_charged_as_those_of_any_job(store, worker, batch, job):
    """Its budget is its own; crashes do not use it up."""
    assert store.claims.retry(worker, [Failure(job.id, 1, "e", "m", 0.0)], max_failures=2) == {job.id: "queued"}
    store.chores.release()
    (again,) = batch_stack.claimed(store, worker, job.model_id)
    assert (again.id, again.failures) == (job.id, 1)
    assert store.claims.retry(worker, [Failure(job.id, 2, "e", "m", 0.0)], max_failures=2) == {job.id: "failed"}
    assert store.batches.slices(batch)[0].message == "m"
