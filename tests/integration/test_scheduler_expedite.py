"""Deadlines of batches: the chore over real ranks and claims, on a clock that only goes on when a worker has worked."""

from __future__ import annotations

import heapq
import random
import sys
import time
import types
import uuid
from datetime import UTC, datetime
from typing import Any

import batch_stack
import pytest
import stack
from system import Part, until

from batchline.batch import Piece
from batchline.job import Lane
from batchline.metrics import REGISTRY
from batchline.store.contract import Speed
from scheduler.chores.expedite import expedite
from scheduler.slicing import Pace, slices_of
from workers import claiming
from workers.claiming import Claimer

RATE = 1000
"""Rows/s of a worker."""
HOUR = 3600.0


class Pool:
    """Two workers over the store, each busy with a slice for rows / RATE seconds, a tenth more or less."""

    def __init__(self, store: Any, monkeypatch: Any, seed: int = 7) -> None:
        self.store = store
        self.start = self.now = time.time()
        self.random = random.Random(seed)
        self.batches: dict[uuid.UUID, str] = {}
        self.ended: dict[str, float] = {}
        self.chore: Any = None
        self.model: Any = None
        monkeypatch.setattr(claiming, "time", types.SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now))

    def a_model(self, name: str = "digits") -> int:
        self.model = types.SimpleNamespace(id=self.store.catalogue.register_model(stack.a_spec(name)))
        self.model.spec = types.SimpleNamespace(ref=f"{name}@1")
        return self.model.id

    def batch(self, name: str, hours: float, slices: int, *, due_h: float | None = None, **changes: Any) -> uuid.UUID:
        """So many worker-hours of rows, planned as the scheduler plans a tenant's only batch."""
        deadline = datetime.fromtimestamp(self.start + due_h * HOUR, UTC) if due_h else None
        batch = batch_stack.new_batch(deadline_at=deadline, **changes)
        rows = int(hours * HOUR * RATE / slices)
        groups = [[Piece("file:///rows.jsonl", "v1", (n,), rows)] for n in range(slices)]
        pace = Pace(self.now, 1 / (2 * RATE), deadline=deadline.timestamp() if deadline else None)
        self.store.batches.submit(batch)
        assert self.store.batches.take_to_plan(batch_stack.HOLDER, lease_s=30.0)
        cut = list(slices_of(batch.id, groups, pace))
        assert self.store.batches.plan(batch_stack.HOLDER, batch.id, cut, model_id=self.model.id, note="{}")
        self.batches[batch.id] = name
        return batch.id

    def expedites(self) -> None:
        """From now on the chore ticks."""
        self.chore = expedite(self.store, lambda: datetime.fromtimestamp(self.now, UTC))

    def worker(self) -> tuple[uuid.UUID, Claimer]:
        worker = stack.a_worker(self.store, lease_s=600.0)
        speeds = {self.model.id: Speed(online=0.0, bulk=RATE)}
        self.store.workers.heartbeat(worker, lease_s=600.0, models="", rows_per_s=RATE, speeds=speeds)
        return worker, Claimer(self.store.claims, "cpu", list)

    def claims(self, worker: uuid.UUID, claimer: Claimer, count: int) -> list[str]:
        """The batches of the next slices, half a minute apart."""
        names: list[str] = []
        for _ in range(count):
            self.now += 30
            work = self.store.slices.work(self.claim(worker, claimer))
            names.append(self.batches[work.batch.id])
        return names

    def claim(self, worker: uuid.UUID, claimer: Claimer) -> Any:
        """The next slice as a worker finds it, or None."""
        head = claimer.choose(worker, Lane.BULK, lambda _: True, may_load=True)
        jobs = claimer.claim(worker, self.model, Lane.BULK, rows=1).jobs if head else []
        return jobs[0] if jobs else None

    def play(self) -> None:
        """Until nothing waits; notes when each batch ended, in hours."""
        free = [(self.now, n, *self.worker(), None) for n in range(2)]
        while free:
            self.now, n, worker, claimer, job = heapq.heappop(free)
            if job is not None:
                self.finish(worker, job)
            job = self.claim(worker, claimer)
            if self.chore is not None:
                self.chore.step()  # just too late for this claim
            if job is not None:
                lasts_s = job.rows / RATE * self.random.uniform(0.9, 1.1)
                heapq.heappush(free, (self.now + lasts_s, n, worker, claimer, job))

    def finish(self, worker: uuid.UUID, job: Any) -> None:
        work = self.store.slices.work(job)
        assert self.store.slices.finish(worker, batch_stack.finished(job))
        self.ended[self.batches[work.batch.id]] = (self.now - self.start) / HOUR


@pytest.fixture
def pool(store, monkeypatch) -> Pool:
    pool = Pool(store, monkeypatch)
    pool.a_model()
    return pool


