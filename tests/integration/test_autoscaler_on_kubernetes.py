"""The autoscaler, the ledger and a faulty Kubernetes at once: never too many, nobody busy stopped, none forgotten."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import kube_server
import pytest
import stack
from fake_provider import Crew
from kube_server import Cluster

from autoscaler.config import parse
from autoscaler.loop import Autoscaler
from autoscaler.providers import build, kubernetes
from batchline.clock import FakeClock
from batchline.job import Status
from batchline.store import Store

MOST = 6
SETTINGS = f"""
every_s = 0.1
[pools.cpu]
provider = "kubernetes"
policy = "queue"
policy_options = {{ rows_per_worker = 10, cooldown_s = 10 }}
max_workers = {MOST}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "_POLL_S", 0.02)


@pytest.fixture
def cluster(tmp_path) -> Iterator[tuple[Cluster, dict[str, Any]]]:
    made = Cluster()
    with kube_server.serving(made, tmp_path) as options:
        yield made, options | {"wait_s": 0.5}


class Pods:
    """The pods on which workers run, for the crew."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def live(self) -> set[str]:
        with self._cluster.lock:
            return {p["metadata"]["name"] for p in self._cluster.active() if p["status"]["phase"] == "Running"}


def test_all_faults_at_once(store: Store, cluster) -> None:
    """A third of the answers lost, throttled or in conflict, a node that dies, the scaler started anew: replicas stay
    within the limit, nobody busy is stopped by us, and in the end there are neither pods nor instances in the ledger.
    """
    kube, options = cluster
    model = store.catalogue.register_model(stack.a_spec(pool="cpu"))
    jobs = [stack.new_job(model) for _ in range(100)]
    store.jobs.submit(jobs)
    crew, rng, clock = Crew(store, Pods(kube), model, seed=7), random.Random(7), FakeClock(datetime.now(UTC))

    def another() -> Autoscaler:
        for (holder,) in store.db.run("SELECT holder FROM leases WHERE name = 'autoscaler'"):
            store.workers.resign("autoscaler", holder)
        provider = build("kubernetes", "cpu", options, stack="batchline")
        return Autoscaler(store, parse(SETTINGS, "a.toml"), {"cpu": provider}, clock, lease_s=30.0)

    scaler = another()
    kube.rule = lambda _method, _path: rng.choice(["lost", 409, 429, 503]) if rng.random() < 0.3 else None
    deadline, n = time.monotonic() + 100, 0
    while time.monotonic() < deadline:
        n += 1
        if n % 20 == 0:
            scaler = another()
        if n == 15 and (idle := sorted(i.id for i in store.instances.list() if i.workers and not i.running)):
            kube.lose(idle[0])
        scaler.tick()
        clock.advance(5.0)
        kube.run()
        crew.step()
        done = store.jobs.terminal([j.id for j in jobs]) == {j.id for j in jobs}
        if done and not (kube.names() or store.instances.list() or store.instances.unsettled()):
            break
    assert (kube.names(), store.instances.list(), store.instances.unsettled()) == (set(), [], [])
    assert {view.status for view in store.jobs.read([j.id for j in jobs]).values()} == {Status.SUCCEEDED}
    assert crew.busy_stopped == 0
    assert 1 < kube.peak <= MOST
    assert kube.replicas == 0
