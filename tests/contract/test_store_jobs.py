"""`contract.Jobs`: a submit is stored once however often it is sent, and one bad submit fails alone."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import UTC, datetime

import psycopg2
import pytest
import stack

from batchline.errors import ConflictError, InvalidRequestError, KeyReusedError, StoreUnavailableError
from batchline.job import Admitted, Lane, Status, new_job_id
from batchline.store import open_store


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


def _count(url, table="jobs"):
    return stack.query(url, f"SELECT count(*) FROM {table}")[0][0]


def test_a_submitted_job_reads_back_as_it_was_handed_over(store, model):
    """Nothing is lost or made up on the way in."""
    deadline = datetime(2100, 1, 1, tzinfo=UTC)
    job = stack.new_job(model, rows=3, priority=2, metadata='{"k": "v"}', deadline_at=deadline, lane=Lane.BULK)
    assert store.jobs.submit([job]) == [Admitted(job.id)]
    view = store.jobs.read([job.id, uuid.uuid4()])[job.id]
    assert (view.id, view.tenant_id, view.model, view.version) == (job.id, stack.TENANT, "digits", "1")
    assert (view.status, view.lane, view.priority, view.rows, view.attempt) == (Status.QUEUED, Lane.BULK, 2, 3, 0)
    assert (view.metadata, view.deadline_at, view.position) == ('{"k": "v"}', deadline, 0)
    assert (view.started_at, view.finished_at, view.outputs, view.errors, view.timings) == (None,) * 5


def test_the_same_submit_again_is_the_same_job(store, model, database_url):
    """A lost COMMIT reply is answered by sending the same group again, with keys and without."""
    jobs = [stack.new_job(model), stack.new_job(model, idempotency_key="k", body_hash=b"h")]
    first = store.jobs.submit(jobs)
    assert store.jobs.submit(jobs) == first == [Admitted(job.id) for job in jobs]
    assert _count(database_url) == _count(database_url, "job_inputs") == 2


def test_a_submit_again_does_not_disturb_a_job_that_went_on(store, model):
    """The repeat may come after the job is claimed."""
    job = stack.new_job(model)
    store.jobs.submit([job])
    store.claims.claim(stack.a_worker(store), model, Lane.ONLINE, rows=1)
    assert store.jobs.submit([job]) == [Admitted(job.id)]
    assert store.jobs.read([job.id])[job.id].status is Status.RUNNING


def test_a_key_with_the_same_body_names_the_first_job(store, model, database_url):
    """In one group and across groups; keys are of a tenant."""
    a, b, other = (stack.new_job(model, idempotency_key="k", body_hash=b"h", tenant_id=t) for t in (1, 1, 2))
    assert store.jobs.submit([a, b, other]) == [Admitted(a.id), Admitted(a.id, replayed=True), Admitted(other.id)]
    c = stack.new_job(model, idempotency_key="k", body_hash=b"h")
    assert store.jobs.submit([c]) == [Admitted(a.id, replayed=True)]
    assert _count(database_url) == 2


def test_a_key_with_another_body_is_refused(store, model, database_url):
    """In one group and across groups."""
    a, b = (stack.new_job(model, idempotency_key="k", body_hash=h) for h in (b"1", b"2"))
    first, second = store.jobs.submit([a, b])
    assert first == Admitted(a.id)
    assert isinstance(second, KeyReusedError)
    assert isinstance(store.jobs.submit([b])[0], KeyReusedError)
    assert _count(database_url) == 1


BAD = {
    "NUL in the metadata": {"metadata": "a\0b"},
    "a lone surrogate": {"metadata": "\ud800"},
    "NUL in the key": {"idempotency_key": "a\0b", "body_hash": b"h"},
    "a number too large": {"priority": 40_000},
    "a key without a hash": {"idempotency_key": "k"},
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_bad_submit_fails_alone(store, model, database_url, fault, place):
    """The group is split around it; the others are stored, in the order they came."""
    jobs = [stack.new_job(model, **(BAD[fault] if n == place else {})) for n in range(7)]
    outcomes = store.jobs.submit(jobs)
    assert isinstance(outcomes.pop(place), InvalidRequestError)
    del jobs[place]
    assert outcomes == [Admitted(job.id) for job in jobs]
    assert _count(database_url) == 6


def test_a_key_in_flight_elsewhere_is_a_conflict_within_about_two_seconds(store, model, database_url):
    """The other transaction never ends; its neighbours in the group are stored all the same."""
    jobs = [stack.new_job(model, idempotency_key=f"k{n}", body_hash=b"h") for n in range(8)]
    with stack.connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; INSERT INTO idempotency_keys VALUES (1, 'k5', 'h', gen_random_uuid())")
        begun = time.monotonic()
        outcomes = store.jobs.submit(jobs)
        assert 1.9 < time.monotonic() - begun < 3.5
        assert isinstance(outcomes[5], ConflictError)
        assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Admitted)] == [0, 1, 2, 3, 4, 6, 7]
        cursor.execute("ROLLBACK")
    assert store.jobs.submit(jobs[5:6]) == [Admitted(jobs[5].id)]


def test_a_key_that_is_committed_within_two_seconds_is_replayed(store, model, database_url):
    """Whoever waits for the first gets its answer."""
    job, first = stack.new_job(model, idempotency_key="k", body_hash=b"h"), new_job_id()
    with stack.connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; INSERT INTO idempotency_keys VALUES (1, 'k', 'h', %s)", [str(first)])
        timer = threading.Timer(0.2, lambda: cursor.execute("COMMIT"))
        timer.start()
        assert store.jobs.submit([job]) == [Admitted(first, replayed=True)]
        timer.join()


def test_groups_with_the_same_keys_in_opposite_order_do_not_fail(database_url, model):
    """Sixty rounds of two processes: without an order of locks half of them end in a deadlock."""
    stores = [open_store(database_url, connections=1) for _ in range(2)]
    barrier, outcomes = threading.Barrier(2), [[], []]

    def submit(side):
        for round_ in range(60):
            names = [f"{round_}-{n}" for n in range(20)]
            keys = names[::-1] if side else names
            jobs = [stack.new_job(model, idempotency_key=key, body_hash=b"h") for key in keys]
            barrier.wait(20)
            outcomes[side].append(dict(zip(keys, stores[side].jobs.submit(jobs), strict=True)))

    threads = [threading.Thread(target=submit, args=(side,)) for side in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes[0]) == len(outcomes[1]) == 60
    for here, there in zip(*outcomes, strict=True):
        assert {key: outcome.id for key, outcome in here.items()} == {key: o.id for key, o in there.items()}
    assert _count(database_url) == 60 * 20
    for store in stores:
        store.close()


def test_positions_are_exact_up_to_a_thousand(store, model):
    """A job further back is told no number."""
    jobs = [stack.new_job(model, rank=n) for n in range(1003)]
    store.jobs.submit(jobs)
    views = store.jobs.read([job.id for job in jobs])
    assert [views[jobs[n].id].position for n in (0, 1, 999, 1000, 1001, 1002)] == [0, 1, 999, 1000, None, None]


def test_a_list_pages_from_the_newest_and_filters(store, model):
    """Without results, within one tenant."""
    other = store.catalogue.register_model(stack.a_spec("other"))
    jobs = [stack.new_job(other if n % 2 else model) for n in range(6)]
    store.jobs.submit([*jobs, stack.new_job(model, tenant_id=2)])
    store.jobs.cancel(stack.TENANT, [jobs[0].id])
    newest_first = [job.id for job in sorted(jobs, key=lambda job: job.id, reverse=True)]

    def ids(status=None, model=None, after=None, limit=10):
        return [v.id for v in store.jobs.list(stack.TENANT, status=status, model=model, after=after, limit=limit)]

    assert ids() == newest_first
    assert ids(limit=2) + ids(after=newest_first[1], limit=10) == newest_first
    assert ids(status=Status.CANCELLED) == [jobs[0].id]
    assert set(ids(model="other", status=Status.QUEUED)) == {jobs[n].id for n in (1, 3, 5)}


def test_terminal_tells_who_has_ended(store, model):
    """Unknown ids have not."""
    jobs = [stack.new_job(model) for _ in range(3)]
    store.jobs.submit(jobs)
    store.jobs.cancel(stack.TENANT, [jobs[1].id])
    assert store.jobs.terminal([*(job.id for job in jobs), uuid.uuid4()]) == {jobs[1].id}


def test_cancel_takes_only_the_tenants_own(store, model):
    """Queued and running are cancelled, once; a foreign id is as unknown as any."""
    jobs = [stack.new_job(model, rank=n) for n in range(3)]
    store.jobs.submit(jobs)
    store.claims.claim(stack.a_worker(store), model, Lane.ONLINE, rows=1)
    ids = [job.id for job in jobs]
    assert store.jobs.cancel(2, ids) == set()
    assert store.jobs.cancel(stack.TENANT, [*ids[:2], uuid.uuid4()]) == set(ids[:2])
    assert store.jobs.cancel(stack.TENANT, ids[:2]) == set()
    view = store.jobs.read(ids[:1])[ids[0]]
    assert view.status is Status.CANCELLED
    assert view.finished_at is not None


def test_an_absent_server_is_an_error_of_ours():
    """No driver's exception leaves the store, and it may be tried again."""
    store = open_store("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailableError) as caught:
        store.jobs.submit([stack.new_job()])
    assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
    assert caught.value.retryable


def test_a_connection_that_died_in_the_pool_is_replaced(store, model, database_url):
    """What may be repeated is repeated on a fresh connection, and the caller does not notice."""
    store.db.ping()
    stack.query(
        database_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'batchline'"
    )
    assert store.jobs.submit([job := stack.new_job(model)]) == [Admitted(job.id)]
