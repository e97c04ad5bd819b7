"""`webhook_contract`: whoever ends a job or a batch writes its message, once; the end and the message are one."""

from __future__ import annotations

import json
import threading
import uuid

import batch_stack
import psycopg2
import pytest
import stack

from batchline.batch import BATCH_TERMINAL, BatchStatus
from batchline.job import Lane, Status, new_job_id, parse_id
from batchline.store import open_store
from batchline.store.contract import Failure
from batchline.store.webhook_contract import MessageStatus, endpoint_id_of
from batchline.webhook import BATCH_EVENTS, JOB_EVENTS, Webhook

URL = "https://example.com/hook"
HOOK = Webhook(URL)


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


def _running(store, model, **changes):
    """A worker with one job in hand."""
    job = stack.new_job(model, **{"webhook": HOOK} | changes)
    store.jobs.submit([job])
    worker = stack.a_worker(store)
    (claimed,) = store.claims.claim(worker, model, Lane.ONLINE, rows=9).jobs
    return worker, claimed


def _ended(store, model, count=1, url=URL, **changes):
    """So many jobs with a webhook, cancelled; their ids."""
    jobs = [stack.new_job(model, **{"webhook": Webhook(url)} | changes) for _ in range(count)]
    store.jobs.submit(jobs)
    tenant = changes.get("tenant_id", stack.TENANT)
    assert len(store.jobs.cancel(tenant, [job.id for job in jobs])) == count
    return [job.id for job in jobs]


def _messages(url):
    return stack.query(url, "SELECT subject_id, event, status FROM webhook_messages ORDER BY id")


def _take(store, *, limit=100, per_endpoint=100, lease_s=30.0):
    return store.webhooks.take_due(limit=limit, per_endpoint=per_endpoint, lease_s=lease_s)


def _poison(store, worker, job):
    store.claims.expose(worker, job)
    store.workers.bury([worker])
    store.chores.rescue(max_failures=1)


def _expire(store, worker, job):
    store.claims.give_back(worker, [job])
    store.db.run("UPDATE jobs SET deadline_at = now() - interval '1 s'")
    store.chores.expire()


