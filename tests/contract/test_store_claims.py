"""`contract.Claims`: a job is in one pair of hands, and whoever lost it changes nothing."""

from __future__ import annotations

import json
import threading
import time

import pytest
import stack

from batchline.errors import InvalidRequestError
from batchline.job import TERMINAL, TRANSITIONS, Lane, Move, Status
from batchline.store import open_store
from batchline.store.contract import Claim, Failure, Head


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


def _submit(store, model, *sizes, **changes):
    jobs = [stack.new_job(model, rank=n + 1, rows=rows, **changes) for n, rows in enumerate(sizes)]
    store.jobs.submit(jobs)
    return [job.id for job in jobs]


def _claim(store, worker, model, rows=100, lane=Lane.ONLINE, **more):
    return store.claims.claim(worker, model, lane, rows=rows, **more)


def _row(url, job, columns="status, attempt, failures"):
    return stack.query(url, f"SELECT {columns} FROM jobs WHERE id = %s", [str(job)])[0]


def _failure(job, **changes):
    return Failure(job.id, job.attempt, "model_error", "It broke.", 0.0, **changes)


def test_jobs_come_in_order_of_rank_with_their_rows(store, model):
    """The claim carries payload, attempt and time in the queue."""
    jobs = [stack.new_job(model, rank=rank, payload=bytes([rank])) for rank in (3, 1, 2)]
    store.jobs.submit(jobs)
    claim = _claim(store, stack.a_worker(store), model)
    assert [job.payload for job in claim.jobs] == [b"\1", b"\2", b"\3"]
    assert {(job.attempt, job.failures, job.suspect, job.tenant_id) for job in claim.jobs} == {(1, 0, False, 1)}
    assert all(0 <= job.queued_ms < 60_000 for job in claim.jobs)


@pytest.mark.parametrize(
    ("sizes", "rows", "expected"),
    [
        ((1, 1, 1), 2, (2, True)),
        ((1, 1, 1), 3, (3, False)),
        ((5, 1), 3, (1, True)),  # the first one always fits
        ((2, 5, 1), 4, (1, True)),  # nobody overtakes the one that does not fit
        ((2, 2, 1), 5, (3, False)),
        ((), 5, (0, False)),
    ],
)
def test_rows_fill_the_claim_in_order(store, model, sizes, rows, expected):
    """Jobs are taken by rank while their rows fit; `more` says whether any was left."""
    ids = _submit(store, model, *sizes)
    claim = _claim(store, stack.a_worker(store), model, rows=rows)
    assert [job.id for job in claim.jobs] == ids[: expected[0]]
    assert (len(claim.jobs), claim.more) == expected


def test_payloads_bound_a_claim(store, model, database_url):
    """64 MiB at once, in order of rank; what goes beyond stays queued, uncharged. A larger one comes alone."""
    sizes = {"a": 30, "b": 30, "c": 30, "d": 1, "e": 70, "f": 1}
    jobs = {
        name: stack.new_job(model, rank=rank, payload=bytes(mib * 2**20))
        for rank, (name, mib) in enumerate(sizes.items(), 1)
    }
    for job in jobs.values():
        store.jobs.submit([job])
    name_of = {job.id: name for name, job in jobs.items()}
    worker = stack.a_worker(store)
    claims = []
    while (claim := _claim(store, worker, model)).jobs:
        claims.append(claim)
        assert all(len(job.payload) == sizes[name_of[job.id]] * 2**20 for job in claim.jobs)
        store.claims.finish(worker, [stack.done(job) for job in claim.jobs])
    assert [("".join(name_of[job.id] for job in c.jobs), c.more) for c in claims] == [
        ("ab", True), ("cd", True), ("e", True), ("f", False),
    ]  # fmt: skip
    assert {_row(database_url, job.id)[2] for job in jobs.values()} == {0}
    assert store.claims.reconcile(worker, []) == set()


def test_model_lane_and_floor_bound_a_claim(store, model):
    """A claim sees its own queue only, from its floor on."""
    worker = stack.a_worker(store)
    ids = _submit(store, model, 1, 1, 1)
    assert not _claim(store, worker, model + 1).jobs
    assert not _claim(store, worker, model, lane=Lane.BULK).jobs
    assert [job.id for job in _claim(store, worker, model, floor=2).jobs] == ids[1:]


