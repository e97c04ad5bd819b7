"""A worker whose instance is given up: it learns it from its heartbeat, finishes what it holds, and exits with 0."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_models
from worker_process import PRODUCT, Worker, a_worker, until
from worker_rig import Rig

from batchline.store import Store
from batchline.store.instance_contract import InstanceStatus, NewInstance


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    return Rig(store, redis_url, tmp_path / "models")


@pytest.fixture
def worker(rig: Rig, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Worker]:
    with a_worker(database_url, redis_url, rig.repository, tmp_path / "worker.log") as worker:
        yield worker


@pytest.fixture
def leader(store: Store) -> uuid.UUID:
    """Has launched the instance `one`."""
    leader, launch = uuid.uuid4(), uuid.uuid4()
    store.workers.lead("autoscaler", leader, lease_s=300.0)
    store.instances.intend(leader, launch, pool="cpu", provider="local", count=1, most=1)
    store.instances.settle(launch, [NewInstance("one")])
    return leader


def test_a_worker_told_to_drain_finishes_what_it_holds_and_claims_nothing_more(
    rig: Rig, worker: Worker, leader: uuid.UUID
) -> None:
    """What was queued meanwhile stays queued; the instance is to be ended only after the worker has left."""
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"))
    ledger = rig.store.instances
    worker.start(
        PRODUCT,
        BATCHLINE_INSTANCE="one",
        BATCHLINE_HEARTBEAT_S="0.2",
        BATCHLINE_FAILPOINTS="worker.before_finish=sleep:1",
    )
    until(lambda: "worker ready" in worker.log(), worker)
    assert ledger.registered() == 1
    held = rig.pixels(model, [1, 2])
    until(lambda: rig.statuses([held]) == ["running"], worker)
    assert ledger.drain(leader, "cpu", 1, "too many") == ["one"]
    later = rig.pixels(model, [3, 4])
    assert ledger.drained(leader) == []
    until(lambda: not worker.alive, worker)
    assert worker.process
    assert worker.process.returncode == 0
    assert rig.statuses([held, later]) == ["succeeded", "queued"]
    assert [i.status for i in ledger.drained(leader)] == [InstanceStatus.STOPPING]


def test_a_worker_that_starts_on_an_instance_that_is_given_up_leaves_at_once(
    rig: Rig, worker: Worker, leader: uuid.UUID
) -> None:
    """A supervisor that starts it again brings no capacity back: nothing is claimed, whatever waits."""
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"))
    rig.store.instances.drain(leader, "cpu", 1, "too many")
    job = rig.pixels(model, [1, 2])
    worker.start(PRODUCT, BATCHLINE_INSTANCE="one")
    until(lambda: not worker.alive, worker)
    assert worker.process
    assert worker.process.returncode == 0
    assert rig.statuses([job]) == ["queued"]
