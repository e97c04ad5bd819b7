"""No order of calls, from however many processes, moves a job as `TRANSITIONS` does not have it.

Up to four stores act on one database, each through its own connection, with fresh and with stale knowledge of what they
hold. A trigger writes down every change of every job's row, so no move goes unseen, whoever made it. 2,000 sequences:
`BATCHLINE_TEST_SEQUENCES=2000 pytest tests/contract/test_store_state_machine.py`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import stack
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from state_machines import assert_finds, bound, limit_s, settings_of

from batchline.job import TERMINAL, TRANSITIONS, ClaimedJob, Lane, Move, Status, is_legal
from batchline.store import Store, claims
from batchline.store.contract import Failure
from batchline.webhook import JOB_EVENTS, Webhook

SEQUENCES = int(os.environ.get("BATCHLINE_TEST_SEQUENCES", "150"))
MAX_FAILURES = 3

WATCH = """
CREATE UNLOGGED TABLE seen (n bigserial, job uuid, was job_status, is_now job_status, attempt int, attempt_now int,
  failures int, failures_now int, worker uuid);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO seen (job, was, is_now, attempt, attempt_now, failures, failures_now, worker) VALUES
    (OLD.id, OLD.status, NEW.status, OLD.attempt, NEW.attempt, OLD.failures, NEW.failures, OLD.worker_id);
  RETURN NULL; END $$;