def test_a_job_that_waits_and_a_suspect_are_not_in_the_queue(store, model, database_url):
    """The one until it is released, the other for claim_suspect alone."""
    waits, suspect, plain = _submit(store, model, 1, 1, 1)
    stack.query(database_url, "UPDATE jobs SET run_at = now() WHERE id = %s", [str(waits)])
    stack.query(database_url, "UPDATE jobs SET suspect = true WHERE id = %s", [str(suspect)])
    worker = stack.a_worker(store)
    assert store.claims.heads("cpu", Lane.ONLINE) == [Head(model, 2, suspect=True), Head(model, 3, suspect=False)]
    assert store.claims.heads("cpu", Lane.BULK) == []
    assert store.claims.heads("gpu", Lane.ONLINE) == []
    assert [job.id for job in _claim(store, worker, model).jobs] == [plain]
    assert not store.claims.claim_suspect(worker, model, Lane.BULK).jobs
    (taken,) = store.claims.claim_suspect(worker, model).jobs
    assert (taken.id, taken.suspect) == (suspect, True)
    assert store.claims.claim_suspect(worker, model) == Claim([], more=False)
    assert store.chores.release() == 1
    assert [job.id for job in _claim(store, worker, model).jobs] == [waits]


def test_heads_come_by_rank_from_the_floor(store, model):
    """One per model, for the worker to choose by."""
    other = store.catalogue.register_model(stack.a_spec("other"))
    store.jobs.submit([stack.new_job(model, rank=5), stack.new_job(model, rank=9), stack.new_job(other, rank=3)])
    assert [(h.model_id, h.rank) for h in store.claims.heads("cpu", Lane.ONLINE)] == [(other, 3), (model, 5)]
    assert [(h.model_id, h.rank) for h in store.claims.heads("cpu", Lane.ONLINE, floor=6)] == [(model, 9)]


@pytest.mark.parametrize("why", ["dead", "draining", "unknown"])
def test_a_worker_that_is_not_live_claims_nothing(store, model, database_url, why):
    """Its lease has run out, it drains, or nobody knows it."""
    (job,) = _submit(store, model, 1)
    worker = stack.a_worker(store)
    if why == "dead":
        store.workers.bury([worker])
    elif why == "draining":
        store.workers.drain(worker)
    else:
        stack.query(database_url, "DELETE FROM workers")
    assert _claim(store, worker, model) == Claim([], more=False)
    stack.query(database_url, "UPDATE jobs SET suspect = true")
    assert not store.claims.claim_suspect(worker, model).jobs
    assert _row(database_url, job) == ("queued", 0, 0)


def test_two_workers_never_get_the_same_job(database_url, store, model):
    """Four connections claim at once until the queue is empty: every job once, and nobody waits for a lock."""
    ids = _submit(store, model, *[1] * 400)
    stores = [open_store(database_url, connections=1) for _ in range(4)]
    got = [[] for _ in stores]
    barrier = threading.Barrier(4)

    def work(n):
        worker = stack.a_worker(stores[n])
        barrier.wait(10)
        until = time.monotonic() + 20
        while len([job for jobs in got for job in jobs]) < len(ids) and time.monotonic() < until:
            got[n] += [job.id for job in _claim(stores[n], worker, model, rows=7).jobs]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(job for jobs in got for job in jobs) == sorted(ids)
    for each in stores:
        each.close()


def test_a_claim_passes_by_what_another_transaction_holds(store, model, database_url):
    """SKIP LOCKED: a worker that is being slow holds up nobody."""
    first, second = _submit(store, model, 1, 1)
    with stack.connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", [str(first)])
        assert [job.id for job in _claim(store, stack.a_worker(store), model).jobs] == [second]


def test_a_finished_job_has_status_and_result(store, model):
    """Good and bad ends in one call."""
    worker = stack.a_worker(store)
    good, bad = _submit(store, model, 1, 2)
    jobs = _claim(store, worker, model).jobs
    errors = '[{"row": 0, "code": "row_error", "message": "no"}]'
    ends = [
        stack.done(jobs[0]),
        stack.done(jobs[1], Status.FAILED, outputs=None, errors=errors, rows_failed=2, code="row_error"),
    ]
    assert store.claims.finish(worker, ends) == {good, bad}
    views = store.jobs.read([good, bad])
    assert (views[good].status, views[good].outputs, views[good].timings) == (Status.SUCCEEDED, '[{"label": 7}]', "{}")
    assert (views[bad].status, views[bad].errors, views[bad].rows_failed, views[bad].code) == (
        "failed",
        errors,
        2,
        "row_error",
    )
    assert views[good].finished_at is not None


