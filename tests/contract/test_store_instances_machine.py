"""No order of calls has the ledger launch beyond its limit, stop what holds a job, or bring an instance back to life.

Triggers write down every change of an instance's status with the jobs that its workers held at that moment, so no move
goes unseen, whoever made it. `BATCHLINE_TEST_SEQUENCES=2000` for more.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import stack
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from state_machines import assert_finds, bound, limit_s, settings_of

from batchline.job import ClaimedJob, Lane
from batchline.store import Store, instances
from batchline.store.contract import Pulse
from batchline.store.instance_contract import Launch, NewInstance

SEQUENCES = int(os.environ.get("BATCHLINE_TEST_SEQUENCES", "25"))
MOST = 4

WATCH = """
CREATE UNLOGGED TABLE seen (n bigserial, id text, was instance_status, is_now instance_status, held int);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO seen (id, was, is_now, held) VALUES (OLD.id, OLD.status, NEW.status,
    (SELECT count(*) FROM workers w JOIN jobs j ON j.worker_id = w.id
     WHERE w.instance = OLD.id AND j.status = 'running'));
  RETURN NULL; END $$;
CREATE TRIGGER watch AFTER UPDATE ON instances FOR EACH ROW EXECUTE FUNCTION watch();
"""
TABLES = ("instances", "launches", "workers", "leases", "jobs", "job_inputs", "seen")
LIFE = ["starting", "serving", "draining", "stopping", "gone"]

numbers = st.integers(min_value=0, max_value=7)
"""Picks one of several, whatever their count."""
likely = numbers.map(bool)
rarely = numbers.map(lambda n: n == 7)


class Machine(RuleBasedStateMachine):
    """The model: who leads, what each launch may bring, and what each worker holds."""

    stores: list[Store]
    model_id: int

    @initialize()
    def begin(self) -> None:
        self.db = self.stores[0].db
        for table in TABLES:
            self.db.run(f"DELETE FROM {table}")
        self.leaders = [uuid.uuid4() for _ in self.stores]
        self.leads = 0
        self.stores[0].workers.lead("autoscaler", self.leaders[0], lease_s=600.0)
        self.launches: list[Launch] = []
        self.ids: list[str] = []
        self.held: dict[uuid.UUID, list[ClaimedJob]] = {}
        self.stores[0].jobs.submit([stack.new_job(self.model_id) for _ in range(40)])
        self.intend(0, 1, leads=True)
        self.settle(0, 0, 0)
        self.a_worker_starts(0, 0)
        self.claim(0, 0)

    def holder(self, who: int, leads: bool) -> uuid.UUID:
        """Who calls: the leader, or whoever."""
        return self.leaders[self.leads if leads else who % len(self.leaders)]

    def ledger(self, who: int) -> Any:
        return self.stores[who % len(self.stores)].instances

    def name_of(self, launch: Launch, nth: int) -> str:
        """What the provider calls the n-th instance of a launch."""
        name = f"{launch.id}-{nth}"
        if name not in self.ids:
            self.ids.append(name)
        return name

    @rule(who=numbers, count=st.integers(1, 3), leads=likely)
    def intend(self, who: int, count: int, leads: bool) -> None:
        leader = self.holder(who, leads)
        launch = self.ledger(who).intend(leader, uuid.uuid4(), pool="cpu", provider="p", count=count, most=MOST)
        assert launch is None or leader == self.leaders[self.leads]
        if launch is not None:
            assert 1 <= launch.count <= count
            self.launches.append(launch)

    @rule(who=numbers, n=numbers, short=st.integers(0, 1))
    def settle(self, who: int, n: int, short: int) -> None:
        for launch in self.launches[-1 - n % max(1, len(self.launches)) :][:1]:
            found = [NewInstance(self.name_of(launch, k)) for k in range(launch.count - short)]
            self.ledger(who).settle(launch.id, found)

    @rule(who=numbers, n=numbers, nth=st.integers(0, 2))
    def adopt(self, who: int, n: int, nth: int) -> None:
        """By its tags, while the reply of its launch is lost."""
        for launch in self.launches[-1 - n % max(1, len(self.launches)) :][:1]:
            if nth < launch.count and launch.id in {x.id for x in self.ledger(who).unsettled()}:
                self.ledger(who).adopt("cpu", "p", launch.id, NewInstance(self.name_of(launch, nth)))

    @rule(who=numbers, n=numbers)
    def a_worker_starts(self, who: int, n: int) -> None:
        for name in self.ids[-1 - n % max(1, len(self.ids)) :][:1]:
            worker = stack.a_worker(self.stores[who % len(self.stores)], instance=name)
            self.held[worker] = []

    def a_worker(self, n: int) -> list[uuid.UUID]:
        return [list(self.held)[-1 - n % len(self.held)]] if self.held else []

    @rule(who=numbers, n=numbers)
    def claim(self, who: int, n: int) -> None:
        for worker in self.a_worker(n):
            got = self.stores[who % len(self.stores)].claims.claim(worker, self.model_id, Lane.ONLINE, rows=2).jobs
            self.held[worker] += got

    @rule(who=numbers, n=numbers)
    def finish(self, who: int, n: int) -> None:
        for worker in self.a_worker(n):
            jobs = self.held[worker]
            self.stores[who % len(self.stores)].claims.finish(worker, [stack.done(job) for job in jobs])
            self.held[worker] = []

    @rule(who=numbers, n=numbers)
    def beat(self, who: int, n: int) -> None:
        """Who drains and holds nothing ends its lease, as the product's workers do; who has lost it starts anew."""
        store = self.stores[who % len(self.stores)]
        for worker in self.a_worker(n):
            pulse = store.workers.heartbeat(worker, lease_s=30.0, models="", rows_per_s=0.0)
            if pulse is Pulse.DRAINING and not self.held[worker]:
                store.workers.bury([worker])
            if pulse is not Pulse.LIVE and not self.held[worker]:
                del self.held[worker]

    @rule(n=numbers, dies=rarely, rescued=st.booleans())
    def a_worker_dies(self, n: int, dies: bool, rescued: bool) -> None:
        for worker in self.a_worker(n) if dies else ():
            self.stores[-1].workers.bury([worker])
            del self.held[worker]
        if rescued:
            self.stores[-1].chores.rescue(max_failures=9)

    @rule(who=numbers)
    def registered(self, who: int) -> None:
        self.ledger(who).registered()

    @rule(who=numbers, count=st.integers(1, 4), leads=likely)
    def drain(self, who: int, count: int, leads: bool) -> None:
        leader = self.holder(who, leads)
        told = self.ledger(who).drain(leader, "cpu", count, "too many")
        assert len(told) <= count
        assert not told or leader == self.leaders[self.leads]

    @rule(who=numbers, leads=likely)
    def drained(self, who: int, leads: bool) -> None:
        self.ledger(who).drained(self.holder(who, leads))

    @rule(who=numbers, n=numbers, leads=likely)
    def stop(self, who: int, n: int, leads: bool) -> None:
        for name in self.ids[-1 - n % max(1, len(self.ids)) :][:1]:
            self.ledger(who).stop(self.holder(who, leads), name, "orphan")

    @rule(who=numbers, n=numbers, gone=rarely)
    def gone(self, who: int, n: int, gone: bool) -> None:
        for name in self.ids[-1 - n % max(1, len(self.ids)) :][: int(gone)]:
            self.ledger(who).gone([name], "vanished")

    @rule(who=numbers)
    def another_leads(self, who: int) -> None:
        who %= len(self.leaders)
        self.db.run("UPDATE leases SET lease_until = now() - interval '1 second'")
        self.stores[who].workers.lead("autoscaler", self.leaders[who], lease_s=600.0)
        self.leads = who

    @invariant()
    def statuses_move_down_and_nothing_busy_is_stopped(self) -> None:
        for _, name, was, is_now, held in self.db.run("WITH s AS (DELETE FROM seen RETURNING *) SELECT * FROM s"):
            assert LIFE.index(is_now) >= LIFE.index(was), (name, was, is_now)
            assert was == is_now or is_now != "stopping" or not held, (name, was, held)

    @invariant()
    def who_is_to_be_ended_holds_nothing(self) -> None:
        assert not self.db.run(
            "SELECT 1 FROM instances i JOIN workers w ON w.instance = i.id JOIN jobs j ON j.worker_id = w.id"
            " WHERE i.status = 'stopping' AND j.status = 'running'"
        )

    @invariant()
    def asked_for_and_there_are_never_beyond_the_limit(self) -> None:
        ledger = self.stores[-1].instances
        may_bring = sum(max(0, x.count - x.instances) for x in ledger.unsettled())
        assert len(ledger.list()) + may_bring <= MOST


@pytest.fixture
def machine(database_url: str) -> Iterator[Any]:
    with bound(Machine, database_url, WATCH) as kind:
        yield kind


@pytest.mark.timeout(limit_s(SEQUENCES))
def test_the_ledger_keeps_its_word(machine):
    """For BATCHLINE_TEST_SEQUENCES sequences of up to 30 calls."""
    run_state_machine_as_test(machine, settings=settings_of(SEQUENCES))


MUTANTS = {
    "what is on its way does not count": ("_INTEND", "i.status <> 'gone'", "i.status = 'serving'"),
    "launches do not count": ("_INTEND", "l.settled_at IS NULL", "false"),
    "a drained one is not looked at again": ("_DRAINED", "w.workers = 0 AND w.running = 0", "true"),
    "stopped at once": ("_STOP", "w.workers = 0 AND w.running = 0", "true"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_machine_can_fail(machine, monkeypatch, name):
    """With a guard cut out of the SQL the same machine finds what it was for."""
    assert_finds(machine, monkeypatch, instances, MUTANTS[name], 150)