CREATE TRIGGER watch AFTER UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION watch();
"""
CLEAR = """TRUNCATE jobs, job_inputs, job_results, workers, seen;
DELETE FROM webhook_subscriptions; DELETE FROM webhook_messages"""
HOOKS = (None, Webhook("https://example.com"), Webhook("https://example.com", ("job.failed", "job.expired")))

numbers = st.integers(min_value=0, max_value=7)
"""Picks one of several, whatever their count."""


class Machine(RuleBasedStateMachine):
    """The model: which moves TRANSITIONS allows from the status last read, and who holds what."""

    url: str
    stores: list[Store]
    model_id: int

    @initialize()
    def begin(self) -> None:
        self.connection = self.stores[0].db
        self.connection.run(CLEAR)
        self.workers = [stack.a_worker(store) for store in self.stores]
        self.held: list[tuple[uuid.UUID, ClaimedJob]] = []
        """Every claim ever made, by its worker: most of them are stale by now."""
        self.jobs: list[uuid.UUID] = []
        self.hooks: dict[uuid.UUID, Webhook | None] = {}
        self.ended: set[tuple[uuid.UUID, int]] = set()
        for n in range(2):
            self.submit(0, late=False, rows=1, hook=n + 1)

    def pick(self, n: int) -> list[tuple[uuid.UUID, ClaimedJob]]:
        """One of the last eight claims, if there is one."""
        return [self.held[-1 - n % min(len(self.held), 8)]] if self.held else []

    def statuses(self) -> dict[uuid.UUID, tuple[Status, int, uuid.UUID | None]]:
        rows = self.connection.run("SELECT id, status::text, attempt, worker_id FROM jobs")
        return {job: (Status(status), attempt, worker) for job, status, attempt, worker in rows}

    def fresh(self, move: Move, worker: uuid.UUID, job: ClaimedJob) -> bool:
        """What the model says of a fenced move: legal from where the job is, and the fence is this claim's."""
        status, attempt, holder = self.statuses()[job.id]
        return status in TRANSITIONS[move][0] and attempt == job.attempt and holder == worker

    @rule(who=numbers, late=st.booleans(), rows=st.integers(1, 2), hook=st.integers(0, 2))
    def submit(self, who: int, late: bool, rows: int, hook: int) -> None:
        deadline = datetime(2020, 1, 1, tzinfo=UTC) if late else None
        job = stack.new_job(self.model_id, rank=1000 - len(self.jobs), rows=rows, deadline_at=deadline,
                            webhook=HOOKS[hook])  # fmt: skip
        self.stores[who % len(self.stores)].jobs.submit([job])
        self.jobs.append(job.id)
        self.hooks[job.id] = HOOKS[hook]

    @rule(who=numbers, rows=st.integers(1, 6))
    def claim(self, who: int, rows: int) -> None:
        who %= len(self.stores)
        store, worker = self.stores[who], self.workers[who]
        got = store.claims.claim(worker, self.model_id, Lane.ONLINE, rows=rows).jobs
        self.held += [(worker, job) for job in got]

    @rule(who=numbers)
    def claim_all_there_is(self, who: int) -> None:
        """Jobs that wait for run_at and suspects too, so that old claims meet new ones."""
        who %= len(self.stores)
        store, worker = self.stores[who], self.workers[who]
        self.connection.run("UPDATE jobs SET run_at = now() WHERE status = 'queued' AND run_at IS NOT NULL")
        store.chores.release()
        got = store.claims.claim(worker, self.model_id, Lane.ONLINE, rows=9).jobs
        while suspects := store.claims.claim_suspect(worker, self.model_id).jobs:
            got += suspects
        self.held += [(worker, job) for job in got]

    @rule(who=numbers, n=numbers, good=st.booleans(), as_other=st.booleans())
    def finish(self, who: int, n: int, good: bool, as_other: bool) -> None:
        for holder, job in self.pick(n):
            worker = self.workers[who % len(self.workers)] if as_other else holder
            may = self.fresh(Move.FINISH, worker, job)
            repeated = worker == holder and (job.id, job.attempt) in self.ended
            end = stack.done(job, Status.SUCCEEDED if good else Status.FAILED)
            finished = self.stores[who % len(self.stores)].claims.finish(worker, [end])
            assert finished == ({job.id} if may or repeated else set())
            if may:
                self.ended.add((job.id, job.attempt))

    @rule(who=numbers, n=numbers)
    def retry(self, who: int, n: int) -> None:
        for holder, job in self.pick(n):
            may = self.fresh(Move.RETRY, holder, job)
            failure = Failure(job.id, job.attempt, "error", "it broke", 0.0)
            got = self.stores[who % len(self.stores)].claims.retry(holder, [failure], max_failures=MAX_FAILURES)
            assert set(got) == ({job.id} if may else set())

    @rule(who=numbers, n=numbers, future=st.booleans())
    def give_back(self, who: int, n: int, future: bool) -> None:
        for holder, job in self.pick(n):
            claimed = replace(job, attempt=job.attempt + 1) if future else job
            may = self.fresh(Move.GIVE_BACK, holder, claimed)
            got = self.stores[who % len(self.stores)].claims.give_back(holder, [claimed])
            assert got == ({job.id} if may else set())

    @rule(who=numbers, n=numbers)
    def expose(self, who: int, n: int) -> None:
        for holder, job in self.pick(n):
            may = self.fresh(Move.FINISH, holder, job)
            assert self.stores[who % len(self.stores)].claims.expose(holder, job) is may

    @rule(who=numbers, keep=st.booleans())
    def reconcile(self, who: int, keep: bool) -> None:
        who %= len(self.stores)
        held = [job.id for worker, job in self.held if keep and worker == self.workers[who]]
        self.stores[who].claims.reconcile(self.workers[who], held)

    @rule(who=numbers, bury=st.booleans())
    def lose_a_worker_and_rescue(self, who: int, bury: bool) -> None:
        """The lease runs out; the process lives on with its old id half of the time."""
        who %= len(self.stores)
        late = "UPDATE workers SET lease_until = now() - interval '1 second' WHERE id = %(id)s"
        self.connection.run(late, {"id": self.workers[who]})
        assert not self.stores[who].claims.claim(self.workers[who], self.model_id, Lane.ONLINE, rows=9).jobs
        self.stores[-1].chores.rescue(max_failures=MAX_FAILURES)
        if bury:
            self.workers[who] = stack.a_worker(self.stores[who])

    @rule(who=numbers, n=numbers)
    def cancel(self, who: int, n: int) -> None:
        for job in self.jobs[-1 - n % max(len(self.jobs), 1) :][:1]:
            may = self.statuses()[job][0] in TRANSITIONS[Move.CANCEL][0]
            got = self.stores[who % len(self.stores)].jobs.cancel(stack.TENANT, [job])
            assert got == ({job} if may else set())

    @rule(who=numbers)
    def expire_and_release(self, who: int) -> None:
        self.stores[who % len(self.stores)].chores.expire()
        self.stores[who % len(self.stores)].chores.release()

    @rule(who=numbers)
    def drain(self, who: int) -> None:
        who %= len(self.stores)
        self.stores[who].workers.drain(self.workers[who])
        assert not self.stores[who].claims.claim(self.workers[who], self.model_id, Lane.ONLINE, rows=9).jobs
        self.workers[who] = stack.a_worker(self.stores[who])

    @invariant()
    def only_legal_moves(self) -> None:
        rows = self.connection.run("WITH s AS (DELETE FROM seen RETURNING *) SELECT * FROM s ORDER BY n")
        for _, job, was, is_now, attempt, attempt_now, failures, failures_now, _worker in rows:
            source, target = Status(was), Status(is_now)
            claimed = (source, target) == (Status.QUEUED, Status.RUNNING)
            assert source == target or is_legal(source, target), (job, source, target)
            assert source not in TERMINAL, (job, source, target)
            assert attempt_now == attempt + claimed, (job, attempt, attempt_now)
            assert 0 <= failures_now - failures <= 1

    @invariant()
    def one_result_for_what_finished_and_none_for_others(self) -> None:
        rows = self.connection.run(
            "SELECT j.status::text, j.failures, r.job_id FROM jobs j LEFT JOIN job_results r ON r.job_id = j.id"
        )
        for status, failures, result in rows:
            assert (result is not None) == (status in ("succeeded", "failed")), status
            assert failures < MAX_FAILURES or status == "failed"
        assert not self.connection.run("SELECT 1 FROM job_results GROUP BY job_id HAVING count(*) > 1")

    @invariant()
    def one_message_for_each_end_that_was_asked_for(self) -> None:
        told = self.connection.run("SELECT subject_id, event FROM webhook_messages")
        wanted = set[tuple[uuid.UUID, str]]()
        for job, (status, _, _) in self.statuses().items():
            hook, event = self.hooks[job], f"job.{status}"
            if hook is not None and status in TERMINAL and event in (hook.events or JOB_EVENTS):
                wanted.add((job, event))
        assert sorted(told) == sorted(wanted)