ENDS = {
    "finished": (lambda s, w, j: s.claims.finish(w, [stack.done(j)]), "job.succeeded"),
    "finished, all rows bad": (lambda s, w, j: s.claims.finish(w, [stack.done(j, Status.FAILED)]), "job.failed"),
    "tries spent": (
        lambda s, w, j: s.claims.retry(w, [Failure(j.id, j.attempt, "e", "m", 0.0)], max_failures=1),
        "job.failed",
    ),
    "poison": (_poison, "job.failed"),
    "cancelled": (lambda s, w, j: s.jobs.cancel(stack.TENANT, [j.id]), "job.cancelled"),
    "expired": (_expire, "job.expired"),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_way_to_end_a_job_writes_its_message_once(store, model, database_url, name):
    """Whatever is tried afterwards adds none; a job without a webhook beside it has none."""
    end, event = ENDS[name]
    worker, job = _running(store, model)
    other, plain = _running(store, model, webhook=None)
    assert _messages(database_url) == []
    end(store, worker, job)
    end(store, other, plain)
    for again, _ in ENDS.values():
        again(store, worker, job)
    assert _messages(database_url) == [(job.id, event, "pending")]
    at = "SELECT m.created_at = j.finished_at FROM webhook_messages m JOIN jobs j ON j.id = m.subject_id"
    assert stack.query(database_url, at) == [(True,)]


def test_moves_that_end_nothing_write_nothing(store, model, database_url):
    """A claim, a retry, a job given back, a rescue."""
    worker, job = _running(store, model)
    store.claims.retry(worker, [Failure(job.id, job.attempt, "e", "m", 0.0)], max_failures=9)
    store.chores.release()
    (job,) = store.claims.claim(worker, model, Lane.ONLINE, rows=9).jobs
    store.claims.give_back(worker, [job])
    (job,) = store.claims.claim(worker, model, Lane.ONLINE, rows=9).jobs
    store.workers.bury([worker])
    store.chores.rescue(max_failures=9)
    assert _messages(database_url) == []


def test_only_the_events_that_were_asked_for(store, model, database_url):
    """None named, all of them."""
    wanted = [stack.new_job(model, webhook=Webhook(URL, events)) for events in ((), JOB_EVENTS[:2], JOB_EVENTS[2:3])]
    store.jobs.submit(wanted)
    store.jobs.cancel(stack.TENANT, [job.id for job in wanted])
    assert {m[0] for m in _messages(database_url)} == {wanted[0].id, wanted[2].id}
    views = store.jobs.read([job.id for job in wanted])
    assert [views[job.id].webhook for job in wanted] == [job.webhook for job in wanted]


def test_a_submit_that_is_repeated_subscribes_once(store, model, database_url):
    """With a key or after a lost reply, in a group with jobs that have none; also when the first has ended."""
    keyed = {"idempotency_key": "k", "body_hash": b"h"}
    first, plain = stack.new_job(model, webhook=HOOK, **keyed), stack.new_job(model)
    store.jobs.submit([first, plain])
    store.jobs.cancel(stack.TENANT, [first.id])
    again = stack.new_job(model, webhook=HOOK, **keyed)
    (admitted, _, same) = store.jobs.submit([again, plain, first])
    assert (admitted.id, admitted.replayed, same.id) == (first.id, True, first.id)
    assert stack.query(database_url, "SELECT subject_id, url FROM webhook_subscriptions") == [(first.id, URL)]
    assert stack.query(database_url, "SELECT id FROM jobs WHERE webhook") == [(first.id,)]
    assert len(_messages(database_url)) == 1


def test_the_end_and_its_message_are_one_transaction(store, model, database_url):
    """What dies before its commit has neither; nobody sees one without the other."""
    worker, job = _running(store, model)
    with stack.connected(database_url) as dying, dying.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE jobs SET status = 'succeeded', finished_at = now() WHERE id = %s", (job.id,))
        cursor.execute("SELECT pg_backend_pid(), (SELECT count(*) FROM webhook_messages)")
        ((pid, written),) = cursor.fetchall()
        assert (written, _messages(database_url)) == (1, [])
        stack.query(database_url, "SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(psycopg2.Error):
            cursor.execute("COMMIT")
    assert store.jobs.read([job.id])[job.id].status is Status.RUNNING
    assert _messages(database_url) == []
    store.claims.finish(worker, [stack.done(job)])
    assert len(_messages(database_url)) == 1


@pytest.mark.parametrize("status", sorted(BATCH_TERMINAL))
def test_the_end_of_a_batch_writes_its_message_once(store, model, database_url, status):
    """Its slices write none, whatever becomes of them; the repeat of a lost reply adds none."""
    batch = batch_stack.planned(store, model, [2], webhook=HOOK)
    plain = batch_stack.planned(store, model, [2])
    for one in (batch, plain):
        store.batches.cancel(stack.TENANT, one)
    if status is not BatchStatus.CANCELLED:
        stack.query(database_url, "UPDATE batches SET status = 'finalizing'")
    for _ in range(2):
        taken = store.batches.take_to_end(batch_stack.HOLDER, lease_s=9.0)
        for _ in range(2):
            assert store.batches.end(batch_stack.HOLDER, taken.id, status)
    assert _messages(database_url) == [(batch, f"batch.{status.value}", "pending")]
    assert (store.batches.read(batch).webhook, store.batches.read(plain).webhook) == (HOOK, None)
    (due,) = _take(store)
    data = json.loads(due.data)
    assert (data["object"], data["status"], data["rows"]["total"]) == ("batch", status.value, 2)
    assert (data["request_counts"]["total"], data["model"], data[f"{status.value}_at"] is None) == (2, "digits", False)


def test_a_batch_that_is_refused_fails_and_says_so(store, database_url):
    """It never had slices."""
    new = batch_stack.new_batch(webhook=Webhook(URL, (BATCH_EVENTS[1],)))
    assert [store.batches.submit(new).id for _ in range(2)] == [new.id] * 2
    store.batches.take_to_plan(batch_stack.HOLDER, lease_s=9.0)
    store.batches.refuse(batch_stack.HOLDER, new.id, [batch_stack.FAULT])
    assert _messages(database_url) == [(new.id, "batch.failed", "pending")]


def test_what_is_taken_is_there_to_be_sent(store, model):
    """All that a sender needs; the same text at every attempt."""
    worker, job = _running(store, model, metadata='{"k": "é"}', rows=2, tenant_id=7)
    store.claims.finish(worker, [stack.done(job, rows_failed=1)])
    (due,) = _take(store, lease_s=0.0)
    view = store.jobs.read([job.id])[job.id]
    assert (due.attempt, due.tries, due.tenant_id, due.url, due.event) == (1, 1, 7, URL, "job.succeeded")
    assert (due.created_at, due.subject_id, due.endpoint_id) == (view.finished_at, job.id, endpoint_id_of(7, URL))
    assert due.secrets == (store.webhooks.secret(7).secret,)
    assert due.secrets[0] not in repr(due)
    data = json.loads(due.data)
    assert parse_id(data["id"]) == job.id
    assert data["row_counts"] == {"total": 2, "succeeded": 1, "failed": 1}
    assert (data["status"], data["metadata"], data["version"]) == ("succeeded", {"k": "é"}, "1")
    assert not {"outputs", "errors"} & data.keys()
    (again,) = _take(store)
    assert (again.attempt, again.id, again.data) == (2, due.id, due.data)


def test_a_message_is_one_senders_until_its_lease_ends(store, model):
    """Then it is due again; the one before may say no more than that it got through."""
    _ended(store, model, 2)
    first, other = _take(store, lease_s=0.0)
    assert len(_take(store)) == 2
    assert _take(store) == []
    report = {"status_code": 500, "error": "e\0", "duration_ms": 3}
    assert not store.webhooks.failed(first.id, 1, again_in_s=None, **report)
    assert store.webhooks.failed(first.id, 2, again_in_s=0.0, **report)
    assert store.webhooks.failed(first.id, 2, again_in_s=0.0, **report)  # its reply was lost
    assert [a.nth for a in store.webhooks.attempts(first.id)] == [1, 2]
    (again,) = _take(store)
    assert (again.id, again.attempt, again.tries) == (first.id, 3, 3)
    for _ in range(2):
        assert store.webhooks.delivered(other.id, 1, status_code=200, duration_ms=3)
    assert not store.webhooks.failed(other.id, 2, again_in_s=0.0, **report)
    assert not store.webhooks.delivered(first.id, 4, status_code=200, duration_ms=3)
    assert not store.webhooks.delivered(uuid.uuid4(), 1, status_code=200, duration_ms=3)
    statuses = [store.webhooks.read(m.id).status for m in (first, other)]
    assert statuses == [MessageStatus.PENDING, MessageStatus.DELIVERED]


def test_what_is_given_up_is_sent_again_by_replay(store, model):
    """Under the same id, with a log that goes on and tries from the start; also what was delivered."""
    _ended(store, model)
    (due,) = _take(store)
    failure = {"status_code": None, "error": "x" * 1000, "duration_ms": 9}
    assert store.webhooks.failed(due.id, 1, again_in_s=None, **failure)
    view = store.webhooks.read(due.id)
    assert (view.status, view.due_at, view.ended_at is None) == (MessageStatus.FAILED, None, False)
    assert _take(store) == []
    assert store.webhooks.replay(stack.TENANT, due.id)
    (again,) = _take(store)
    assert (again.id, again.attempt, again.tries) == (due.id, 2, 1)
    assert store.webhooks.replay(stack.TENANT, due.id)  # it is under way, and stays so
    assert _take(store) == []
    assert not store.webhooks.delivered(due.id, 1, status_code=200, duration_ms=3)
    assert store.webhooks.delivered(due.id, 2, status_code=204, duration_ms=3)
    assert store.webhooks.replay(stack.TENANT, due.id)
    (third,) = _take(store)
    assert (third.attempt, third.tries) == (3, 1)
    log = [(a.nth, a.status_code, len(a.error or "")) for a in store.webhooks.attempts(due.id)]
    assert log == [(1, None, 500), (2, 204, 0)]


def test_a_disabled_endpoint_is_sent_nothing(store, model, database_url):
    """What waits and what comes is `disabled`, what raced with it too; others go on; enabling alone sends nothing."""
    _ended(store, model, 3)
    _ended(store, model, url=URL + "/other")
    endpoint = endpoint_id_of(stack.TENANT, URL)
    assert (store.webhooks.disable(endpoint, "It is gone."), store.webhooks.disable(endpoint, "again")) == (3, 0)
    _ended(store, model)
    stack.query(database_url, "UPDATE webhook_messages SET status = 'pending' WHERE id = (SELECT max(id::text)::uuid"
                " FROM webhook_messages)")  # fmt: skip
    assert [due.url for due in _take(store)] == [URL + "/other"]
    disabled = store.webhooks.list(stack.TENANT, status=MessageStatus.DISABLED, limit=9)
    assert len(disabled) == 4
    assert not store.webhooks.replay(stack.TENANT, disabled[0].id)
    view = store.webhooks.endpoint(endpoint)
    assert (view.url, view.disabled_why, view.disabled_at is None) == (URL, "It is gone.", False)
    assert not store.webhooks.enable(stack.TENANT + 1, endpoint)
    assert store.webhooks.enable(stack.TENANT, endpoint)
    assert _take(store) == []
    assert store.webhooks.replay(stack.TENANT, disabled[0].id)
    assert [due.id for due in _take(store)] == [disabled[0].id]
    _ended(store, model)
    assert len(_take(store)) == 1
    assert store.webhooks.disable(uuid.uuid4(), "nobody") == 0


def test_endpoints_take_turns(store, model):
    """No more than asked for of one are under way, and none waits until another's messages have all gone."""
    for n, count in enumerate((9, 9, 1)):
        _ended(store, model, count, url=f"{URL}/{n}")
    taken = [due.url[-1] for due in _take(store, per_endpoint=2)]
    assert sorted(taken) == ["0", "0", "1", "1", "2"]
    assert _take(store, per_endpoint=2) == []
    rest = [due.url[-1] for _ in range(6) for due in _take(store, limit=3, per_endpoint=5)]
    assert sorted(rest[:6]) == ["0", "0", "0", "1", "1", "1"]
    assert len(rest) == 6
    assert len(_take(store)) == 8


def test_what_comes_behind_a_full_take_is_taken_by_the_next(store, model):
    """Whoever goes round begins again at once, and does not come back empty-handed."""
    for _ in range(3):
        (job,) = _ended(store, model)
        assert [due.subject_id for due in _take(store, limit=1)] == [job]


def test_many_endpoints_are_gone_round_in_turns(store, model, monkeypatch):
    """Whoever has more endpoints than one take looks at reaches all of them."""
    monkeypatch.setattr("batchline.store.webhooks._PROBES", 3)
    for n in range(8):
        _ended(store, model, url=f"{URL}/{n}")
    found = [{due.url for due in _take(store, limit=2)} for _ in range(6)]
    assert set().union(*found) == {f"{URL}/{n}" for n in range(8)}
    assert _take(store) == []


def test_no_message_is_taken_twice_at_once(store, model, database_url):
    """Senders that take at the same time share what there is."""
    ids = _ended(store, model, 200)
    taken: list[uuid.UUID] = []

    def send() -> None:
        own = open_store(database_url, connections=1)
        while due := _take(own, limit=7, per_endpoint=1000):
            taken.extend(message.subject_id for message in due)
        own.close()

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken))
    assert set(taken) | {due.subject_id for due in _take(store, limit=1000, per_endpoint=1000)} == set(ids)


