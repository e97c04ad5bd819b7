"""Nudges in Redis: one at a time, never more than enough, and as Celery itself would send them."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from batchline.job import Lane
from batchline.local.servers import ValkeyServer, free_port
from batchline.queue import celery_queue
from batchline.queue import hints as hints_module
from batchline.queue.celery_queue import TASK, CeleryNudger, make_app, queue_name
from batchline.queue.hints import Hints
from tests.crooked_wire import wire_to
from tests.system import until

QUEUE = queue_name("cpu", Lane.ONLINE)
MARKER = "batchline:nudge:cpu:online"
CHANNEL = "batchline:0:finished"


@pytest.fixture
def server(valkey: ValkeyServer) -> Iterator[Any]:
    """A client of an empty Redis."""
    client = redis.Redis.from_url(valkey.url)
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


@pytest.fixture
def hints(valkey: ValkeyServer) -> Iterator[Hints]:
    made = Hints(valkey.url)
    yield made
    made.close()


@pytest.fixture
def nudger(valkey: ValkeyServer, hints: Hints) -> Iterator[CeleryNudger]:
    made = CeleryNudger(valkey.url, hints)
    yield made
    made.close()


def test_one_nudge_is_out_at_a_time(server: Any, hints: Hints, nudger: CeleryNudger) -> None:
    """The marker holds the next one back until a worker deletes it; `force` does not look at it."""
    sent = [nudger._send("cpu", Lane.ONLINE, force=force) for force in (False, False, True)]
    assert sent == ["sent", "marked", "sent"]
    assert nudger._send("cpu", Lane.BULK, force=False) == "sent"
    hints.unmark("cpu", Lane.ONLINE)
    until(lambda: not server.exists(MARKER), within_s=10, what="the marker is deleted")
    assert nudger._send("cpu", Lane.ONLINE, force=False) == "sent"
    assert server.llen(QUEUE) == 3


def test_what_needs_no_answer_survives_a_lost_connection(server: Any, hints: Hints) -> None:
    """Redis never answers there, so the end of the connection is all there is to notice."""
    heard: list[uuid.UUID] = []
    hints.listen(heard.extend)
    until(lambda: server.pubsub_numsub(CHANNEL)[0][1] == 1, within_s=10, what="the listener subscribes")
    told = [uuid.uuid4() for _ in range(4)]
    for at in (0, 2):
        for job_id in told[at : at + 2]:
            hints.publish([job_id])
        until(lambda at=at: heard == told[: at + 2], within_s=10, what="all ids are heard, in order")
        server.client_kill_filter(_type="normal", skipme=True)


def test_a_connection_that_leads_nowhere_is_left(
    server: Any, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays open and takes all that is said, as behind a proxy or a firewall that forgot it; none of ours is cut."""
    monkeypatch.setattr(hints_module, "HEALTH_S", 0.2)
    heard: list[uuid.UUID] = []
    with wire_to(valkey.port) as wire:
        speaker, listener = (Hints(valkey.url.replace(str(valkey.port), str(wire.port))) for _ in range(2))
        listener.listen(heard.extend)

        def is_heard() -> bool:
            speaker.publish([uuid.uuid4()])
            return bool(heard)

        until(is_heard, within_s=20, what="what is said is heard")
        wire.lose()
        heard.clear()
        until(is_heard, within_s=20, what="what is said is heard again")
        speaker.close()
        listener.close()


def test_a_redis_that_hangs_is_tried_by_one_thread_for_all() -> None:
    """It takes connections and never answers: those who want to say something meanwhile do not wait one by one."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as deaf, ThreadPoolExecutor(8) as threads:
        hints = Hints(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        together = threading.Barrier(8)

        def say(_: int) -> None:
            together.wait()
            hints.publish([uuid.uuid4()])

        list(threads.map(say, range(8)))
        deaf.setblocking(False)
        deaf.accept()[0].close()
        with pytest.raises(BlockingIOError):
            deaf.accept()
        hints.close()


def test_who_may_not_silence_redis_is_answered(server: Any, valkey: ValkeyServer) -> None:
    """A Redis user without CLIENT says all that others say, and on one connection."""
    server.execute_command("ACL", "SETUSER", "muted", "on", ">secret", "~*", "&*", "+@all", "-client", "-@dangerous")
    server.set(MARKER, 1)
    hints = Hints(f"redis://muted:secret@127.0.0.1:{valkey.port}/0")
    hints.unmark("cpu", Lane.ONLINE)
    assert not server.exists(MARKER)
    connections = server.info("stats")["total_connections_received"]
    for _ in range(5):
        hints.publish([uuid.uuid4()])
    assert server.info("stats")["total_connections_received"] == connections
    server.execute_command("ACL", "DELUSER", "muted")
    hints.close()


def test_a_queue_that_nobody_serves_stops_growing(server: Any, nudger: CeleryNudger) -> None:
    """The dispatch chore forces a nudge a second for as long as jobs wait, and there may be no worker for days."""
    sent = [nudger._send("cpu", Lane.ONLINE, force=True) for _ in range(celery_queue._ENOUGH + 50)]
    assert sent.count("enough") == 50
    assert server.llen(QUEUE) == celery_queue._ENOUGH
    server.delete(QUEUE)
    assert nudger._send("cpu", Lane.ONLINE, force=True) == "sent"


def test_a_nudge_is_what_celery_sends(server: Any, valkey: ValkeyServer, nudger: CeleryNudger) -> None:
    """Word for word, but for ids of its own."""
    nudger._send("cpu", Lane.ONLINE, force=True)
    with make_app(valkey.url) as app:
        app.send_task(TASK, ("cpu", Lane.ONLINE.value), queue=QUEUE, retry=False, ignore_result=True)
    celerys, ours = (json.loads(message) for message in server.lrange(QUEUE, 0, -1))
    assert ours["headers"]["id"] == ours["headers"]["root_id"] == ours["properties"]["correlation_id"]
    for message in (celerys, ours):
        for part, names in (
            ("headers", ("id", "root_id")),
            ("properties", ("correlation_id", "delivery_tag", "reply_to")),
        ):
            for name in names:
                message[part][name] = "an id"
    assert ours == celerys


def test_two_nudges_are_two_tasks(server: Any, nudger: CeleryNudger) -> None:
    """Flower knows a task by its id."""
    for _ in range(2):
        nudger._send("cpu", Lane.ONLINE, force=True)
    assert len({json.loads(message)["headers"]["id"] for message in server.lrange(QUEUE, 0, -1)}) == 2


def test_no_redis_is_a_nudge_that_failed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing that anybody upstream hears of; the log does, once, however often it is tried."""
    monkeypatch.setattr(hints_module, "BREAK_S", 0.0)
    url = f"redis://127.0.0.1:{free_port()}"
    nudger = CeleryNudger(url, Hints(url))
    assert [nudger._send("cpu", Lane.ONLINE, force=False) for _ in range(3)] == ["failed"] * 3
    nudger.close()
    assert [r.message for r in caplog.records] == ["redis does not answer; going on without hints"]
