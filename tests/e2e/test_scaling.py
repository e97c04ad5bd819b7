"""One worker, two under load, one again: the embedded system with its autoscaler, which is killed meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import burst
import numpy as np
import pytest
from stack import query
from system import until
from world import add_model

from batchline.local import stack
from batchline.local.instances import Instances
from batchline.local.plan import Addresses
from batchline.store import Store, open_store

pytestmark = pytest.mark.timeout(150)

SCALING = """
every_s = 0.5
[pools.cpu]
provider = "local"
policy = "queue"
policy_options = { rows_per_worker = 50, cooldown_s = 1.0 }
min_workers = 1
max_workers = 2
started_elsewhere = 1
billing_s = 0.0
"""
JOBS, ROW_MS = 800, 8.0


@pytest.fixture
def addresses(tmp_path: Path, digits_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Addresses]:
    """The embedded system with the model, in tmp_path/stack; each end of a job is counted."""
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "scaling.toml"
    config.write_text(SCALING)
    settings = {
        "PORT": "0", "MODELS": str(tmp_path / "stack" / "models"), "AUTOSCALER": str(config),
        "LEASE_S": "4", "HEARTBEAT_S": "1", "LEADER_LEASE_S": "2",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"BATCHLINE_{name}", value)
    folder = tmp_path / "stack"
    try:
        addresses = stack.up(folder, detach=True, flower=False)
        model = Path(shutil.copy(digits_model / "model.onnx", tmp_path))
        burst.weigh(model, np.ones((32, 64), np.float32), ROW_MS)
        add_model(folder, addresses, "burst", model, {"policy": {"max_batch_size": 16}})
        query(addresses.database_url, burst.COUNT_ENDS)
        yield addresses
    finally:
        stack.down(folder)


def live(store: Store) -> list[str]:
    """The instances of live workers that are not draining; '' for those of `up`."""
    return sorted(w.instance for w in store.workers.list() if w.live and not w.draining)


def test_a_burst_brings_a_worker_and_its_end_takes_it_back(addresses: Addresses) -> None:
    """1 -> 2 -> 1, also when the autoscaler is killed: its worker lives on, the next one knows it; no job is lost."""
    folder = addresses.folder
    instances, store = Instances(folder), open_store(addresses.database_url, connections=1)
    try:
        until(lambda: live(store) == [""], within_s=60, what="one worker")
        ids = burst.submit(addresses, [[float(n % 16)] * 64 for n in range(JOBS)])
        until(lambda: len(live(store)) == 2, within_s=60, what="two workers")
        (added,) = instances.list()
        assert live(store) == ["", added.id]
        scaler = next(part for part in stack.status(folder).parts if part.name == "autoscaler")
        os.kill(scaler.pid or 0, signal.SIGKILL)
        until(lambda: burst.ended_once(addresses, ids) == (JOBS, 0), within_s=90, what="every job ended once")
        until(lambda: not instances.list() and not store.instances.list(), within_s=60, what="the added worker gone")
        assert live(store) == [""]
        assert {i.id for i in store.instances.list(gone_within_s=600)} >= {added.id}
        assert next(p for p in stack.status(folder).parts if p.name == "autoscaler").restarts == 1
    finally:
        store.close()