def test_each_tenant_has_messages_endpoints_and_a_secret_of_its_own(store, model):
    """The same URL is another endpoint."""
    (mine,), (other,) = _ended(store, model), _ended(store, model, tenant_id=2)
    assert [m.subject_id for m in store.webhooks.list(stack.TENANT, limit=9)] == [mine]
    assert [m.subject_id for m in store.webhooks.list(2, limit=9)] == [other]
    assert [e.tenant_id for e in store.webhooks.endpoints(2, limit=9)] == [2]
    assert store.webhooks.secret(1) != store.webhooks.secret(2)
    by_tenant = {due.tenant_id: due for due in _take(store)}
    assert by_tenant[2].secrets == (store.webhooks.secret(2).secret,)
    assert not store.webhooks.replay(2, by_tenant[1].id)
    store.webhooks.disable(endpoint_id_of(2, URL), "gone")
    assert store.webhooks.endpoint(endpoint_id_of(1, URL)).disabled_at is None


def test_lists_are_paged_newest_first(store, model):
    """By status and event; an id that is not there is a place like any other."""
    _ended(store, model, 5)
    worker, job = _running(store, model)
    store.claims.finish(worker, [stack.done(job)])
    first = store.webhooks.list(stack.TENANT, limit=4)
    rest = store.webhooks.list(stack.TENANT, after=first[-1].id, limit=4)
    ids = [m.id for m in (*first, *rest)]
    assert (ids, len(ids)) == (sorted(ids, reverse=True), 6)
    assert [m.subject_id for m in store.webhooks.list(stack.TENANT, event="job.succeeded", limit=9)] == [job.id]
    assert len(store.webhooks.list(stack.TENANT, status=MessageStatus.PENDING, event="job.cancelled", limit=9)) == 5
    assert store.webhooks.list(stack.TENANT, status=MessageStatus.FAILED, limit=9) == []
    assert len(store.webhooks.list(stack.TENANT, after=new_job_id(), limit=9)) == 6