@pytest.mark.parametrize("expedited", [True, False])
def test_ten_hours_of_work_due_in_six_beside_ten_without_a_deadline_are_met_by_two_workers(pool, expedited):
    """By turns they would end with the other batch, after almost ten hours. Nothing is lost for that one either."""
    pool.batch("free", 10, 60)
    pool.batch("dated", 10, 60, due_h=6)
    if expedited:
        pool.expedites()
    pool.play()
    assert 9.5 < pool.ended["free"] < 10.5
    assert pool.ended["dated"] < 6 if expedited else pool.ended["dated"] > 8


@pytest.mark.parametrize("expedited", [True, False])
def test_a_deadline_with_some_room_takes_what_it_needs_and_leaves_the_rest(pool, expedited):
    """Ten hours of work due in 16: a quarter of two workers is too little, and it does not get all of them."""
    for n in range(3):
        pool.batch(f"free {n}", 12, 24)
    pool.batch("dated", 10, 40, due_h=16)
    if expedited:
        pool.expedites()
    pool.play()
    assert 8 < pool.ended["dated"] < 16 if expedited else pool.ended["dated"] > 17


def test_batches_take_turns_until_the_chore_finds_deadlines_near_and_then_go_by_deadline(pool):
    """A worker that has begun with the others finds what was moved below the floor of its claims."""
    for name, due_h in (("free", None), ("late", 3), ("soon", 2)):
        pool.batch(name, 2, 100, due_h=due_h)
    worker, claimer = pool.worker()
    assert sorted(pool.claims(worker, claimer, 6)) == ["free", "free", "late", "late", "soon", "soon"]
    pool.expedites()
    moved = pool.chore.step()
    assert 2 <= moved <= 20
    assert pool.claims(worker, claimer, moved) == ["soon"] * moved
    assert pool.claims(worker, claimer, 1) != ["soon"], "no more than was moved"
    soon = next(batch for batch, name in pool.batches.items() if name == "soon")
    assert pool.store.batches.cancel(stack.TENANT, soon)
    pool.now += HOUR  # less room for the other one
    moved = pool.chore.step()
    assert moved
    assert pool.claims(worker, claimer, moved) == ["late"] * moved


def test_a_near_deadline_goes_before_a_model_that_is_loaded(pool):
    """A second of rank is what a loaded model is worth, and the first of the pool is chosen whatever its model."""
    loaded = pool.a_model("loaded")
    pool.batch("free", 1, 10)
    near = pool.a_model("near")
    pool.now += 60
    pool.batch("dated", 1, 10, due_h=1)
    worker, claimer = pool.worker()
    heads = [claimer.choose(worker, Lane.BULK, lambda model: model == loaded, may_load=True)]
    pool.expedites()
    assert pool.chore.step()
    pool.now += 1
    heads.append(claimer.choose(worker, Lane.BULK, lambda model: model == loaded, may_load=True))
    assert [head.model_id for head in heads if head] == [loaded, near]


def test_a_tick_moves_few_slices_once_and_counts_them(pool):
    """However large the batch is; the next tick moves what the claims since then have made room for."""
    pool.batch("dated", 10, 1000, due_h=6)
    pool.worker()
    worker, claimer = pool.worker()
    pool.expedites()

    def counted() -> float:
        return REGISTRY.get_sample_value("batchline_slices_expedited_total", {"pool": "cpu"}) or 0.0

    before = counted()
    assert [pool.chore.step(), pool.chore.step()] == [4, 0]
    pool.claims(worker, claimer, 3)
    assert [pool.chore.step(), pool.chore.step()] == [3, 0]
    assert counted() - before == 7


def test_batches_with_slack_and_paused_ones_are_left_alone(pool):
    """A window of 24 h is no reason to go first while it can be met; paused, a batch waits for its user."""
    pool.batch("window", 20, 50, due_h=24)
    pool.worker(), pool.worker()
    pool.expedites()
    assert pool.chore.step() == 0
    paused = pool.batch("paused", 10, 50, due_h=6)
    assert pool.store.batches.pause(stack.TENANT, paused)
    assert pool.chore.step() == 0
    pool.now += 14 * HOUR
    assert pool.chore.step() == 4
    pool.now -= 14 * HOUR
    assert pool.store.batches.resume(stack.TENANT, paused)
    assert pool.chore.step() == 4


def test_the_leader_does_it(pool, database_url, redis_url, tmp_path):
    """A scheduler on its own moves what is near, by the clock of Postgres."""
    pool.batch("dated", 1, 10, due_h=0.5)
    env = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "BATCHLINE_METRICS_PORT": "0"}
    scheduler = Part("scheduler", [sys.executable, "-P", "-m", "scheduler"], env, tmp_path / "scheduler.log")
    scheduler.start()
    try:
        moved = "SELECT 1 FROM jobs WHERE rank < 1000000000000000"
        until(lambda: stack.query(database_url, moved), within_s=60, what="slices moved", logs=scheduler.log)
    finally:
        scheduler.stop()
