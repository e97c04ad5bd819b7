"""`batch_contract.Batches` as the scheduler sees it: each batch has one planner and one end, and goes whole."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import UTC, datetime

import batch_stack
import msgspec
import pytest
import stack

from batchline.batch import BATCH_TERMINAL, BATCH_TRANSITIONS, BatchFault, BatchStatus, Chunk, Counts, Slice, Staged
from batchline.job import Lane
from batchline.store import batch_moves, open_store
from batchline.store.contract import Failure

HOLDER, OTHER = batch_stack.HOLDER, uuid.UUID(int=8)
FAULT = batch_stack.FAULT


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


@pytest.fixture
def batch(store):
    """A batch that nobody has planned."""
    new = batch_stack.new_batch()
    store.batches.submit(new)
    return new.id


def _ended(store, batch, status=BatchStatus.COMPLETED, **changes):
    assert store.batches.take_to_end(HOLDER, lease_s=9.0).id == batch
    assert store.batches.end(HOLDER, batch, status, **changes)


def test_one_planner_at_a_time(store, batch):
    """A lease keeps others away until it runs out; oldest first."""
    second = batch_stack.new_batch(id=uuid.UUID(int=batch.int + 1))
    store.batches.submit(second)
    assert store.batches.take_to_plan(HOLDER, lease_s=30.0).id == batch
    assert store.batches.take_to_plan(OTHER, lease_s=0.0).id == second.id
    assert store.batches.take_to_plan(HOLDER, lease_s=30.0).id == second.id
    assert store.batches.take_to_plan(OTHER, lease_s=30.0) is None
    assert not store.batches.renew(OTHER, batch, lease_s=9.0)
    assert store.batches.renew(HOLDER, batch, lease_s=0.0)
    assert not store.batches.renew(HOLDER, batch, lease_s=9.0)
    assert store.batches.take_to_plan(OTHER, lease_s=9.0).id == batch


def test_a_released_batch_waits_as_long_as_it_was_told(store, batch):
    """Who does not hold it cannot give it up."""
    store.batches.take_to_plan(HOLDER, lease_s=30.0)
    store.batches.release(OTHER, batch, retry_s=0.0)
    assert store.batches.take_to_plan(OTHER, lease_s=9.0) is None
    store.batches.release(HOLDER, batch, retry_s=30.0)
    assert store.batches.take_to_plan(HOLDER, lease_s=9.0) is None
    assert not store.batches.refuse(HOLDER, batch, [FAULT])


def test_a_plan_makes_all_slices_at_once(store, model, database_url):
    """They are bulk jobs with the batch's tenant, priority and deadline, and carry their payload."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    new = batch_stack.new_batch(tenant_id=3, priority=1, deadline_at=at)
    store.batches.submit(new)
    store.batches.take_to_plan(HOLDER, lease_s=9.0)
    slices = batch_stack.slices_of(new.id, [3] * 2500, rank=7)
    assert not store.batches.plan(OTHER, new.id, slices, model_id=model, note="{}")
    assert store.batches.plan(HOLDER, new.id, slices, model_id=model, note='{"n":1}')
    view = store.batches.read(new.id)
    assert (view.status, view.model, view.slices) == (BatchStatus.IN_PROGRESS, "digits", 2500)
    assert view.counts == Counts(total=7500, queued=7500)
    assert (view.in_progress_at is not None, store.batches.note(new.id)) == (True, '{"n":1}')
    facts = "SELECT DISTINCT tenant_id, model_id, lane::text, priority, deadline_at, rows FROM jobs"
    assert stack.query(database_url, facts) == [(3, model, "bulk", 1, at, 3)]
    (job,) = store.claims.claim(stack.a_worker(store), model, Lane.BULK, rows=1).jobs
    assert job.id == slices[0].job_id
    assert msgspec.json.decode(job.payload, type=Slice) == slices[0].slice
    assert store.batches.note(uuid.uuid4()) is None


