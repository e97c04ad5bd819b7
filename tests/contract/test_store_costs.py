"""`cost_contract.CostRoom`: what machines cost is shared out to the last cent; a spent budget holds bulk."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta

import batch_stack
import pytest
import stack
from explaining import Explaining

from batchline.batch import show_batch_id
from batchline.job import Lane
from batchline.store.cost_contract import By, PoolMoney, Standing, Used
from batchline.store.costs import CostRoom

HOUR = timedelta(hours=1)
NOON = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 48 * HOUR
"""A whole hour, two days ago."""


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


@pytest.fixture
def machine(database_url):
    """Enters an instance of the ledger that lived for so many hours from NOON + `at`."""

    def enter(name, *, at=0.0, hours=1.0, price=1.0, on_demand=0.0, pool="cpu"):
        born = NOON + at * HOUR
        stack.query(
            database_url,
            "INSERT INTO instances (id, pool, provider, status, kind, zone, market, price_per_hour,"
            " on_demand_per_hour, launched_at, gone_at) VALUES (%s, %s, 'ec2-spot', 'gone', 'c7g.large', 'a', 'spot',"
            " %s, %s, %s, %s)",
            (name, pool, price, on_demand, born, born + hours * HOUR),
        )
        return name

    return enter


def worker_on(store, name="", pool="cpu"):
    worker_id = uuid.uuid4()
    store.workers.register(worker_id, host="h", pid=1, pool=pool, device="cpu", lease_s=30.0, instance=name)
    return worker_id


def used(seconds, *, at=0, tenant=1, model=1, batch=None):
    return Used(NOON + at * HOUR, tenant, model, batch, seconds)


def idle(seconds, *, at=0):
    return Used(NOON + at * HOUR, 0, 0, None, seconds)


def lines(costs):
    """What is shown: (key, idle) -> (seconds, cost, on demand)."""
    return {
        (line.key, line.idle): pytest.approx((line.worker_s, line.cost, line.on_demand), abs=1e-9)
        for line in costs.lines
    }


def test_an_hour_is_shared_out_by_the_seconds_that_were_spent_and_the_rest_is_idle(store, machine):
    """Of $3.60 an hour, 1,000 s are a dollar; start-up before the worker's first second is idle too."""
    store.catalogue.add_key("k", tenant="acme", name="n", scopes=("read",))
    worker = worker_on(store, machine("i-1", price=3.6))
    store.costs.report(worker, [used(1000.0), used(600.0, tenant=77), idle(1400.0)])
    found = store.costs.read(By.TENANT, NOON, NOON + HOUR)
    expected = {("acme", False): (1000, 1.0, 1.0), ("77", False): (600, 0.6, 0.6), (None, True): (2000, 2.0, 2.0)}
    assert lines(found) == expected
    assert (found.machines, found.machine_s, found.cost) == (1, 3600.0, pytest.approx(3.6))
    assert [line.cost for line in found.lines if not line.idle] == pytest.approx([1.0, 0.6])


def test_whoever_tells_it_by_whatever_all_lines_add_up_to_what_all_machines_cost(store, machine, model):
    """Machines that come and go within hours, several workers on one, none on others, clocks that are off, workers that
    nobody launched; over any range.
    """
    rng = random.Random(7)
    store.costs.keep(PoolMoney("own", price_per_hour=0.5))
    machines = [(f"i-{n}", rng.uniform(0, 6), rng.uniform(0.02, 3), rng.uniform(0.1, 2)) for n in range(30)]
    batches = [uuid.uuid4() for _ in range(4)]
    own_s = 0.0
    for name, at, hours, price in machines:
        machine(name, at=at, hours=hours, price=price, on_demand=price * 3, pool=rng.choice(["cpu", "gpu"]))
    for name in [m[0] for m in machines[:25] for _ in range(rng.choice([1, 1, 3]))] + [""] * 3:
        worker = worker_on(store, name, pool="cpu" if name else "own")
        for at in range(9):
            batch = rng.choice([None, *batches])
            store.costs.report(
                worker, [used(rng.uniform(0, 3700), at=at, tenant=rng.randint(1, 3), model=model, batch=batch),
                         idle(rng.uniform(0, 1800), at=at)],
            )  # fmt: skip
    (own_s,) = stack.query(
        store.db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False),
        "SELECT sum(seconds) FROM worker_hours WHERE pool = 'own'",
    )[0]
    paid = sum(hours * price for _, _, hours, price in machines)
    for by in By:
        found = store.costs.read(by, NOON, NOON + 9 * HOUR)
        assert found.cost == pytest.approx(paid + own_s / 3600 * 0.5)
        assert found.on_demand == pytest.approx(3 * paid + own_s / 3600 * 0.5)
        assert sum(line.cost for line in found.lines) == pytest.approx(found.cost)
        assert sum(line.on_demand for line in found.lines) == pytest.approx(found.on_demand)
        assert all(line.worker_s >= -1e-6 and line.cost >= -1e-9 for line in found.lines)
        parts = [store.costs.read(by, NOON + n * HOUR, NOON + (n + 3) * HOUR) for n in (0, 3, 6)]
        assert sum(part.cost for part in parts) == pytest.approx(found.cost)
        few = store.costs.read(by, NOON, NOON + 9 * HOUR, limit=1)
        assert sum(line.cost for line in few.lines) == pytest.approx(found.cost)
        assert sum(not line.idle for line in few.lines) <= 2
    assert {line.key for line in store.costs.read(By.POOL, NOON, NOON + 9 * HOUR).lines} == {"cpu", "gpu", "own"}
    assert None in {line.key for line in store.costs.read(By.BATCH, NOON, NOON + 9 * HOUR).lines}