@pytest.fixture
def machine(database_url: str) -> Iterator[Any]:
    with bound(Machine, database_url, WATCH) as kind:
        yield kind


@pytest.mark.timeout(limit_s(SEQUENCES))
def test_only_legal_moves(machine):
    """The machine holds for BATCHLINE_TEST_SEQUENCES sequences of up to 30 calls."""
    run_state_machine_as_test(machine, settings=settings_of(SEQUENCES))


MUTANTS = {
    "finish without its fence": ("_FINISH", claims._MINE, "true"),
    "retry without its fence": ("_RETRY", claims._MINE, "true"),
    "give back without the attempt": ("_GIVE_BACK", "j.attempt = t.attempt", "true"),
    "a claim that does not count": ("_CLAIM", "j.attempt + 1", "j.attempt"),
    "a draining worker claims": ("_CLAIM", "AND NOT w.draining", ""),
    "a dead worker claims": ("_CLAIM", "w.lease_until > now()", "true"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_machine_can_fail(machine, monkeypatch, name):
    """With a guard cut out of the SQL the same machine finds the illegal move."""
    assert_finds(machine, monkeypatch, claims, MUTANTS[name], 300)


NO_TRIGGER = "DROP TRIGGER jobs_write_message ON jobs"
TRIGGER_OF_CLAIMS = """
CREATE TRIGGER mutant AFTER UPDATE OF status ON jobs FOR EACH ROW WHEN (NEW.webhook AND NEW.status = 'running')
EXECUTE FUNCTION batchline_write_message('job')
"""


@pytest.mark.parametrize("mutant", [NO_TRIGGER, TRIGGER_OF_CLAIMS])
def test_the_machine_finds_a_message_that_is_missing_or_too_many(machine, database_url, mutant):
    """Without the trigger, and with one that takes a claim for an end."""
    stack.query(database_url, mutant)
    with pytest.raises((AssertionError, ExceptionGroup), match="one_message_for_each_end"):
        run_state_machine_as_test(machine, settings=settings_of(30, phases=[Phase.generate], print_blob=False))