def test_a_plan_whose_reply_was_lost_may_be_sent_again(store, model, batch):
    """It tells that it has been done, and does nothing twice."""
    store.batches.take_to_plan(HOLDER, lease_s=9.0)
    slices = batch_stack.slices_of(batch, [1, 2])
    for _ in range(2):
        assert store.batches.plan(HOLDER, batch, slices, model_id=model, note="")
    assert store.batches.read(batch).counts.total == 3
    store.batches.release(HOLDER, batch, retry_s=99.0)
    worker = stack.a_worker(store)
    for job in batch_stack.claimed(store, worker, model, 2):
        store.slices.finish(worker, batch_stack.finished(job))
    _ended(store, batch)


def test_a_plan_that_fails_midway_leaves_nothing(store, model, batch):
    """No slices without their batch, and the other way round."""
    store.batches.take_to_plan(HOLDER, lease_s=9.0)
    slices = batch_stack.slices_of(batch, [1] * 1500)
    twice = [*slices, slices[0]]
    with pytest.raises(Exception, match="duplicate key"):
        store.batches.plan(HOLDER, batch, twice, model_id=model, note="")
    assert store.batches.read(batch).status is BatchStatus.VALIDATING
    assert store.batches.slices(batch) == []
    assert store.batches.plan(HOLDER, batch, slices, model_id=model, note="")


def test_a_batch_without_rows_closes_at_once(store, model):
    """Its counts are 0."""
    batch = batch_stack.planned(store, model, [])
    _ended(store, batch)
    view = store.batches.read(batch)
    assert (view.status, view.counts, view.finalizing_at is not None) == (BatchStatus.COMPLETED, Counts(), True)


def test_a_refused_batch_has_failed_and_says_why(store, batch):
    """Only its planner may refuse it; a repeat is told so."""
    store.batches.take_to_plan(HOLDER, lease_s=9.0)
    assert not store.batches.refuse(OTHER, batch, [FAULT])
    faults = [BatchFault("invalid_json", "No JSON.", line=3), BatchFault("x", "y", param="p")]
    for _ in range(2):
        assert store.batches.refuse(HOLDER, batch, faults)
    view = store.batches.read(batch)
    assert (view.status, view.failed_at is not None) == (BatchStatus.FAILED, True)
    assert [f["line"] for f in json.loads(view.errors)] == [3, None]
    assert store.batches.take_to_plan(HOLDER, lease_s=9.0) is None
    assert store.batches.take_to_end(HOLDER, lease_s=9.0) is None


def test_a_batch_is_taken_to_be_ended_when_all_its_slices_have_ended(store, model):
    """It is closed with the last slice; parts that are not published yet are its holder's business."""
    batch = batch_stack.planned(store, model, [1, 2])
    worker = stack.a_worker(store)
    first, last = batch_stack.claimed(store, worker, model, 2)
    store.slices.finish(worker, batch_stack.finished(first))
    assert store.batches.take_to_end(HOLDER, lease_s=9.0) is None
    assert store.batches.read(batch).status is BatchStatus.IN_PROGRESS
    store.slices.finish(worker, batch_stack.finished(last, staged=Staged(parts=[{"name": "x"}])))
    view = store.batches.take_to_end(HOLDER, lease_s=9.0)
    assert view.status is BatchStatus.FINALIZING
    assert not store.batches.cancel(1, batch)
    assert (view.id, view.counts, view.slices_done) == (batch, Counts(total=3, succeeded=3), 2)
    assert store.batches.take_to_end(OTHER, lease_s=9.0) is None


def test_the_end_freezes_the_counts(store, model, database_url):
    """Whatever becomes of its jobs later; a repeat is told so, anybody else is refused."""
    batch = batch_stack.planned(store, model, [5, 7])
    worker = stack.a_worker(store)
    for job in batch_stack.claimed(store, worker, model, 2):
        store.slices.finish(worker, batch_stack.finished(job, failed=[0]))
    files = {"output_file_id": uuid.uuid4(), "error_file_id": uuid.uuid4()}
    assert not store.batches.end(HOLDER, batch, BatchStatus.COMPLETED)
    store.batches.take_to_end(HOLDER, lease_s=9.0)
    assert not store.batches.end(OTHER, batch, BatchStatus.COMPLETED)
    for _ in range(2):
        assert store.batches.end(HOLDER, batch, BatchStatus.COMPLETED, faults=[FAULT], **files)
    assert not store.batches.end(HOLDER, batch, BatchStatus.FAILED)
    stack.query(database_url, "DELETE FROM jobs")
    view = store.batches.read(batch)
    assert view.counts == Counts(total=12, succeeded=10, failed=2)
    assert (view.slices, view.slices_done, view.rows_per_s) == (2, 2, 0.0)
    assert {name: getattr(view, name) for name in files} == files
    assert json.loads(view.errors)[0]["code"] == "bad_rows"


