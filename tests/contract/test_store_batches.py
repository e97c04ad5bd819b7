"""`batch_contract.Batches` as clients see it: submitted once, counted exactly, cancelled and paused whole."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import batch_stack
import pytest
import stack

from batchline.batch import BatchFault, BatchStatus, Counts, Staged, bits_to_rows
from batchline.errors import ConflictError, InvalidRequestError, KeyReusedError, QuotaError
from batchline.job import Admitted, Status, new_job_id
from batchline.store import batches
from batchline.store.contract import Failure

HOLDER = batch_stack.HOLDER


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


def test_a_batch_is_read_back_as_it_was_submitted(store, model):
    """Every field of NewBatch; without slices every count is 0."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    ids = {name: uuid.uuid4() for name in ("input_file_id", "parent_id", "schedule_id")}
    batch = batch_stack.new_batch(
        kind="requests", model_id=model, priority=2, deadline_at=at, error_threshold=0.5, metadata='{"k":"v"}',
        fire_at=at, **ids,
    )  # fmt: skip
    assert store.batches.submit(batch) == Admitted(batch.id)
    assert store.batches.submit(batch) == Admitted(batch.id)
    view = store.batches.read(batch.id)
    assert (view.id, view.tenant_id, view.kind, view.body, view.model, view.version) == (
        batch.id, 1, "requests", batch.body, "digits", "1",
    )  # fmt: skip
    assert (view.status, view.priority, view.error_threshold, view.metadata) == ("validating", 2, 0.5, '{"k":"v"}')
    assert (view.deadline_at, view.fire_at) == (at, at)
    assert {name: getattr(view, name) for name in ids} == ids
    assert (view.counts, view.rows_per_s, view.slices, view.slices_done) == (Counts(), 0.0, 0, 0)
    assert store.batches.read(uuid.uuid4()) is None


def test_an_idempotency_key_names_the_first_batch(store):
    """As for jobs, and the same key space: another body is refused, another tenant's key is another key."""
    first = batch_stack.new_batch(idempotency_key="k", body_hash=b"1")
    assert store.batches.submit(first) == Admitted(first.id)
    assert store.batches.submit(first) == Admitted(first.id)
    again = batch_stack.new_batch(idempotency_key="k", body_hash=b"1")
    assert store.batches.submit(again) == Admitted(first.id, replayed=True)
    assert store.batches.read(again.id) is None
    other = store.batches.submit(batch_stack.new_batch(idempotency_key="k", body_hash=b"2"))
    assert isinstance(other, KeyReusedError)
    theirs = batch_stack.new_batch(idempotency_key="k", body_hash=b"2", tenant_id=2)
    assert store.batches.submit(theirs) == Admitted(theirs.id)
    (job,) = store.jobs.submit([stack.new_job(idempotency_key="k", body_hash=b"3")])
    assert isinstance(job, KeyReusedError)


def test_a_tenant_has_so_many_open_batches_and_no_more(store, model):
    """However many submit at once. A repeat is no batch more, what has ended makes room, others have their own."""
    first = batch_stack.new_batch(idempotency_key="k", body_hash=b"1")
    store.batches.submit(first)
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: store.batches.submit(batch_stack.new_batch(), most=3), range(18)))
    refused = [answer for answer in answers if isinstance(answer, QuotaError)]
    assert (len(answers) - len(refused), len(store.batches.list(1, after=None, limit=99).batches)) == (2, 3)
    assert {error.retry_after_s for error in refused} == {300.0}
    assert store.batches.submit(first, most=3) == Admitted(first.id)
    late = batch_stack.new_batch(idempotency_key="late", body_hash=b"1")
    assert isinstance(store.batches.submit(late, most=3), QuotaError)
    theirs = batch_stack.new_batch(tenant_id=2)
    assert store.batches.submit(theirs, most=1) == Admitted(theirs.id)
    assert store.batches.submit(theirs, most=1) == Admitted(theirs.id)
    store.db.run("UPDATE batches SET ended_at = now(), status = 'completed' WHERE id = %(id)s", {"id": first.id})
    assert store.batches.submit(late, most=3) == Admitted(late.id)
    for _ in range(11):
        store.batches.submit(done := batch_stack.new_batch())
        store.db.run("UPDATE batches SET ended_at = now(), status = 'failed' WHERE id = %(id)s", {"id": done.id})
    paced = store.batches.submit(batch_stack.new_batch(), most=3)
    assert isinstance(paced, QuotaError)
    assert paced.retry_after_s == 50.0, "twelve ended within ten minutes"


