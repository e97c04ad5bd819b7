"""`batch_contract.Schedules`: exactly one run, and one batch, for each schedule and fire time, whoever fires."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import batch_stack
import psycopg2
import pytest
import stack

from batchline.batch import BatchStatus
from batchline.errors import InvalidRequestError, KeyReusedError, QuotaError, StoreUnavailableError
from batchline.job import new_job_id
from batchline.store import open_store
from batchline.store.batch_contract import Run, ScheduleView

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def _schedule(name="nightly", **changes):
    fields = {"cron": "0 * * * *", "timezone": "Europe/Berlin", "batch": "{}", "catch_up": "last", "overlap": "skip"}
    fields |= {"enabled": True, "created_at": T0, "next_fire_at": T0}
    return ScheduleView(new_job_id(), 1, name, **fields | changes)


def _run(schedule, fire_at=T0, outcome="submitted", batch=None, **changes):
    fields = {"detail": None, "batch_id": batch.id if batch else None, "batch_status": None, "created_at": T0}
    return Run(schedule.id, fire_at, outcome, **fields | changes)


def _batch(schedule, fire_at=T0):
    return batch_stack.new_batch(schedule_id=schedule.id, fire_at=fire_at)


@pytest.fixture
def schedule(store):
    """One that is due."""
    return store.schedules.add(_schedule())


def _end(store, batch_id):
    store.db.run("UPDATE batches SET status = 'completed', ended_at = now() WHERE id = %(id)s", {"id": batch_id})


def test_a_schedule_is_read_back_and_its_name_is_the_tenants_own(store):
    """Adding it again does nothing; another tenant may have one of the same name."""
    schedule = _schedule()
    for _ in range(2):
        assert store.schedules.add(schedule) == schedule
    assert store.schedules.read(schedule.id) == schedule
    assert isinstance(store.schedules.add(_schedule()), InvalidRequestError)
    theirs = replace(_schedule(), tenant_id=2)
    assert store.schedules.add(theirs) == theirs
    assert isinstance(store.schedules.add(_schedule("a\0b")), InvalidRequestError)
    assert store.schedules.read(uuid.uuid4()) is None


def test_an_update_replaces_all_but_whose_it_is_and_since_when(store, schedule):
    """Its name must still be free; another tenant's is not there."""
    new = replace(schedule, name="n", cron="1 * * * *", timezone="UTC", batch='{"a":1}', catch_up="all",
                  overlap="queue", enabled=False, next_fire_at=None)  # fmt: skip
    assert store.schedules.update(schedule, replace(new, created_at=T0 + HOUR))
    assert store.schedules.read(schedule.id) == new
    assert not store.schedules.update(new, replace(new, tenant_id=2))
    store.schedules.add(_schedule("taken"))
    with pytest.raises(InvalidRequestError):
        store.schedules.update(new, replace(new, name="taken"))