@pytest.mark.parametrize("status", sorted(BATCH_TERMINAL))
def test_each_end_has_its_time(store, model, status):
    """And only its own; an ended batch does not move."""
    batch = batch_stack.planned(store, model, [])
    _ended(store, batch, status)
    view = store.batches.read(batch)
    assert view.status is status
    assert {s for s in BATCH_TERMINAL if getattr(view, f"{s}_at")} == {status}
    assert not store.batches.cancel(1, batch)
    assert not store.batches.stop(batch, FAULT)


def test_no_move_is_made_from_where_it_is_not_legal(store, model, database_url):
    """Every move from every status, against BATCH_TRANSITIONS."""
    for move, (sources, targets) in BATCH_TRANSITIONS.items():
        for status in BatchStatus:
            new = batch_stack.new_batch()
            store.batches.submit(new)
            ended = "now()" if status in BATCH_TERMINAL else "NULL"
            stack.query(
                database_url,
                f"UPDATE batches SET status = %s, ended_at = {ended}, holder = %s, lease_until = now() WHERE id = %s",
                [status.value, str(HOLDER), str(new.id)],
            )
            call = {
                "plan": lambda b: store.batches.plan(HOLDER, b, [], model_id=model, note=""),
                "refuse": lambda b: store.batches.refuse(HOLDER, b, []),
                "cancel": lambda b: store.batches.cancel(1, b),
                "close": lambda b: store.batches.take_to_end(HOLDER, lease_s=9.0) is not None,
                "end": lambda b: store.batches.end(HOLDER, b, BatchStatus.COMPLETED),
            }[move]
            call(new.id)
            found = store.batches.read(new.id).status
            assert found in targets if status in sources else found is status
            stack.query(database_url, "DELETE FROM batches")


def test_stop_cancels_the_rest_and_the_batch_ends_with_the_reason(store, model):
    """Finished rows stay; its fault comes before those of the end; a second stop changes nothing."""
    batch = batch_stack.planned(store, model, [1, 2, 4])
    worker = stack.a_worker(store)
    done, running = batch_stack.claimed(store, worker, model, 2)
    store.slices.finish(worker, batch_stack.finished(done))
    assert store.batches.stop(batch, FAULT)
    assert not store.batches.stop(batch, BatchFault("other", ""))
    assert not store.slices.finish(worker, batch_stack.finished(running))
    assert store.batches.read(batch).counts == Counts(total=7, succeeded=1, cancelled=6)
    _ended(store, batch, BatchStatus.FAILED, faults=[BatchFault("second", "")])
    assert [f["code"] for f in json.loads(store.batches.read(batch).errors)] == ["bad_rows", "second"]


@pytest.mark.parametrize(
    ("threshold", "failed", "over"),
    [
        (None, 9, False),
        (None, "whole", True),
        (0.1, 2, False),
        (0.1, 3, True),
        (0.5, "whole", False),
        (0.4, "whole", True),
        (0.0, 0, False),
        (0.0, 1, True),
    ],
)
def test_a_batch_is_over_its_threshold_by_the_share_of_its_planned_rows(store, model, threshold, failed, over):
    """Without one, row errors never stop it and a slice that failed as a whole does. 20 rows, 10 a slice."""
    batch = batch_stack.planned(store, model, [10, 10], error_threshold=threshold)
    worker = stack.a_worker(store)
    (job,) = batch_stack.claimed(store, worker, model)
    if failed == "whole":
        store.claims.retry(worker, [Failure(job.id, 1, "e", "m", 0.0)], max_failures=0)
    else:
        store.slices.finish(worker, batch_stack.finished(job, failed=list(range(failed))))
    assert store.batches.over_threshold() == ([batch] if over else [])
    if over:
        store.batches.stop(batch, FAULT)
        assert store.batches.over_threshold() == []