def test_a_key_in_flight_is_a_conflict(store, database_url):
    """After two seconds; then nothing of the second batch is stored."""
    batch = batch_stack.new_batch(idempotency_key="k", body_hash=b"1")
    with stack.connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; INSERT INTO idempotency_keys VALUES (1, 'k', '1', gen_random_uuid())")
        assert isinstance(store.batches.submit(batch), ConflictError)
    assert store.batches.read(batch.id) is None


def test_what_postgres_does_not_take_is_refused(store):
    """It is the caller's to mend, and nothing is stored."""
    assert isinstance(store.batches.submit(batch_stack.new_batch(metadata="\0")), InvalidRequestError)
    assert isinstance(store.batches.submit(batch_stack.new_batch(priority=10**9)), InvalidRequestError)


def test_a_tenants_batches_are_listed_newest_first(store):
    """By pages; `after` need not exist any more."""
    mine = [batch_stack.new_batch() for _ in range(4)]
    for batch in (*mine, batch_stack.new_batch(tenant_id=2)):
        store.batches.submit(batch)
    newest = sorted((b.id for b in mine), reverse=True)
    assert [b.id for b in store.batches.list(1, after=None, limit=2).batches] == newest[:2]
    assert [b.id for b in store.batches.list(1, after=newest[1], limit=9).batches] == newest[2:]
    assert [b.id for b in store.batches.list(1, after=new_job_id(), limit=9).batches] == newest


def test_a_page_counts_so_many_slices_and_no_more(store, model, monkeypatch):
    """It ends before the batch that would be too much, and says so; a batch alone is shown however large it is."""
    monkeypatch.setattr(batches, "_PAGE_SLICES", 5)
    made = [batch_stack.planned(store, model, [1] * count) for count in (1, 2, 9, 2, 3, 1)]
    pages, after = [], None
    while True:
        page = store.batches.list(1, after=after, limit=4)
        pages.append([b.counts.queued for b in page.batches])
        after = page.batches[-1].id
        if not page.has_more:
            break
    assert pages == [[1, 3], [2], [9], [2, 1]]
    store.db.run("UPDATE batches SET ended_at = now() WHERE id = %(id)s", {"id": made[2]})
    assert [len(store.batches.list(1, after=a, limit=4).batches) for a in (made[4], made[3])] == [4, 3]
    store.batches.pause(1, made[5])
    assert store.batches.sharing(1, most=3) == 2


def test_counts_are_rows_by_the_fate_of_their_slices(store, model, database_url):
    """Each status has its own; a finished slice counts the rows that it found, not those that were planned."""
    batch = batch_stack.planned(store, model, [10, 20, 30, 40, 50, 60, 70])
    worker = stack.a_worker(store)
    good, bad, whole, running = batch_stack.claimed(store, worker, model, 4)
    assert store.slices.finish(worker, batch_stack.finished(good, rows=11, failed=[1, 2]))
    assert store.slices.finish(worker, batch_stack.finished(bad, failed=list(range(20))))
    failure = Failure(whole.id, whole.attempt, "source_error", "the file changed", 0.0)
    assert store.claims.retry(worker, [failure], max_failures=1) == {whole.id: "failed"}
    rest = [s.job_id for s in store.batches.slices(batch, after=3)]
    store.jobs.cancel(1, [rest[0]])
    stack.query(database_url, "UPDATE jobs SET deadline_at = now() WHERE id = %s", [str(rest[1])])
    assert store.chores.expire() == 1
    view = store.batches.read(batch)
    assert view.counts == Counts(
        total=11 + 20 + 30 + 40 + 50 + 60 + 70, succeeded=9, failed=2 + 20 + 30, cancelled=50, expired=60, running=40,
        queued=70,
    )  # fmt: skip
    assert (view.slices, view.slices_done, running.rows) == (7, 5, 40)


