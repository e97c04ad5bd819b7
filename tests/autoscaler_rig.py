"""An autoscaler in the test's process, over a fake provider and a real store."""

from __future__ import annotations

from datetime import UTC, datetime

import stack
from fake_provider import FakeProvider, Options

from autoscaler.config import parse
from autoscaler.loop import Autoscaler
from batchline.clock import FakeClock

QUEUE = "policy = 'queue'\n"
OPTIONS = "policy_options = { rows_per_worker = 10, cooldown_s = 10 }\n"


def holder(store):
    """Who leads."""
    return store.db.run("SELECT holder FROM leases WHERE name = 'autoscaler'")[0][0]


class Rig:
    """A scaler, its cloud and the workers there; the clock is turned by hand, a tick at a time."""

    def __init__(self, store, folder, settings="max_workers = 6", **faults):
        self.store = store
        self.clock = FakeClock(datetime.now(UTC))
        self.provider = FakeProvider("cpu", Options(str(folder / "cloud.json"), **faults))
        self.cloud = self.provider.cloud
        settings = settings if "policy_options" in settings else OPTIONS + settings
        self.config = parse(f"every_s = 0.1\n[pools.cpu]\nprovider = 'fake'\n{QUEUE}{settings}", "a.toml")
        self.scaler = self.another()

    def another(self):
        """A process that has just started."""
        return Autoscaler(self.store, self.config, {"cpu": self.provider}, self.clock, lease_s=0.3)

    def tick(self, times=1, crew=None):
        for _ in range(times):
            self.scaler.tick()
            if crew:
                crew.step()
            self.clock.advance(5.0)

    def ledger(self):
        return {i.id: i.status for i in self.store.instances.list()}

    def submit(self, model, rows):
        jobs = [stack.new_job(model) for _ in range(rows)]
        self.store.jobs.submit(jobs)
        return [job.id for job in jobs]