def test_a_secret_that_was_replaced_signs_for_a_day(store, model, database_url):
    """Beside the new one, newest first; the one before it no more."""
    first = store.webhooks.secret(stack.TENANT)
    assert (first, first.previous) == (store.webhooks.secret(stack.TENANT), None)
    second = store.webhooks.rotate(stack.TENANT)
    assert store.webhooks.rotate(stack.TENANT) == second  # a repeat
    stack.query(database_url, "UPDATE webhook_secrets SET rotated_at = now() - interval '2 min'")
    third = store.webhooks.rotate(stack.TENANT)
    assert (second.previous, third.previous) == (first.secret, second.secret)
    _ended(store, model)
    (due,) = _take(store, lease_s=0.0)
    assert due.secrets == (third.secret, second.secret)
    stack.query(database_url, "UPDATE webhook_secrets SET rotated_at = now() - interval '1 day'")
    assert store.webhooks.secret(stack.TENANT).previous is None
    assert _take(store)[0].secrets == (third.secret,)


def test_messages_go_with_their_subject(store, model, database_url):
    """And their attempts; endpoints when nothing names them. What was taken and lost its subject is given up."""
    old, kept = _ended(store, model), _ended(store, model, url=URL + "/kept")
    batch = batch_stack.planned(store, model, [1], webhook=HOOK)
    store.batches.cancel(stack.TENANT, batch)
    store.batches.take_to_end(batch_stack.HOLDER, lease_s=9.0)
    store.batches.end(batch_stack.HOLDER, batch, BatchStatus.CANCELLED)
    for due in _take(store, lease_s=0.0):
        store.webhooks.failed(due.id, 1, status_code=None, error="e", duration_ms=1, again_in_s=0.0)
    stack.query(database_url, "UPDATE jobs SET finished_at = now() + interval '1 h' WHERE id = ANY(%s)", (kept,))
    assert store.webhooks.prune(kept_s=0.0) == 0
    while store.chores.prune(results_kept_s=0.0, jobs_kept_s=0.0, keys_kept_s=0.0):
        pass
    while store.batches.prune(results_kept_s=0.0, batches_kept_s=0.0):
        pass
    assert not store.jobs.read(old)
    assert [m.subject_id for m in store.webhooks.list(stack.TENANT, limit=9)] == kept
    counts = "SELECT (SELECT count(*) FROM webhook_attempts), (SELECT count(*) FROM webhook_subscriptions)"
    assert stack.query(database_url, counts) == [(1, 1)]
    assert store.webhooks.prune(kept_s=86400.0) == 0
    assert store.webhooks.prune(kept_s=0.0) == 1
    assert [e.url for e in store.webhooks.endpoints(stack.TENANT, limit=9)] == [URL + "/kept"]
    stack.query(database_url, "DELETE FROM jobs")
    assert _take(store) == []
    assert store.webhooks.list(stack.TENANT, limit=9)[0].status is MessageStatus.FAILED