def test_batches_are_pruned_whole_and_the_chore_of_jobs_leaves_them_alone(store, model, database_url):
    """First lines, payloads and results, later the rows; what has not ended stays."""
    batch, kept = batch_stack.planned(store, model, [1, 1, 1]), batch_stack.planned(store, model, [1])
    worker = stack.a_worker(store)
    for job in batch_stack.claimed(store, worker, model, 4):
        store.results.write(job.id, job.attempt, [Chunk(0, 1, b'{"row":0}\n')])
        if job.payload.find(str(batch).encode()) >= 0:
            store.slices.finish(worker, batch_stack.finished(job, failed=[0]))
    _ended(store, batch)
    assert store.chores.prune(results_kept_s=0.0, jobs_kept_s=0.0, keys_kept_s=0.0) == 0
    assert store.batches.prune(results_kept_s=99.0, batches_kept_s=99.0) == 0
    steps = iter(lambda: store.batches.prune(results_kept_s=0.0, batches_kept_s=99.0), 0)
    assert list(steps) == [3, 1]
    view = store.batches.read(batch)
    assert (view.results_pruned, view.counts) == (True, Counts(total=3, failed=3))
    assert list(store.results.read(batch, after=-1, limit=9)) == []
    assert {(s.payload, s.failed, s.rows_failed) for s in store.batches.slices(batch)} == {(b"", None, 1)}
    steps = iter(lambda: store.batches.prune(results_kept_s=0.0, batches_kept_s=0.0), 0)
    assert list(steps) == [3, 1]
    assert store.batches.read(batch) is None
    assert store.batches.read(kept) is not None
    for table in ("slices", "jobs", "job_inputs", "batch_lines"):
        assert stack.query(database_url, f"SELECT count(*) FROM {table}") == [(1,)]


def test_two_schedulers_never_hold_the_same_batch(store, model, database_url):
    """Neither to plan nor to end; together they take all."""
    new = [batch_stack.new_batch() for _ in range(40)]
    for each in new:
        store.batches.submit(each)
    stores = [open_store(database_url, connections=1) for _ in range(2)]
    planned, ended = [], []

    def work(scheduler):
        holder = uuid.uuid4()
        while found := scheduler.batches.take_to_plan(holder, lease_s=30.0):
            assert scheduler.batches.plan(holder, found.id, [], model_id=model, note="")
            planned.append(found.id)
        while found := scheduler.batches.take_to_end(holder, lease_s=30.0):
            assert scheduler.batches.end(holder, found.id, BatchStatus.COMPLETED)
            ended.append(found.id)

    threads = [threading.Thread(target=work, args=(each,)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(planned) == sorted(ended) == sorted(b.id for b in new)
    for each in stores:
        each.close()


def test_a_cancel_that_meets_a_plan_takes_its_slices_too(store, model, batch, monkeypatch):
    """It waits for the plan to be there, and sees all of it."""
    begun = threading.Event()

    def slowly(slices):
        begun.set()
        threading.Event().wait(0.005)
        return columns_of(slices)

    columns_of = batch_moves._columns_of
    monkeypatch.setattr(batch_moves, "_columns_of", slowly)
    monkeypatch.setattr(batch_moves, "_INSERT_STEP", 1)
    store.batches.take_to_plan(HOLDER, lease_s=9.0)
    slices = batch_stack.slices_of(batch, [1] * 50)
    planner = threading.Thread(
        target=store.batches.plan, args=(HOLDER, batch, slices), kwargs={"model_id": model, "note": ""}
    )
    planner.start()
    assert begun.wait(10)
    assert store.batches.cancel(1, batch)
    planner.join(10)
    view = store.batches.read(batch)
    assert (view.status, view.counts) == (BatchStatus.CANCELLING, Counts(total=50, cancelled=50))
