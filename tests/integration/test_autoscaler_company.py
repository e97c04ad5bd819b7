"""An autoscaler in company: of other autoscalers, of other pools, and of what it has not launched itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import stack
from autoscaler_rig import Rig, holder
from fake_provider import Crew, FakeProvider, Options

from autoscaler.config import ADVICE
from autoscaler.loop import Autoscaler
from autoscaler.providers import ADAPTERS, Adapter
from autoscaler.providers.contract import ProviderError, Trouble


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setitem(ADAPTERS, "fake", Adapter("fake_provider", "FakeProvider"))


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec(pool="cpu"))


def test_workers_that_nobody_launched_count_and_are_never_stopped(store, tmp_path, model):
    """`up` has started one: two more make three; without work the two go and the one stays."""
    rig = Rig(store, tmp_path, "max_workers = 3")
    own = stack.a_worker(store, lease_s=600.0)
    jobs = rig.submit(model, 100)
    rig.tick(2)
    assert len(rig.cloud.live()) == 2
    crew = Crew(store, rig.cloud, model)
    for _ in range(200):
        rig.tick(crew=crew)
        if not rig.cloud.live():
            break
    assert store.jobs.terminal(jobs) == set(jobs)
    assert [w.draining for w in store.workers.list() if w.id == own] == [False]
    assert rig.cloud.read()["peak"] == 2


def test_a_broken_provider_stops_no_other_pool(store, tmp_path, model):
    """Whatever it raises; the loop goes on."""
    rig = Rig(store, tmp_path, "min_workers = 1\n[pools.a]\nprovider = 'fake'\nmin_workers = 1")
    broken = FakeProvider("a", Options(str(tmp_path / "a.json")))
    broken.launch = broken.list = broken.end = lambda *_: 1 / 0
    rig.scaler = Autoscaler(store, rig.config, {"a": broken, "cpu": rig.provider}, rig.clock, lease_s=0.3)
    rig.tick(2)
    assert len(rig.cloud.live()) == 1
    assert [launch.pool for launch in store.instances.unsettled()] == ["a"]


def test_two_scalers_at_once_launch_once(store, tmp_path, model):
    """One leads; the other looks on, and takes over when the first resigns."""
    rig = Rig(store, tmp_path, "min_workers = 3")
    pair = [rig.another(), rig.another()]
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Autoscaler.tick, pair))
    state = rig.cloud.read()
    assert (len(state["instances"]), len(state["launches"])) == (3, 1)
    for scaler in pair:
        scaler.close()
    rig.cloud.vanish(next(iter(state["instances"])))
    late = rig.another()
    late.tick()
    assert holder(store) == late._id


def test_who_only_advises_keeps_nobody_from_acting(store, tmp_path, model):
    """It leads while nobody else does; who can act does so at once, and then the other keeps no decisions."""
    rig = Rig(store, tmp_path, "min_workers = 3")
    stack.a_worker(store, lease_s=600.0)
    adviser = Autoscaler(store, ADVICE, {}, rig.clock, lease_s=60.0)
    adviser.tick()
    assert adviser.leads
    assert [d.desired for d in store.instances.decisions(pool="cpu")] == [1]
    rig.clock.advance(5.0)
    rig.scaler = Autoscaler(store, rig.config, {"cpu": rig.provider}, rig.clock, lease_s=60.0)
    rig.tick()
    assert (rig.scaler.leads, len(rig.cloud.live())) == (True, 2)
    rig.clock.advance(100.0)
    adviser.tick()
    assert not adviser.leads
    assert [d.desired for d in store.instances.decisions(pool="cpu")] == [3, 1]
    rig.scaler.close()
    adviser.tick()
    assert adviser.leads
    adviser.configure(rig.config, {"cpu": rig.provider})
    adviser.tick()
    assert holder(store) == adviser.id
    assert store.workers.leader("autoscaler.advice") is None


def test_a_provider_that_takes_its_time_costs_no_other_pool_the_lease(store, tmp_path, model):
    """The first pool's call outlasts the lease; the second one acts in the same tick nonetheless."""
    rig = Rig(store, tmp_path, "min_workers = 1\n[pools.a]\nprovider = 'fake'\nmin_workers = 1")
    slow = FakeProvider("a", Options(str(tmp_path / "a.json")))

    def launch(_):
        rig.clock.advance(40.0)
        store.db.run("UPDATE leases SET lease_until = now() - interval '1 second' WHERE name = 'autoscaler'")
        raise ProviderError(Trouble.UNKNOWN, "no reply")

    slow.launch = launch
    rig.scaler = Autoscaler(store, rig.config, {"a": slow, "cpu": rig.provider}, rig.clock, lease_s=15.0)
    rig.tick()
    assert len(rig.cloud.live()) == 1


def test_what_another_provider_has_launched_is_not_dropped_in_silence(store, tmp_path, caplog):
    """A pool that gets another provider: nobody lists or ends the machines of the one before, so it is told."""
    rig = Rig(store, tmp_path, "min_workers = 1")
    rig.tick()
    store.db.run("UPDATE instances SET provider = 'another'")
    rig.cloud.vanish(*rig.cloud.live())
    rig.tick(20)
    assert [r.levelname for r in caplog.records if "end these yourself" in r.message] == ["ERROR"]


def test_instances_of_a_pool_without_a_provider_are_told_of(store, tmp_path, caplog):
    """Who takes a pool out of the file leaves its machines running."""
    rig = Rig(store, tmp_path, "min_workers = 1")
    rig.tick()
    assert not [r for r in caplog.records if "nobody ends" in r.message]
    rig.scaler.configure(rig.config, {})
    rig.tick(3)
    assert [r.levelname for r in caplog.records if "nobody ends" in r.message] == ["WARNING"]


def test_workers_that_others_start_along_with_it_are_waited_for(store, tmp_path):
    """`up` starts workers and the autoscaler at once: nothing is launched in their place before the limit is over."""
    rig = Rig(store, tmp_path, "min_workers = 2\nstarted_elsewhere = 2\nstart_limit_s = 60")
    rig.tick(6)
    stack.a_worker(store)
    rig.tick(6)
    assert rig.cloud.live() == set()
    rig.tick(3)
    assert len(rig.cloud.live()) == 1