def test_slices_tell_how_they_ended(store, model):
    """By number, in pages; which rows failed, why a whole slice failed, what was staged."""
    batch = batch_stack.planned(store, model, [4, 5, 6])
    worker = stack.a_worker(store)
    first, second = batch_stack.claimed(store, worker, model, 2)
    staged = Staged(parts=[{"name": "p"}], rows=4, errors=2, bytes=9)
    store.slices.finish(worker, batch_stack.finished(first, failed=[3, 1], staged=staged))
    store.claims.retry(worker, [Failure(second.id, 1, "sink_error", "disk full", 0.0)], max_failures=0)
    one, two, three = store.batches.slices(batch)
    assert (one.job_id, one.number, one.status, one.attempt, one.rows, one.rows_failed) == (
        first.id, 0, "succeeded", 1, 4, 2,
    )  # fmt: skip
    assert bits_to_rows(one.failed) == [1, 3]
    assert (one.staged, one.published, one.code, one.message) == (staged, False, None, None)
    assert (two.status, two.code, two.message, two.rows_failed) == ("failed", "sink_error", "disk full", 5)
    assert (two.failed, two.staged) == (None, None)
    assert (three.status, three.attempt, three.payload) == ("queued", 0, three.payload)
    assert [s.number for s in store.batches.slices(batch, after=0, limit=1)] == [1]


def test_slices_show_in_no_list_of_jobs_but_their_batchs(store, model):
    """A tenant sees only its own; the errors of a whole slice are one, however many rows it has."""
    batch = batch_stack.planned(store, model, [1000, 1])
    online = stack.new_job(model)
    store.jobs.submit([online])
    none = {"status": None, "model": None, "after": None, "limit": 9}
    assert [j.id for j in store.jobs.list(1, **none)] == [online.id]
    ids = [s.job_id for s in store.batches.slices(batch)]
    assert [j.id for j in store.jobs.list(1, **none, batch=batch)] == sorted(ids, reverse=True)
    assert store.jobs.list(2, **none, batch=batch) == []
    worker = stack.a_worker(store)
    (job,) = batch_stack.claimed(store, worker, model)
    store.claims.retry(worker, [Failure(job.id, 1, "e", "m", 0.0)], max_failures=0)
    view = store.jobs.read([job.id])[job.id]
    assert view.errors == '[{"row" : null, "code" : "e", "message" : "m"}]'
    assert [j.id for j in store.jobs.list(1, **none | {"status": Status.FAILED}, batch=batch)] == [job.id]


@pytest.mark.parametrize("status", ["validating", "in_progress"])
def test_cancel_takes_what_has_not_finished(store, model, status):
    """Finished rows stay; slices that run lose their claim; a second cancel is too late, and so is another tenant's."""
    if status == "validating":
        batch = batch_stack.new_batch()
        store.batches.submit(batch)
        batch = batch.id
    else:
        batch = batch_stack.planned(store, model, [1, 2, 3])
        worker = stack.a_worker(store)
        done, running = batch_stack.claimed(store, worker, model, 2)
        store.slices.finish(worker, batch_stack.finished(done))
    assert not store.batches.cancel(2, batch)
    assert store.batches.cancel(1, batch)
    assert not store.batches.cancel(1, batch)
    view = store.batches.read(batch)
    assert view.status is BatchStatus.CANCELLING
    assert view.cancelling_at is not None
    if status == "in_progress":
        assert view.counts == Counts(total=6, succeeded=1, cancelled=5)
        assert not store.slices.progress(worker, running, 1)
        assert not store.slices.finish(worker, batch_stack.finished(running))
    assert store.batches.take_to_end(HOLDER, lease_s=9.0).id == batch
    assert store.batches.end(HOLDER, batch, BatchStatus.CANCELLED)
    assert not store.batches.cancel(1, batch)


def test_a_batch_cancelled_while_it_is_planned_is_never_planned(store, model):
    """Its planner finds it gone, and can neither plan nor refuse it nor renew its lease."""
    batch = batch_stack.new_batch()
    store.batches.submit(batch)
    assert store.batches.take_to_plan(HOLDER, lease_s=30.0).id == batch.id
    assert store.batches.cancel(1, batch.id)
    assert not store.batches.renew(HOLDER, batch.id, lease_s=9.0)
    assert not store.batches.plan(HOLDER, batch.id, batch_stack.slices_of(batch.id, [1]), model_id=model, note="")
    assert not store.batches.refuse(HOLDER, batch.id, [BatchFault("c", "m")])
    assert store.batches.slices(batch.id) == []
    assert store.batches.take_to_end(HOLDER, lease_s=9.0).id == batch.id