def test_a_finish_that_is_sent_again_is_accepted_once(store, model, database_url):
    """After a lost reply the worker learns that it had finished, and there is one result: the first."""
    worker = stack.a_worker(store)
    (job,) = _submit(store, model, 1)
    (claimed,) = _claim(store, worker, model).jobs
    assert store.claims.finish(worker, [stack.done(claimed)]) == {job}
    assert store.claims.finish(worker, [stack.done(claimed, outputs="[0]")]) == {job}
    assert stack.query(database_url, "SELECT outputs::text FROM job_results") == [('[{"label": 7}]',)]


LOST = {
    "cancelled": lambda s, url, job, worker: s.jobs.cancel(stack.TENANT, [job.id]),
    "rescued": lambda s, url, job, worker: (s.workers.bury([worker]), s.chores.rescue(max_failures=3)),
    "given back": lambda s, url, job, worker: s.claims.give_back(worker, [job]),
    "retried": lambda s, url, job, worker: s.claims.retry(worker, [_failure(job)], max_failures=3),
    "given back and taken again": lambda s, url, job, worker: (
        s.claims.give_back(worker, [job]),
        _claim(s, worker, job.model_id),
    ),
    "taken by another": lambda s, url, job, worker: (
        s.claims.give_back(worker, [job]),
        _claim(s, stack.a_worker(s), job.model_id),
    ),
}


@pytest.mark.parametrize("how", LOST)
def test_a_stale_worker_changes_nothing(store, model, database_url, how):
    """Whoever lost a job may finish, retry, give back and expose it as often as it likes."""
    worker = stack.a_worker(store)
    _submit(store, model, 1)
    (claimed,) = _claim(store, worker, model).jobs
    LOST[how](store, database_url, claimed, worker)
    before = stack.query(database_url, "SELECT * FROM jobs")
    assert store.claims.finish(worker, [stack.done(claimed)]) == set()
    assert store.claims.retry(worker, [_failure(claimed)], max_failures=1) == {}
    assert store.claims.give_back(worker, [claimed]) == set()
    assert not store.claims.expose(worker, claimed)
    assert stack.query(database_url, "SELECT * FROM jobs") == before
    assert stack.query(database_url, "SELECT * FROM job_results") == []


def test_another_workers_job_is_out_of_reach(store, model, database_url):
    """The right attempt in the wrong hands is stale too."""
    _submit(store, model, 1)
    (claimed,) = _claim(store, stack.a_worker(store), model).jobs
    other = stack.a_worker(store)
    before = stack.query(database_url, "SELECT * FROM jobs")
    assert store.claims.finish(other, [stack.done(claimed)]) == set()
    assert store.claims.retry(other, [_failure(claimed)], max_failures=1) == {}
    assert store.claims.give_back(other, [claimed]) == set()
    assert stack.query(database_url, "SELECT * FROM jobs") == before


def _expire(s, url, job, worker):
    stack.query(url, "UPDATE jobs SET deadline_at = now() - interval '1 second'")
    return s.chores.expire()


MOVES = {
    Move.CLAIM: lambda s, url, job, worker: len(_claim(s, worker, job.model_id).jobs),
    Move.FINISH: lambda s, url, job, worker: len(s.claims.finish(worker, [stack.done(job)])),
    Move.RETRY: lambda s, url, job, worker: len(s.claims.retry(worker, [_failure(job)], max_failures=3)),
    Move.GIVE_BACK: lambda s, url, job, worker: len(s.claims.give_back(worker, [job])),
    Move.RESCUE: lambda s, url, job, worker: (s.workers.bury([worker]), s.chores.rescue(max_failures=3).requeued)[1],
    Move.POISON: lambda s, url, job, worker: (s.workers.bury([worker]), s.chores.rescue(max_failures=1).poisoned)[1],
    Move.CANCEL: lambda s, url, job, worker: len(s.jobs.cancel(stack.TENANT, [job.id])),
    Move.EXPIRE: _expire,
}


@pytest.mark.parametrize("move", Move)
@pytest.mark.parametrize("status", Status)
def test_every_move_is_made_from_its_statuses_and_no_other(store, model, database_url, status, move):
    """The transition table against the SQL: the fence fits, so the status alone decides."""
    worker = stack.a_worker(store)
    (job,) = _submit(store, model, 1)
    (claimed,) = _claim(store, worker, model).jobs
    # What this attempt has finished counts as finished when it is sent again: an ended job is another attempt's.
    attempt = 2 if status in TERMINAL else 1
    change = "UPDATE jobs SET status = %s, exposed = %s, attempt = %s"
    stack.query(database_url, change, [status, move is Move.POISON, attempt])
    changed = MOVES[move](store, database_url, claimed, worker)
    after = Status(_row(database_url, job)[0])
    sources, targets = TRANSITIONS[move]
    assert changed == (status in sources)
    assert after in targets if changed else after is status