def test_spot_savings_are_what_the_same_time_would_have_cost_on_demand(store, machine):
    """An instance that tells no on-demand price saves nothing."""
    machine("spot", price=0.03, on_demand=0.10)
    machine("plain", price=0.20)
    found = store.costs.read(By.POOL, NOON, NOON + HOUR)
    assert (found.cost, found.on_demand) == (pytest.approx(0.23), pytest.approx(0.30))


def test_a_report_may_come_twice_or_late_and_a_price_that_changes_touches_no_past_hour(store):
    """Sums of an hour only grow; what a worker's time costs is the pool's price of then."""
    store.costs.keep(PoolMoney("cpu", price_per_hour=1.0))
    worker = worker_on(store)
    for seconds in (100.0, 1800.0, 1800.0, 900.0):
        store.costs.report(worker, [used(seconds)])
    store.costs.keep(PoolMoney("cpu", price_per_hour=10.0))
    store.costs.report(worker, [used(360.0, at=1)])
    store.costs.report(uuid.uuid4(), [used(1.0)])  # a worker that nobody knows
    assert store.costs.read(By.DAY, NOON, NOON + HOUR).cost == pytest.approx(0.5)
    assert store.costs.read(By.DAY, NOON, NOON + 2 * HOUR).cost == pytest.approx(1.5)


def test_a_spot_price_that_changes_counts_from_then_on(store, machine, database_url):
    """Hours that a worker has told of keep the price of then; a machine that no worker tells of has its last one."""
    batch = uuid.uuid4()
    for name in ("told", "silent"):
        machine(name, price=1.0, hours=2)
    stack.query(database_url, "UPDATE instances SET status = 'serving', gone_at = NULL, on_demand_per_hour = 8.0")
    worker = worker_on(store, "told")
    store.costs.report(worker, [used(3600.0, batch=batch)])
    assert store.instances.priced({"told": 3.0, "silent": 3.0}) == 2
    store.costs.report(worker, [used(3600.0, at=1, batch=batch)])
    stack.query(database_url, "UPDATE instances SET status = 'gone', gone_at = %s", (NOON + 2 * HOUR,))
    found = store.costs.read(By.BATCH, NOON, NOON + 2 * HOUR)
    assert (found.cost, found.on_demand) == (pytest.approx(1 + 3 + 3 + 3), pytest.approx(4 * 8))
    assert store.costs.of_batches([batch]) == {batch: pytest.approx(4.0)}


def test_a_batch_costs_what_its_slices_had_of_each_machine(store, machine):
    """Idle time is not its; two workers share one machine; without any price it has no cost."""
    batch, other, free = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    for name, price in (("i-1", 3.6), ("i-2", 7.2)):
        worker = worker_on(store, machine(name, price=price, hours=2))
        store.costs.report(worker, [used(100.0, batch=batch), used(200.0, batch=batch, at=1), used(50.0, batch=other)])
    for _ in range(2):
        worker = worker_on(store, machine(f"i-{uuid.uuid4()}", price=3.6) if _ == 0 else "i-1")
        store.costs.report(worker, [idle(3600.0, at=4)])
    store.costs.report(worker_on(store), [used(1000.0, batch=free)])
    assert store.costs.of_batches([batch, other, free, uuid.uuid4()]) == {
        batch: pytest.approx(0.9),
        other: pytest.approx(0.15),
    }
    shown = {line.key: line.cost for line in store.costs.read(By.BATCH, NOON, NOON + 2 * HOUR).lines if not line.idle}
    assert shown[show_batch_id(batch)] == pytest.approx(0.9)
    assert store.costs.of_batches([]) == {}