@pytest.mark.parametrize(
    "meanwhile",
    [
        {"name": "n"}, {"cron": "1 * * * *"}, {"timezone": "UTC"}, {"batch": "[]"}, {"catch_up": "all"},
        {"overlap": "queue"}, {"enabled": False}, {"next_fire_at": T0 + HOUR}, {"next_fire_at": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_update_of_what_was_changed_meanwhile_changes_nothing(store, schedule, meanwhile):
    """Whatever another changed since it was seen."""
    others = replace(schedule, **meanwhile)
    assert store.schedules.update(schedule, others)
    assert not store.schedules.update(schedule, replace(schedule, cron="2 * * * *"))
    assert store.schedules.read(schedule.id) == others
    assert store.schedules.update(others, schedule)


def test_schedules_are_listed_oldest_first(store):
    """In pages, of one tenant."""
    mine = sorted((store.schedules.add(_schedule(str(n))) for n in range(3)), key=lambda s: s.id)
    store.schedules.add(replace(_schedule(), tenant_id=2))
    assert store.schedules.list(1, after=None, limit=2) == mine[:2]
    assert store.schedules.list(1, after=mine[1].id, limit=2) == mine[2:]


def test_due_by_the_databases_clock(store):
    """Enabled ones whose instant has come, the one that waits longest first."""
    now = store.schedules.now()
    assert abs((datetime.now(UTC) - now).total_seconds()) < 60
    late = store.schedules.add(_schedule("late", next_fire_at=now - HOUR))
    later = store.schedules.add(_schedule("later", next_fire_at=now - 2 * HOUR))
    store.schedules.add(_schedule("disabled", next_fire_at=now - HOUR, enabled=False))
    store.schedules.add(_schedule("done", next_fire_at=None))
    store.schedules.add(_schedule("to come", next_fire_at=now + HOUR))
    assert store.schedules.due(limit=9) == [later, late]
    assert store.schedules.due(limit=1) == [later]


def test_a_fire_makes_runs_and_batches_and_moves_on(store, schedule):
    """One transaction; who saw an older instant fires nothing."""
    batch = _batch(schedule)
    runs = [_run(schedule, batch=batch), _run(schedule, T0 + HOUR, "skipped", detail="still running")]
    assert store.schedules.fire(schedule.id, T0, runs, [batch], T0 + 2 * HOUR)
    assert not store.schedules.fire(schedule.id, T0, [_run(schedule, T0 + 5 * HOUR)], [], None)
    found = store.schedules.runs(schedule.id, after=None, limit=9)
    assert [(r.fire_at, r.outcome, r.detail, r.batch_id, r.batch_status) for r in found] == [
        (T0 + HOUR, "skipped", "still running", None, None),
        (T0, "submitted", None, batch.id, BatchStatus.VALIDATING),
    ]
    assert store.schedules.read(schedule.id).next_fire_at == T0 + 2 * HOUR
    view = store.batches.read(batch.id)
    assert (view.schedule_id, view.fire_at) == (schedule.id, T0)
    assert [r.fire_at for r in store.schedules.runs(schedule.id, after=T0 + HOUR, limit=9)] == [T0]


def test_a_fire_time_that_has_run_does_not_run_again(store, schedule):
    """A clock that jumps back, a backfill over the same range: no second run, no second batch."""
    batches = [_batch(schedule) for _ in range(3)]
    assert store.schedules.run_now(_run(schedule, batch=batches[0]), batches[0])
    assert store.schedules.run_now(_run(schedule, batch=batches[0]), batches[0])
    assert not store.schedules.run_now(_run(schedule, batch=batches[1]), batches[1])
    assert store.schedules.fire(schedule.id, T0, [_run(schedule, batch=batches[2])], [batches[2]], None)
    assert [b.id for b in store.batches.list(1, after=None, limit=9).batches] == [batches[0].id]
    assert [r.batch_id for r in store.schedules.runs(schedule.id, after=None, limit=9)] == [batches[0].id]


def test_a_key_is_one_run_and_a_run_that_was_not_made_uses_none_up(store, schedule):
    """Two at once, or one after the other: the second is told of the first, or that the key means something else."""
    batches = [replace(_batch(schedule, T0 + n * HOUR), idempotency_key="k", body_hash=b"h") for n in range(3)]
    runs = [_run(schedule, batch.fire_at, batch=batch) for batch in batches]
    there = _batch(schedule)
    store.schedules.run_now(_run(schedule, batch=there), there)
    assert store.schedules.run_now(runs[0], batches[0]) is None
    assert store.schedules.run_of(schedule, "k", b"h") is None
    assert store.schedules.run_now(runs[1], batches[1]) == runs[1]
    for found in (store.schedules.run_now(runs[2], batches[2]), store.schedules.run_of(schedule, "k", b"h")):
        assert (found.batch_id, found.batch_status) == (batches[1].id, BatchStatus.VALIDATING)
    assert isinstance(store.schedules.run_of(schedule, "k", b"other"), KeyReusedError)
    assert store.batches.read(batches[2].id) is None


def test_a_run_without_room_for_its_batch_is_skipped_and_says_so(store, schedule):
    """Fired, or started after it has waited; the schedule moves on. Run by hand it is refused, and nothing is kept."""
    batches = [_batch(schedule, T0 + n * HOUR) for n in range(3)]
    runs = [_run(schedule, batch.fire_at, batch=batch) for batch in batches]
    assert store.schedules.fire(schedule.id, T0, runs, batches, T0 + 3 * HOUR, most=2)
    waiting = _run(schedule, T0 + 3 * HOUR, "queued")
    store.schedules.run_now(waiting, None)
    late = _batch(schedule, waiting.fire_at)
    assert store.schedules.start_queued(replace(waiting, batch_id=late.id), late, most=2)
    keyed = replace(_batch(schedule, T0 + 4 * HOUR), idempotency_key="k", body_hash=b"h")
    refused = store.schedules.run_now(_run(schedule, keyed.fire_at, batch=keyed), keyed, most=2)
    assert isinstance(refused, QuotaError)
    assert store.schedules.run_of(schedule, "k", b"h") is None
    found = list(reversed(store.schedules.runs(schedule.id, after=None, limit=9)))
    assert [(r.outcome, r.batch_id is None) for r in found] == [("submitted", False)] * 2 + [("skipped", True)] * 2
    assert {r.detail for r in found[2:]} == {refused.detail}
    assert store.schedules.queued(limit=9) == []
    assert store.schedules.read(schedule.id).next_fire_at == T0 + 3 * HOUR


def test_a_disabled_or_deleted_schedule_does_not_fire(store, schedule):
    """Even if it was due when the scheduler looked."""
    batch = _batch(schedule)
    store.schedules.update(schedule, replace(schedule, enabled=False))
    assert not store.schedules.fire(schedule.id, T0, [_run(schedule, batch=batch)], [batch], None)
    assert not store.schedules.delete(2, schedule.id)
    assert store.schedules.delete(1, schedule.id)
    assert not store.schedules.delete(1, schedule.id)
    assert not store.schedules.fire(schedule.id, T0, [_run(schedule, batch=batch)], [batch], None)
    assert not store.schedules.run_now(_run(schedule, batch=batch), batch)
    assert store.batches.read(batch.id) is None


def test_a_deleted_schedule_takes_its_runs_and_leaves_its_batches(store, schedule):
    """They are work that was asked for."""
    batch = _batch(schedule)
    store.schedules.run_now(_run(schedule, batch=batch), batch)
    assert store.schedules.delete(1, schedule.id)
    assert store.schedules.runs(schedule.id, after=None, limit=9) == []
    assert store.batches.read(batch.id) is not None


def test_queued_runs_start_one_after_the_other(store, schedule):
    """The oldest of each schedule, once none of its batches is unfinished, and only once."""
    other = store.schedules.add(_schedule("other"))
    running = _batch(schedule)
    store.schedules.run_now(_run(schedule, batch=running), running)
    for hour in (3, 1, 2):
        store.schedules.fire(schedule.id, T0, [_run(schedule, T0 + hour * HOUR, "queued")], [], T0)
    store.schedules.fire(other.id, T0, [_run(other, T0 + 9 * HOUR, "queued")], [], None)
    assert store.schedules.unfinished(schedule.id) == 1
    assert [r.schedule_id for r in store.schedules.queued(limit=9)] == [other.id]
    _end(store, running.id)
    assert store.schedules.unfinished(schedule.id) == 0
    first, second = store.schedules.queued(limit=9)
    assert [(r.schedule_id, r.fire_at) for r in (first, second)] == [
        (schedule.id, T0 + HOUR),
        (other.id, T0 + 9 * HOUR),
    ]
    assert store.schedules.queued(limit=1) == [first]
    batch, late = _batch(schedule, first.fire_at), _batch(schedule, first.fire_at)
    for _ in range(2):
        assert store.schedules.start_queued(first, batch)
    assert not store.schedules.start_queued(first, late)
    assert store.batches.read(late.id) is None
    assert store.schedules.unfinished(schedule.id) == 1
    assert [r.schedule_id for r in store.schedules.queued(limit=9)] == [other.id]


def test_runs_are_forgotten_in_their_time(store, schedule, database_url):
    """With the batches; one that is still queued stays."""
    batch = _batch(schedule)
    store.schedules.run_now(_run(schedule, batch=batch), batch)
    store.schedules.fire(schedule.id, T0, [_run(schedule, T0 + HOUR, "queued")], [], None)
    assert store.batches.prune(results_kept_s=99.0, batches_kept_s=99.0) == 0
    assert store.batches.prune(results_kept_s=99.0, batches_kept_s=0.0) == 1
    assert [r.outcome for r in store.schedules.runs(schedule.id, after=None, limit=9)] == ["queued"]


def test_many_schedulers_fire_each_instant_once(store, schedule, database_url):
    """Four at once over thirty instants: thirty runs, thirty batches."""
    stores = [open_store(database_url, connections=1) for _ in range(4)]
    barrier, fired = threading.Barrier(4), []

    def work(scheduler):
        barrier.wait(10)
        while (at := scheduler.schedules.read(schedule.id).next_fire_at) < T0 + 30 * HOUR:
            batch = _batch(schedule, at)
            if scheduler.schedules.fire(schedule.id, at, [_run(schedule, at, batch=batch)], [batch], at + HOUR):
                fired.append(at)

    threads = [threading.Thread(target=work, args=(each,)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    instants = [T0 + n * HOUR for n in range(30)]
    assert sorted(fired) == instants
    found = store.db.run(
        "SELECT r.fire_at, b.fire_at FROM schedule_runs r JOIN batches b ON b.id = r.batch_id ORDER BY 1"
    )
    assert found == [(at, at) for at in instants]
    assert store.db.run("SELECT count(*) FROM batches") == [(30,)]
    for each in stores:
        each.close()


@pytest.mark.parametrize("step", range(5))
def test_a_scheduler_that_dies_within_a_fire_has_fired_all_or_nothing(store, schedule, database_url, step):
    """Its connection is cut after each statement of the transaction; the next one fires what is missing, once."""
    dying = open_store(database_url, connections=1)
    batch = _batch(schedule)

    def cut_after(transaction):
        """Statements of this transaction run until `step`; then its server process is gone."""
        run, count = transaction.run, iter(range(99))

        def counted(sql, params=None):
            if next(count) == step:
                (pid,) = run("SELECT pg_backend_pid()")[0]
                stack.query(database_url, f"SELECT pg_terminate_backend({pid}, 5000)")
            return run(sql, params)

        transaction.run = counted
        return transaction

    transacted = dying.db._transacted
    dying.db._transacted = lambda work: transacted(lambda t: work(cut_after(t)))
    runs = [_run(schedule, batch=batch)]
    try:
        died = not dying.schedules.fire(schedule.id, T0, runs, [batch], T0 + HOUR)
    except (StoreUnavailableError, psycopg2.Error):
        died = True
    dying.close()
    other = _batch(schedule)
    again = store.schedules.fire(schedule.id, T0, [_run(schedule, batch=other)], [other], T0 + HOUR)
    assert again is died
    assert died is (step < 4)
    assert store.db.run("SELECT count(*) FROM schedule_runs") == [(1,)]
    assert [b.id for b in store.batches.list(1, after=None, limit=9).batches] == [other.id if died else batch.id]
    assert store.schedules.read(schedule.id).next_fire_at == T0 + HOUR
