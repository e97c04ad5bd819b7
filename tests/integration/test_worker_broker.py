"""A worker and a Redis that is there, and not well: it refuses, and it goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import small_models
from kombu.exceptions import OperationalError
from worker_process import PRODUCT, a_worker, until
from worker_rig import Rig

from batchline.job import Lane
from batchline.local.servers import ValkeyServer, free_port
from batchline.queue.celery_queue import CeleryNudger, make_app
from batchline.queue.hints import Hints
from batchline.store import Store
from batchline.testing import ephemeral_valkey

UNHEARD = "redis is away or refuses: this worker hears no nudges"


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    with ephemeral_valkey() as server:
        yield server


def test_a_redis_that_refuses_ends_no_worker(
    store: Store, database_url: str, own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    """Demoted to a replica, and full: work is found unasked meanwhile, by a worker that starts then too, and SIGTERM is
    obeyed. As soon as Redis is well again, nudges are heard again. The log has a line of each end of it."""
    rig = Rig(store, own_valkey.url, tmp_path / "models")
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"))
    client: Any = redis.Redis.from_url(own_valkey.url)

    def done(job: Any) -> bool:
        return rig.statuses([job]) == ["succeeded"]

    with a_worker(database_url, own_valkey.url, rig.repository, tmp_path / "worker.log") as worker:
        worker.start(PRODUCT, BATCHLINE_IDLE_POLL_S="0.5")
        until(lambda: "worker ready" in worker.log(), worker)
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        until(lambda: UNHEARD in worker.log(), worker)
        first = rig.pixels(model, [1, 2])
        until(lambda: done(first), worker)
        assert worker.end(signal.SIGTERM) == 0
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.config_set("maxmemory", "1")
        worker.start(PRODUCT, BATCHLINE_IDLE_POLL_S="0.5")
        second = rig.pixels(model, [1, 2])
        until(lambda: done(second), worker)
        assert worker.alive
        client.config_set("maxmemory", "0")
        hints = Hints(own_valkey.url)
        nudger = CeleryNudger(own_valkey.url, hints)
        nudger.nudge("cpu", Lane.ONLINE, force=True)
        until(lambda: not client.llen("batchline.cpu.online"), worker, 15)
        until(lambda: '"nudges are heard again"' in worker.log(), worker, 15)
        assert worker.log().count(UNHEARD) == 2
        assert "celery.worker.consumer" not in worker.log()
        nudger.close()
        hints.close()
    client.close()


def test_a_redis_that_is_away_is_looked_for_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it has been away: kombu's own waits grow to half a minute."""
    waits: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    with (
        make_app(f"redis://127.0.0.1:{free_port()}/0") as app,
        app.connection_for_read() as connection,
        pytest.raises(OperationalError),
    ):
        connection.ensure_connection(lambda _, wait_s: waits.append(wait_s), max_retries=8)
    assert len(waits) >= 8
    assert set(waits) == {2}
