"""The autoscaler sees what is queued and who works, and says it."""

import json
import os
import random
import subprocess
import sys
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from stack import a_spec, a_worker, new_job

from autoscaler.config import parse
from autoscaler.loop import Autoscaler
from autoscaler.observe import Look, Observer
from autoscaler.policies import DrainTime
from autoscaler.signals import Decision, Demand, Facts, Limits, Signals
from batchline.clock import FakeClock, SystemClock
from batchline.errors import StoreUnavailableError
from batchline.job import first_id_at
from batchline.store.clock import StoreClock
from batchline.store.contract import Speed
from batchline.store.instance_contract import NewInstance


def test_signals_are_queued_rows_and_live_workers_by_pool(store):
    """Rows of every tenant count; a draining worker is no capacity."""
    model = store.catalogue.register_model(a_spec(pool="cpu"))
    store.jobs.submit([new_job(model, rows=3), new_job(model, rows=4, tenant_id=2)])
    a_worker(store)
    store.workers.drain(a_worker(store))
    seen = Observer(store, SystemClock()).look()["cpu"].signals
    assert (seen.queued_rows, seen.bulk_rows, seen.workers, seen.draining) == (7, 0, 1, 1)


def test_rows_of_a_dear_model_ask_for_workers_that_as_many_of_a_cheap_one_do_not(store):
    """1,000 and 10 rows/s in one pool: 6,000 rows are six seconds of one worker or ten minutes."""
    fast, slow = (store.catalogue.register_model(a_spec(name)) for name in ("fast", "slow"))
    speeds = {fast: Speed(1000.0, 0.0), slow: Speed(10.0, 0.0)}
    store.workers.heartbeat(a_worker(store), lease_s=60.0, models="", rows_per_s=300.0, speeds=speeds)
    observer, wanted = Observer(store, SystemClock()), []
    for model in (fast, slow):
        store.jobs.submit([new_job(model, rows=6000)])
        store.chores.count_backlog(every_s=0.0)
        seen = observer.look()["cpu"].signals
        wanted.append(DrainTime().decide([seen], Facts(start_s=30.0), seen.at).desired)
    assert (seen.queued_rows, seen.queued_work_s, seen.arrived_work_s) == (12_000, 606.0, 606.0)
    assert wanted[0] == 1
    assert 1 + 31 <= wanted[1] <= 1 + 57, "606 worker-seconds within 40 to 48 s, of which new ones serve 10 to 18"


def launched(store, *names, count=None, settle=True):
    """Instances of these names, or a launch that may still bring them."""
    leader, launch_id = uuid.uuid5(uuid.NAMESPACE_DNS, "leader"), uuid.uuid4()
    assert store.workers.lead("autoscaler", leader, lease_s=60.0) is not None
    launch = store.instances.intend(leader, launch_id, pool="cpu", provider="fake", count=count or len(names), most=100)
    if settle:
        store.instances.settle(launch.id, [NewInstance(name, price_per_hour=0.5) for name in names])
    return leader


def test_every_worker_counts_once_as_live_pending_or_draining(store):
    """Open launches and starting instances are pending until a worker lives there; a spare incarnation is no second
    worker, one without an instance is nobody's to stop; what drains is no capacity."""
    leader = launched(store, "starting", "serving", "leaving", "dead", "twice")
    launched(store, "later", "later still", settle=False)
    for name in ("serving", "leaving", "twice", "twice"):
        a_worker(store, instance=name)
    store.workers.bury([a_worker(store, instance="dead")])
    store.db.run("UPDATE instances SET status = 'serving' WHERE id = 'dead'")
    store.instances.stop(leader, "leaving", "a test")
    a_worker(store)
    store.instances.registered()
    look = Observer(store, SystemClock()).look()["cpu"]
    seen = look.signals
    assert (seen.workers, seen.pending, seen.draining) == (3, 3, 1)
    assert (look.unmanaged, look.managed, look.moving) == (1, 3, True)


def test_what_arrived_only_grows_though_it_is_counted_from_later_moments(store):
    """Hours of looks count each row once."""
    model = store.catalogue.register_model(a_spec(pool="cpu"))
    clock = FakeClock(datetime.now(UTC) - timedelta(hours=3))
    observer, seen, rng = Observer(store, clock), [0.0], random.Random(1)
    submitted = 0
    for _ in range(40):
        clock.advance(270.0)
        for age_s in (250.0, 100.0, 1.0):
            rows = rng.randrange(5)
            if rows:
                at = clock.now().timestamp() - age_s
                store.jobs.submit([new_job(model, id=first_id_at(at), rows=rows)])
                submitted += rows
        seen.append(observer.look()["cpu"].signals.arrived_rows)
    assert seen == sorted(seen)
    assert seen[-1] == submitted