def test_a_job_costs_its_part_of_the_worker(store, machine, model, database_url):
    """What the worker noted with its result, at what the machine cost in that hour; unknown before it has ended."""
    job = stack.new_job(model)
    store.jobs.submit([job])
    assert store.costs.of_job(job.id).cost is None
    worker = worker_on(store, "i-1")
    (held,) = store.claims.claim(worker, model, Lane.ONLINE, rows=1).jobs
    store.claims.finish(worker, [stack.done(held, timings='{"busy": 500.0}')])
    stack.query(database_url, "UPDATE jobs SET finished_at = %s", (NOON + HOUR / 2,))
    machine("i-1", price=7.2, on_demand=14.4)
    store.costs.report(worker, [used(0.5), idle(3599.5)])
    found = store.costs.of_job(job.id)
    assert (found.tenant_id, found.machine, found.worker_s) == (stack.TENANT, "i-1", 0.5)
    assert (found.cost, found.on_demand) == (pytest.approx(0.001), pytest.approx(0.002))
    assert store.costs.of_job(uuid.uuid4()) is None
    stack.query(
        database_url,
        "INSERT INTO worker_hours SELECT %s, n::text, gen_random_uuid(), 1, 1, gen_random_uuid(), 'cpu', 1, 0"
        " FROM generate_series(1, 20000) n",
        (NOON,),
    )
    explaining = Explaining(database_url)
    assert CostRoom(explaining).of_job(job.id) == found
    assert explaining.pages() < 60, "whatever the others did in that hour"


def test_what_a_pool_has_spent_today_counts_launched_and_own_workers(store, database_url):
    """Of this pool only, up to now."""
    now = datetime.now(UTC)
    for name, pool in (("a", "cpu"), ("b", "gpu")):
        stack.query(
            database_url,
            "INSERT INTO instances (id, pool, provider, status, kind, zone, market, price_per_hour,"
            " on_demand_per_hour, launched_at) VALUES (%s, %s, 'x', 'serving', '', '', '', 2, 2,"
            " now() - interval '90 minutes')",
            (name, pool),
        )
    store.costs.keep(PoolMoney("cpu", price_per_hour=1.0))
    store.costs.report(worker_on(store), [Used(now.replace(minute=0, second=0, microsecond=0), 0, 0, None, 1800.0)])
    assert store.costs.spent("cpu", now - 5 * HOUR) == pytest.approx(3.5, rel=1e-3)
    assert store.costs.spent("none", now - 5 * HOUR) == 0.0


def test_a_pool_whose_budget_is_spent_claims_no_slices_and_goes_on_online(store, model):
    """Of this pool only, until the moment that was given, or until it is taken back; suspects neither."""
    other = store.catalogue.register_model(stack.a_spec("other", pool="gpu"))
    for number in (model, other):
        batch_stack.planned(store, number, [10])
        store.jobs.submit([stack.new_job(number)])

    def heads(lane):
        return [len(store.claims.heads(pool, lane)) for pool in ("cpu", "gpu")]

    store.costs.keep(PoolMoney("cpu", 1.0, 10.0, 11.0, Standing.SPENT, datetime.now(UTC) + HOUR))
    assert (heads(Lane.BULK), heads(Lane.ONLINE)) == ([0, 1], [1, 1])
    (money,) = store.costs.money()
    assert (money.pool, money.standing, money.spent_today, money.budget_per_day) == ("cpu", "spent", 11.0, 10.0)
    store.costs.keep(PoolMoney("cpu", 1.0, 10.0, 11.0, Standing.SPENT, datetime.now(UTC) - HOUR))
    assert heads(Lane.BULK) == [1, 1]
    store.costs.keep(PoolMoney("cpu", 1.0, 20.0, 11.0, Standing.WELL))
    assert heads(Lane.BULK) == [1, 1]


def test_old_hours_are_forgotten(store, machine, database_url):
    """And the instances of the ledger that are gone for as long."""
    worker = worker_on(store, machine("i-1"))
    store.costs.report(worker, [used(1.0), used(1.0, at=46)])
    machine("i-2", at=46)
    assert store.costs.prune(kept_s=24 * 3600.0) == 2
    assert store.costs.prune(kept_s=24 * 3600.0) == 0
    assert stack.query(database_url, "SELECT id FROM instances") == [("i-2",)]