def test_a_finish_to_a_status_that_does_not_finish_is_not_made(store, model, database_url):
    """FINISH ends in succeeded or failed, whatever the caller says."""
    worker = stack.a_worker(store)
    (job,) = _submit(store, model, 1)
    (claimed,) = _claim(store, worker, model).jobs
    for status in set(Status) - TRANSITIONS[Move.FINISH][1]:
        assert store.claims.finish(worker, [stack.done(claimed, status)]) == set()
    assert _row(database_url, job)[0] == "running"


@pytest.mark.parametrize("text", ["{not JSON", "\0"])
def test_a_result_that_cannot_be_stored_stores_nothing(store, model, database_url, text):
    """The group is refused as a whole, and can be sent again without the bad one."""
    worker = stack.a_worker(store)
    _submit(store, model, 1, 1)
    one, two = _claim(store, worker, model).jobs
    with pytest.raises(InvalidRequestError):
        store.claims.finish(worker, [stack.done(one), stack.done(two, outputs=text)])
    assert stack.query(database_url, "SELECT * FROM job_results") == []
    assert store.claims.finish(worker, [stack.done(one)]) == {one.id}


def test_a_retry_waits_is_charged_and_ends_with_the_budget(store, model, database_url):
    """Three failures allowed: queued twice, then failed with an error for every row."""
    worker = stack.a_worker(store)
    (job,) = _submit(store, model, 2)
    for failures in (1, 2, 3):
        (claimed,) = _claim(store, worker, model).jobs
        assert (claimed.attempt, claimed.failures) == (failures, failures - 1)
        failure = Failure(job, claimed.attempt, "model_error", "It \0 \ud800 broke.", 3600.0)
        (status,) = store.claims.retry(worker, [failure], max_failures=3).values()
        assert status == ("queued" if failures < 3 else "failed")
        assert not _claim(store, worker, model).jobs
        assert store.chores.release() == 0
        stack.query(database_url, "UPDATE jobs SET run_at = now() WHERE run_at IS NOT NULL")
        store.chores.release()
    view = store.jobs.read([job])[job]
    assert (view.status, view.code, view.rows_failed) == (Status.FAILED, "model_error", 2)
    assert [(e["row"], e["code"]) for e in json.loads(view.errors)] == [(0, "model_error"), (1, "model_error")]


def test_what_is_given_back_is_claimable_at_once_and_uncharged(store, model, database_url):
    """The attempt grows with the next claim only; failures do not."""
    worker = stack.a_worker(store)
    (job,) = _submit(store, model, 1)
    assert store.claims.give_back(worker, _claim(store, worker, model).jobs) == {job}
    assert _row(database_url, job, "status, attempt, failures, started_at") == ("queued", 1, 0, None)
    assert [c.attempt for c in _claim(store, stack.a_worker(store), model).jobs] == [2]


def test_reconcile_gives_back_claims_whose_reply_was_lost(store, model):
    """What the worker holds stays; what it does not know of is queued again; others' jobs are untouched."""
    worker, other = stack.a_worker(store), stack.a_worker(store)
    ids = _submit(store, model, 1, 1, 1)
    assert [job.id for job in _claim(store, other, model, rows=1).jobs] == ids[:1]
    _claim(store, worker, model)
    assert store.claims.reconcile(worker, ids[1:2]) == {ids[2]}
    assert store.claims.reconcile(worker, ids[1:2]) == set()
    assert [view.status for view in map(store.jobs.read(ids).get, ids)] == ["running", "running", "queued"]
    assert store.claims.reconcile(worker, []) == {ids[1]}


def test_empty_calls_do_nothing(store):
    """A writer with nothing in hand need not ask first."""
    worker = stack.a_worker(store)
    assert store.claims.finish(worker, []) == store.claims.give_back(worker, []) == set()
    assert store.claims.retry(worker, [], max_failures=3) == {}
    assert store.jobs.submit([]) == []
    assert store.jobs.read([]) == {}
    assert store.jobs.terminal([]) == store.jobs.cancel(1, []) == set()