def test_pause_takes_queued_slices_out_of_the_queue_and_resume_puts_them_back(store, model):
    """Running ones finish; both may be said twice, and only of a batch that has not ended."""
    batch = batch_stack.planned(store, model, [1, 2, 3])
    worker = stack.a_worker(store)
    (running,) = batch_stack.claimed(store, worker, model)
    assert not store.batches.pause(2, batch)
    assert store.batches.pause(1, batch)
    paused_at = store.batches.read(batch).paused_at
    assert store.batches.pause(1, batch)
    assert store.batches.read(batch).paused_at == paused_at is not None
    assert batch_stack.claimed(store, worker, model) == []
    assert store.chores.release() == 0
    assert store.chores.waiting() == []
    store.chores.count_backlog(every_s=0.0)
    assert store.chores.backlog() == []
    (waiting, *_) = store.jobs.list(1, status=None, model=None, after=None, limit=1, batch=batch)
    assert waiting.run_at is None
    assert store.slices.finish(worker, batch_stack.finished(running))
    assert store.batches.resume(1, batch)
    assert store.batches.resume(1, batch)
    assert store.batches.read(batch).paused_at is None
    assert len(batch_stack.claimed(store, worker, model, 2)) == 2
    assert store.batches.cancel(1, batch)
    assert not store.batches.pause(1, batch)
    assert not store.batches.resume(1, batch)


def test_a_batch_paused_before_it_is_planned_waits_with_all_its_slices(store, model):
    """No slice is claimable in between."""
    batch = batch_stack.new_batch()
    store.batches.submit(batch)
    assert store.batches.pause(1, batch.id)
    store.batches.take_to_plan(HOLDER, lease_s=9.0)
    store.batches.plan(HOLDER, batch.id, batch_stack.slices_of(batch.id, [1, 1]), model_id=model, note="")
    worker = stack.a_worker(store)
    assert batch_stack.claimed(store, worker, model) == []
    assert store.batches.resume(1, batch.id)
    assert len(batch_stack.claimed(store, worker, model, 2)) == 2


@pytest.mark.parametrize("back", ["give back", "retry", "rescue"])
def test_slices_of_a_paused_batch_that_come_back_are_held_again(store, model, database_url, back):
    """Once none can come back the batch is left alone, until it is resumed and paused again."""
    batch = batch_stack.planned(store, model, [1, 1])
    worker = stack.a_worker(store)
    (job,) = batch_stack.claimed(store, worker, model)
    store.batches.pause(1, batch)
    assert store.batches.hold_paused() == 0
    if back == "give back":
        store.claims.give_back(worker, [job])
    elif back == "retry":
        store.claims.retry(worker, [Failure(job.id, 1, "e", "m", 0.0)], max_failures=9)
    else:
        store.workers.bury([worker])
        store.chores.rescue(max_failures=3)
    assert store.batches.hold_paused() == 1
    assert store.batches.hold_paused() == 0
    assert stack.query(database_url, "SELECT held FROM batches") == [(True,)]
    assert stack.query(database_url, "SELECT count(*) FROM jobs WHERE run_at = 'infinity'") == [(2,)]
    assert store.batches.resume(1, batch)
    assert stack.query(database_url, "SELECT count(*) FROM jobs WHERE run_at IS NULL") == [(2,)]
    store.batches.pause(1, batch)
    assert stack.query(database_url, "SELECT held FROM batches") == [(False,)]


def test_the_rate_is_of_the_last_minute(store, model, database_url):
    """A slice that ran for two minutes and ended now counts half; rows of a running one count by its progress."""
    batch = batch_stack.planned(store, model, [1200, 600, 60, 60])
    worker = stack.a_worker(store)
    long, running, old, lost = batch_stack.claimed(store, worker, model, 4)
    assert store.slices.progress(worker, running, 300)
    store.slices.progress(worker, lost, 60)
    store.claims.give_back(worker, [lost])
    for job in (long, old):
        store.slices.finish(worker, batch_stack.finished(job))
    move = "UPDATE jobs SET started_at = now() - %s * interval '1 s', finished_at = {} WHERE id = %s"
    stack.query(database_url, move.format("now()"), [120, str(long.id)])
    stack.query(database_url, move.format("finished_at"), [30, str(running.id)])
    stack.query(database_url, move.format("now() - interval '61 seconds'"), [62, str(old.id)])
    stack.query(database_url, "UPDATE batches SET in_progress_at = now() - interval '1 hour'")
    assert store.batches.read(batch).rows_per_s == pytest.approx((600 + 300) / 60, rel=0.05)
    stack.query(database_url, "UPDATE batches SET in_progress_at = now() - interval '30 seconds'")
    assert store.batches.read(batch).rows_per_s == pytest.approx((600 + 300) / 30, rel=0.05)
