"""The counts of a batch add up at every read, whatever happens to its slices at the same time."""

from __future__ import annotations

import random
import threading
import time
import uuid

import batch_stack
import pytest
import stack

from batchline.batch import BatchStatus
from batchline.job import Lane
from batchline.store import open_store
from batchline.store.contract import Failure

SLICES, ROWS = 150, 10
LAST_S = 20.0


def _add_up(view):
    c = view.counts
    return c.total == c.succeeded + c.failed + c.cancelled + c.expired + c.running + c.queued


class Chaos:
    """Workers that die, give back, fail and finish; clients that cancel and pause; chores."""

    def __init__(self, url, model, batch, seed):
        self.store, self.model, self.batch = open_store(url, connections=1), model, batch
        self.random, self.stop = random.Random(seed), threading.Event()
        self.wrong = []

    def run(self):
        """Work until there is nothing left; every exception is a fault."""
        try:
            while not self.stop.is_set():
                self.step(stack.a_worker(self.store, lease_s=0.3))
        except Exception as e:
            self.wrong.append(e)
        finally:
            self.store.close()

    def step(self, worker):
        jobs = batch_stack.claimed(self.store, worker, self.model, self.random.randint(1, 3))
        jobs += self.store.claims.claim_suspect(worker, self.model, Lane.BULK).jobs
        for job in jobs:
            self.store.slices.progress(worker, job, self.random.randint(0, job.rows))
            self.one(worker, job, self.random.randint(0, 9))
        if self.random.random() < 0.3:
            self.store.workers.bury([worker])
        self.store.chores.rescue(max_failures=3)
        self.store.chores.release()
        self.store.chores.expire()
        self.store.batches.hold_paused()
        if self.random.random() < 0.2:
            self.store.batches.pause(1, self.batch)
        else:
            self.store.batches.resume(1, self.batch)

    def one(self, worker, job, what):
        if what == 0:
            self.store.claims.give_back(worker, [job])
        elif what == 1:
            self.store.jobs.cancel(1, [job.id])
        elif what == 2:
            self.store.claims.retry(worker, [Failure(job.id, job.attempt, "e", "m", 0.0)], max_failures=2)
        elif what == 3:
            self.store.slices.expose(worker, job, (0, 3))
        elif what < 9:
            failed = list(range(self.random.choice((0, 0, 2, ROWS))))
            self.store.slices.finish(worker, batch_stack.finished(job, failed=failed))


@pytest.mark.parametrize("end", ["worn out", "cancelled", "stopped"])
def test_the_counts_add_up_at_every_read(store, database_url, end):
    """Four threads claim, finish, fail, give back, die, cancel, pause and rescue; one reads all the while."""
    model = store.catalogue.register_model(stack.a_spec())
    batch = batch_stack.planned(store, model, [ROWS] * SLICES)
    threads = [Chaos(database_url, model, batch, seed) for seed in range(4)]
    running = [threading.Thread(target=each.run) for each in threads]
    for thread in running:
        thread.start()
    reads, ended, holder, until = 0, None, uuid.uuid4(), time.monotonic() + LAST_S
    while ended is None and time.monotonic() < until:
        view = store.batches.read(batch)
        assert _add_up(view)
        assert view.counts.total == SLICES * ROWS
        assert 0 <= view.slices_done <= SLICES
        reads += 1
        if end == "cancelled" and view.slices_done > SLICES // 3:
            store.batches.cancel(1, batch)
        elif end == "stopped" and view.slices_done > SLICES // 3:
            store.batches.stop(batch, batch_stack.FAULT)
        ended = store.batches.take_to_end(holder, lease_s=30.0)
    for each in threads:
        each.stop.set()
    for thread in running:
        thread.join(30)
    assert [each.wrong for each in threads] == [[]] * 4
    assert ended is not None
    assert reads > 10
    assert ended.counts == store.batches.read(batch).counts
    assert (ended.counts.queued, ended.counts.running, ended.slices_done) == (0, 0, SLICES)
    assert store.batches.end(holder, batch, BatchStatus.CANCELLED)
    frozen = store.batches.read(batch)
    assert frozen.counts == ended.counts
    assert _add_up(frozen)