@pytest.mark.parametrize("minutes", [-7, 7])
def test_a_machine_whose_clock_is_off_sees_and_counts_by_that_of_postgres(store, minutes, caplog):
    """Arrivals, floors, days and ages of launches are compared with what Postgres' clock has written."""
    own = FakeClock(datetime.now(UTC) + timedelta(minutes=minutes))
    clock = StoreClock(store.db, own)
    model = store.catalogue.register_model(a_spec(pool="cpu"))
    clock.refresh()
    observer = Observer(store, clock)
    off_s = abs((clock.now() - datetime.now(UTC)).total_seconds())
    assert off_s < 30
    assert [r.seconds for r in caplog.records if "clock is off" in r.message] == [60 * minutes]
    store.jobs.submit([new_job(model, rows=3)])
    assert observer.look()["cpu"].signals.arrived_rows == 3
    own._now += timedelta(hours=5)  # somebody sets it
    clock.refresh()
    assert abs((clock.now() - datetime.now(UTC)).total_seconds()) < 30
    own.advance(50.0)
    store.jobs.submit([new_job(model, rows=4)])
    assert observer.look()["cpu"].signals.arrived_rows == 7


def test_while_postgres_is_away_time_goes_on(store):
    """By the monotonic clock; before it has ever answered, this machine's counts."""
    own, store_db = FakeClock(datetime(2020, 1, 1, tzinfo=UTC)), store.db
    clock = StoreClock(store_db, own)
    store.db.run = away
    clock.refresh()
    assert clock.now() == own.now()
    del store.db.run
    own.advance(6.0)
    clock.refresh()
    began = clock.now()
    assert abs((began - datetime.now(UTC)).total_seconds()) < 30
    store.db.run = away
    own.advance(100.0)
    clock.refresh()
    assert clock.now() == began + timedelta(seconds=100)


def away(*_):
    raise StoreUnavailableError("away")


def test_start_up_time_and_price_are_measured(store):
    """Median of launch to registration of the pool's instances; what has not been measured is as configured."""
    pool = parse("[pools.cpu]\nstart_s = 33.0", "a.toml").pools["cpu"]
    assert Observer(store, SystemClock()).facts(pool).start_s == 33.0
    launched(store, "a", "b", "c")
    store.db.run("UPDATE instances SET launched_at = now() - interval '50 s', registered_at = now() WHERE id <> 'c'")
    facts = Observer(store, SystemClock()).facts(pool)
    assert (round(facts.start_s), facts.price_per_hour) == (50, 0.5)


def test_money_is_counted_four_times_a_minute(store, monkeypatch):
    """A look at all hours of all workers since midnight is not for every tick; a new day begins with nothing."""
    clock, asked = FakeClock(datetime(2026, 11, 22, 23, 58, tzinfo=UTC)), []
    monkeypatch.setattr(type(store.costs), "spent", lambda _, pool, since: asked.append(since) or 7.0)
    observer = Observer(store, clock)
    for _ in range(24):
        assert observer.spent("cpu", Limits(budget_per_day=10.0)).today == 7.0
        clock.advance(5.0)
    assert asked == [datetime(2026, 11, 22, tzinfo=UTC)] * 8
    observer.spent("cpu", Limits(budget_per_day=10.0))
    assert asked[8:] == [datetime(2026, 11, 23, tzinfo=UTC)]
    observer.spent("cpu", Limits())
    assert len(asked) == 9


class Listens:
    """A policy that notes how many deadlines of each look it is shown."""

    name, remembers_s = "listens", 900.0

    def decide(self, history, facts, now):
        self.shown = [len(look.demands) for look in history]
        return Decision(0, "")


def test_deadlines_are_remembered_of_the_last_look_alone(store, monkeypatch):
    """A tenant may have a hundred thousand batches open; two hundred looks at them would not fit into memory."""
    config, policy = parse("[pools.cpu]", "a.toml"), Listens()
    pools = {"cpu": replace(config.pools["cpu"], policy=policy)}
    look = Look(Signals(at=0.0, demands=(Demand(60.0, 1.0), Demand(90.0, 2.0))), 0, 0, moving=False)
    monkeypatch.setattr(Observer, "look", lambda *_: {"cpu": look})
    scaler = Autoscaler(store, replace(config, pools=pools), {}, SystemClock(), lease_s=60.0)
    for _ in range(3):
        scaler.tick()
    assert policy.shown == [0, 0, 2]
    look = Look(Signals(at=-60.0), 0, 0, moving=False)
    scaler.tick()
    assert policy.shown == [0], "Postgres' clock went back: what was seen before is no history"


def test_status_tells_it_once(store, database_url):
    """`python -m autoscaler status --json`: one document on stdout, exit 0."""
    model = store.catalogue.register_model(a_spec(pool="cpu"))
    store.jobs.submit([new_job(model, rows=1500)])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "autoscaler", "status", "--json"],
        env=os.environ | {"DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pool = json.loads(done.stdout)["pools"][0]
    assert (pool["pool"], pool["queued_rows"], pool["desired"]) == ("cpu", 1500, 2)
