"""The worker as a process: nudged through Redis, drained by SIGTERM, killed, poisoned, and without Redis."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models
from worker_process import DYING, PRODUCT, Worker, a_worker, until
from worker_rig import Rig

from batchline.job import Lane
from batchline.local.servers import free_port
from batchline.queue.celery_queue import CeleryNudger, make_app
from batchline.store import Store

DEADLY = 666.0


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    return Rig(store, redis_url, tmp_path / "models")


@pytest.fixture
def worker(rig: Rig, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Worker]:
    with a_worker(database_url, redis_url, rig.repository, tmp_path / "worker.log") as worker:
        yield worker


def live(rig: Rig) -> list[Any]:
    """Live workers but the rig's own."""
    return [w for w in rig.store.workers.list() if w.live and w.id != rig.worker_id]


def test_a_nudge_makes_an_idle_worker_claim_at_once_and_sigterm_ends_it(
    rig: Rig, worker: Worker, redis_url: str
) -> None:
    """Far sooner than it would ask by itself; at SIGTERM it exits with 0 and its lease ends with it.

    It registers, and so counts as capacity, once its models are loaded.
    """
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"))
    worker.start(PRODUCT, BATCHLINE_IDLE_POLL_S="60")
    until(lambda: "worker ready" in worker.log(), worker)
    assert worker.log().index("model loaded") < worker.log().index("worker registered")
    until(lambda: [w.models for w in live(rig)] == ["double@1"], worker)
    job = rig.pixels(model, [1, 2])
    nudger = CeleryNudger(redis_url, rig.hints)
    nudger.nudge("cpu", Lane.ONLINE)
    until(lambda: rig.statuses([job]) == ["succeeded"], worker, 10)
    nudger.close()
    assert rig.outputs(job) == [{"y": [2.0, 4.0]}]
    assert worker.end(signal.SIGTERM) == 0
    assert live(rig) == []


def test_the_monitor_sees_each_micro_batch(rig: Rig, worker: Worker, redis_url: str) -> None:
    """The event of a succeeded task, which Flower shows, tells model, rows and flush reason."""
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"))
    app = make_app(redis_url)
    seen: list[str] = []
    worker.start(PRODUCT, BATCHLINE_IDLE_POLL_S="60")
    until(lambda: "worker ready" in worker.log(), worker)
    rig.pixels(model, [1, 2], [3, 4])
    nudger = CeleryNudger(redis_url, rig.hints)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, {"task-succeeded": lambda event: seen.append(event["result"])})
        with contextlib.suppress(TimeoutError), receiver.consumer_context():
            nudger.nudge("cpu", Lane.ONLINE)
            for _ in receiver.consume(limit=None, timeout=1, safety_interval=0):
                if seen:
                    break
    nudger.close()
    assert seen
    for part in ("'model': 'double@1'", "'rows': 2", "'flush_reason': 'drained'", "'predict_ms'"):
        assert part in seen[0]


def test_models_that_appear_in_the_repository_are_registered_and_bad_ones_are_named_once(
    rig: Rig, worker: Worker
) -> None:
    """A version without a catalogue entry gets one; a pickle is refused with its reason."""
    small_models.double(rig.repository / "double" / "1" / "model.onnx")
    (rig.repository / "bad" / "1").mkdir(parents=True)
    (rig.repository / "bad" / "1" / "model.onnx").write_bytes(b"\x80\x04\x95pickle")
    worker.start()
    until(lambda: "worker ready" in worker.log(), worker)
    assert [r.spec.ref for r in rig.store.catalogue.models()] == ["double@1"]
    assert worker.log().count("Python pickle") == 1
    job = rig.pixels(rig.store.catalogue.models()[0].id, [1, 2])
    until(lambda: rig.statuses([job]) == ["succeeded"], worker)


def test_without_redis_work_is_done_and_sigterm_still_ends_it(rig: Rig, worker: Worker) -> None:
    """A broker that never answers slows the start of work to the idle poll, and the end not at all.

    How fast the worker does its model is told with the next heartbeat.
    """
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"))
    jobs = [rig.pixels(model, [i, i]) for i in range(200)]
    worker.start(PRODUCT, REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    until(lambda: set(rig.statuses(jobs)) == {"succeeded"}, worker)
    until(lambda: [w for w in live(rig) if w.speeds], worker)
    ((model_id, speed),) = live(rig)[0].speeds.items()
    assert (model_id, speed.online > 0, speed.bulk) == (model, True, 0.0)
    began = time.monotonic()
    worker.end(signal.SIGTERM)
    assert time.monotonic() - began < 10


def test_a_killed_workers_jobs_run_again_as_soon_as_it_is_back(rig: Rig, worker: Worker) -> None:
    """kill -9 between claim and finish: the next life buries the last, its jobs are rescued and end well."""
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"))
    jobs = [rig.pixels(model, [i, i]) for i in range(3)]
    worker.start(PRODUCT, BATCHLINE_FAILPOINTS="worker.before_finish=kill", BATCHLINE_LEASE_S="60")
    until(lambda: not worker.alive, worker)
    assert set(rig.statuses(jobs)) == {"running"}
    worker.start(PRODUCT, BATCHLINE_LEASE_S="60")
    until(lambda: rig.store.chores.rescue(max_failures=2).requeued == 3, worker)
    until(lambda: set(rig.statuses(jobs)) == {"succeeded"}, worker)
    assert {rig.view(j).attempt for j in jobs} == {2}


def test_a_row_that_kills_the_process_is_poison_and_every_innocent_succeeds(rig: Rig, worker: Worker) -> None:
    """Whatever shared its micro-batch or its process succeeds; the guilty one fails after its budget of lives."""
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"), max_batch_size=8)
    jobs = [rig.pixels(model, [DEADLY if i == 13 else i, i]) for i in range(30)]

    def settled() -> bool:
        if not worker.alive:
            worker.start(DYING)
        rig.store.chores.rescue(max_failures=2)
        rig.store.chores.release()
        return not {"queued", "running"} & set(rig.statuses(jobs))

    until(settled, worker, 90)
    assert [i for i, s in enumerate(rig.statuses(jobs)) if s != "succeeded"] == [13]
    assert rig.view(jobs[13]).code == "poison"
    assert rig.view(jobs[13]).rows_failed == 1
