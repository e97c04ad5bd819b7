"""The autoscaler over the real ledger and a cloud with faults: never too many, none twice or lost, none busy ended."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
import stack
from autoscaler_rig import Rig, holder
from fake_provider import Crew

from autoscaler import act
from autoscaler.providers import ADAPTERS, Adapter
from autoscaler.providers.contract import ProviderError, Trouble
from batchline.job import Status
from batchline.store.instance_contract import InstanceStatus


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setitem(ADAPTERS, "fake", Adapter("fake_provider", "FakeProvider"))


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec(pool="cpu"))


def test_it_scales_up_and_back_to_nothing(store, tmp_path, model):
    """A queue brings workers within two ticks, as far as the limit; when it is empty they drain, end and are gone."""
    rig = Rig(store, tmp_path)
    jobs = rig.submit(model, 100)
    rig.tick(2)
    assert len(rig.cloud.live()) == 6
    crew = Crew(store, rig.cloud, model)
    for _ in range(200):
        rig.tick(crew=crew)
        if not rig.cloud.live() and not rig.ledger():
            break
    assert (rig.cloud.live(), rig.ledger()) == (set(), {})
    assert {view.status for view in store.jobs.read(jobs).values()} == {Status.SUCCEEDED}
    assert (crew.busy_stopped, rig.cloud.read()["peak"]) == (0, 6)
    kept = store.instances.decisions(pool="cpu")
    assert {scaling.desired for scaling in kept} >= {0, 6}
    assert kept[-1].signals["queued_rows"] == 100


@pytest.mark.parametrize("seed", [1, 2])
def test_a_bad_cloud_costs_time_and_nothing_else(store, tmp_path, model, seed):
    """Half of all calls throttled, a third of the replies lost after the effect, no capacity now and then, listings
    stale: never above the limit, nothing untracked, nothing busy ended, and it converges."""
    rig = Rig(store, tmp_path, stale_s=0.3, throttled=0.5, lost=0.3, capacity=0.2, seed=seed)
    jobs = rig.submit(model, 150)
    crew = Crew(store, rig.cloud, model, seed=seed)
    for n in range(400):
        if n in (20, 40):
            jobs += rig.submit(model, 60)
        if n % 30 == 29:
            rig.scaler = rig.another()  # the one before is dead: its memory is lost, its lease must run out
        rig.tick(crew=crew)
        assert len(rig.cloud.live()) <= 6
        still = rig.cloud.live() or rig.ledger() or store.instances.unsettled()
        if n > 40 and not still and store.jobs.terminal(jobs) == set(jobs):
            break
    assert (rig.cloud.live(), rig.ledger(), store.instances.unsettled()) == (set(), {}, [])
    assert {view.status for view in store.jobs.read(jobs).values()} == {Status.SUCCEEDED}
    state = rig.cloud.read()
    assert (crew.busy_stopped, state["peak"]) == (0, 6)
    known = {str(i.id) for i in store.instances.list(gone_within_s=1e6)}
    assert known == set(state["instances"])


def test_one_sweep_leaves_no_orphan(store, tmp_path, model):
    """What nobody knows is entered; what no known launch has brought is ended; what it holds is not lost."""
    rig = Rig(store, tmp_path, "min_workers = 1")
    rig.tick(2)
    (mine,) = rig.cloud.live()
    stack.a_worker(store, instance=mine)
    rig.cloud.start("stray", str(uuid.uuid4()), age_s=1000.0)
    rig.cloud.start("recent", str(uuid.uuid4()), age_s=10.0)
    rig.cloud.start("untagged", None)
    rig.cloud.start("of another pool", None, pool="gpu")
    rig.scaler = rig.another()  # a start sweeps
    rig.store.workers.resign("autoscaler", holder(store))
    rig.tick()
    assert rig.cloud.live() - {"untagged"} == {mine, "recent", "of another pool"}
    assert set(rig.ledger()) == {mine, "stray", "untagged"}


def test_a_lost_reply_is_asked_for_again_with_the_same_id(store, tmp_path, model):
    """The second call names what the first has started."""
    rig = Rig(store, tmp_path, "min_workers = 2", lost=1.0)
    rig.tick()
    (launch,) = store.instances.unsettled()
    assert (launch.tries, len(rig.cloud.live()), rig.ledger()) == (1, 2, {})
    rig.provider.heal()
    rig.tick(2)
    assert store.instances.unsettled() == []
    assert set(rig.ledger()) == rig.cloud.live()
    assert len(rig.cloud.read()["instances"]) == 2


def test_one_bad_id_keeps_no_other_from_being_ended(store, tmp_path, model):
    """The provider refuses the whole call; each is asked for alone."""
    rig = Rig(store, tmp_path, "min_workers = 3")
    rig.tick()
    *good, bad = sorted(rig.cloud.live())
    rig.provider.refused = {bad}
    for id_ in (*good, bad):
        store.instances.stop(holder(store), id_, "a test")
    rig.tick()
    assert rig.cloud.live() & {bad, *good} == {bad}
    rig.provider.refused = set()
    rig.tick(60)
    assert bad in rig.cloud.live(), "a refusal is not repeated at every tick"
    rig.clock.advance(act.REFUSED_S)
    rig.tick()
    assert bad not in rig.cloud.live()


def test_a_vanished_instance_is_dropped_and_replaced(store, tmp_path, model):
    """The others are left as they are."""
    rig = Rig(store, tmp_path, "min_workers = 3", stale_s=0.1)
    rig.tick()
    lost, *rest = sorted(rig.cloud.live())
    workers = {id_: stack.a_worker(store, instance=id_) for id_ in (lost, *rest)}
    rig.tick(2)
    rig.cloud.vanish(lost)
    store.workers.bury([workers[lost]])
    for _ in range(60):
        rig.tick()
        if lost not in rig.ledger():
            break
    assert lost not in rig.ledger()
    assert set(rest) < set(rig.ledger())
    assert len(rig.cloud.live()) == 3


def test_one_that_never_registers_is_stopped_and_not_replaced_at_once(store, tmp_path, model):
    """An image that does not start must not be launched over and over."""
    rig = Rig(store, tmp_path, "min_workers = 1\nstart_limit_s = 0.2")
    rig.tick()
    (first,) = rig.cloud.live()
    for _ in range(100):
        rig.tick()
        if not rig.cloud.live():
            break
    else:
        pytest.fail("still there")
    before = rig.cloud.read()["calls"]["launch"]
    rig.tick(2)
    assert rig.cloud.read()["calls"]["launch"] == before
    assert first not in rig.ledger() or rig.ledger()[first] is InstanceStatus.STOPPING
    rig.tick(10)
    assert rig.cloud.read()["calls"]["launch"] > before


def test_one_that_works_after_all_drains_and_is_not_called_stopped(store, tmp_path, caplog):
    """Its worker registers between the look and the stop: nothing is logged as stopped, and launches go on."""
    rig = Rig(store, tmp_path, "min_workers = 1\nstart_limit_s = 0.01")
    rig.tick()
    (late,) = rig.cloud.live()
    stop = store.instances.stop

    def too_late(leader, id_, reason):
        stack.a_worker(store, instance=id_)
        return stop(leader, id_, reason)

    store.instances.stop = too_late
    rig.tick(13)  # a listing a minute
    assert rig.ledger()[late] is InstanceStatus.DRAINING
    assert not [r for r in caplog.records if r.message == "stopped"]
    assert [r.levelname for r in caplog.records if "not stopped" in r.message] == ["WARNING"]
    assert len(rig.cloud.live()) == 2, "the one that drains is replaced at once"


@pytest.mark.parametrize(
    ("trouble", "wait_s"), [(Trouble.REFUSED, act.REFUSED_S), (Trouble.CAPACITY, act.NO_CAPACITY_S)]
)
def test_who_says_no_is_left_alone_for_a_while(store, tmp_path, caplog, trouble, wait_s):
    """The ledger keeps why; nothing is asked again before its time; a refusal is logged as an error."""
    rig = Rig(store, tmp_path, "min_workers = 1")
    asked = []

    def launch(given):
        asked.append(given)
        raise ProviderError(trouble, "not here")

    rig.provider.launch = launch
    rig.tick(20)
    rig.clock.advance(wait_s - 101)
    rig.tick()
    assert (len(asked), store.instances.unsettled()) == (1, [])
    assert ("ERROR" in {r.levelname for r in caplog.records}) == (trouble is Trouble.REFUSED)
    rig.tick(2)
    assert len(asked) == 2


def test_switched_off_nothing_is_launched_or_stopped(store, tmp_path, model):
    """The kill switch; what is there is still counted."""
    rig = Rig(store, tmp_path, "max_workers = 2\nmin_workers = 2")
    rig.tick()
    running = rig.cloud.live()
    off = Rig(store, tmp_path, "max_workers = 1\nenabled = false")
    store.workers.resign("autoscaler", holder(store))
    store.instances.stop(uuid.uuid4(), "nobody", "no leader")
    rig.submit(model, 100)
    off.cloud.start("stray", str(uuid.uuid4()), age_s=1000.0)
    before = off.cloud.read()["calls"]
    off.tick(5)
    assert off.cloud.live() == running | {"stray"}
    assert {k: v for k, v in off.cloud.read()["calls"].items() if k != "list"} == {
        k: v for k, v in before.items() if k != "list"
    }


def test_machines_whose_workers_died_count_towards_the_maximum(store, tmp_path, model):
    """They still run: with the one that nobody launched they are three, and three is the limit."""
    rig = Rig(store, tmp_path, "max_workers = 3\nmin_workers = 3")
    stack.a_worker(store, lease_s=600.0)
    rig.tick(2)
    workers = [stack.a_worker(store, instance=id_) for id_ in rig.cloud.live()]
    rig.tick(2)
    store.workers.bury(workers)
    rig.tick(4)
    assert len(rig.cloud.live()) == 2


def test_a_scaler_that_just_started_gives_nothing_up_before_it_has_seen_what_arrives(store, tmp_path, model):
    """With no history any policy takes busy workers for idle ones."""
    rig = Rig(store, tmp_path, "policy_options = { rows_per_worker = 10, cooldown_s = 40 }")
    rig.submit(model, 30)
    rig.tick()
    assert len(rig.cloud.live()) == 3
    store.db.run("DELETE FROM jobs")
    store.db.run("DELETE FROM backlog")
    rig.scaler.close()
    rig.scaler = rig.another()
    rig.tick(8)
    assert [i.status.value for i in store.instances.list()] == ["starting"] * 3
    rig.tick(2)
    assert "starting" not in {i.status.value for i in store.instances.list()}


def test_a_scaler_that_has_looked_on_from_the_beginning_gives_up_as_soon_as_its_policy_says(store, tmp_path, model):
    """The minute at the start is none at the first scale-in."""
    rig = Rig(store, tmp_path, "policy_options = { rows_per_worker = 10, cooldown_s = 100 }")
    rig.submit(model, 30)
    rig.tick()
    store.db.run("DELETE FROM jobs")
    store.db.run("DELETE FROM backlog")
    rig.tick(19)
    assert [i.status.value for i in store.instances.list()] == ["starting"] * 3
    rig.tick(3)
    assert "starting" not in {i.status.value for i in store.instances.list()}


def test_a_launch_that_nobody_could_settle_is_given_up(store, tmp_path, model):
    """After an hour, when no provider remembers its id: what is listed of it is entered, and it counts no more."""
    rig = Rig(store, tmp_path, "min_workers = 2", lost=1.0)
    rig.tick()
    rig.provider.launch = lambda _: (_ for _ in ()).throw(ProviderError(Trouble.UNKNOWN, "no reply"))
    rig.clock.advance(act.LAUNCH_KEPT_S + 1)
    rig.tick(2)
    assert store.instances.unsettled() == []
    assert set(rig.ledger()) == rig.cloud.live()
    assert len(rig.cloud.live()) == 2


def test_nobody_is_given_up_for_a_launch_that_may_bring_nothing(store, tmp_path, model):
    """While the provider does not answer, the minimum is who is there."""
    rig = Rig(store, tmp_path, "min_workers = 1")
    rig.tick()
    (first,) = rig.cloud.live()
    stack.a_worker(store, instance=first, lease_s=600.0)
    rig.provider.launch = lambda _: (_ for _ in ()).throw(ProviderError(Trouble.UNKNOWN, "no reply"))
    rig.submit(model, 20)
    store.db.run("UPDATE chore_marks SET at = '-infinity'")  # the queue is counted once a second
    rig.tick()
    assert len(store.instances.unsettled()) == 1
    store.db.run("DELETE FROM jobs")
    store.db.run("DELETE FROM backlog")
    rig.tick(6)
    assert store.instances.decisions(pool="cpu", limit=1)[0].desired == 1
    assert rig.ledger() == {first: InstanceStatus.SERVING}


def test_what_runs_costs_what_the_listing_says(store, tmp_path):
    """Spot prices change while an instance lives."""
    rig = Rig(store, tmp_path, "min_workers = 1")
    rig.tick(2)
    found = rig.provider.list()
    rig.provider.list = lambda: [replace(f, instance=replace(f.instance, price_per_hour=2.5)) for f in found]
    rig.tick(13)  # a listing a minute
    assert [i.price_per_hour for i in store.instances.list()] == [2.5]
