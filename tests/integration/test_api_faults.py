"""Neighbours that hang or are away, groups that commit together, limits, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import api_server
import httpx
import pytest
import stack
from api_server import ALICE, BOB, ROW
from system import until

from api.process import store_for
from batchline.clock import SystemClock
from batchline.local.server import free_port
from batchline.local.servers import PostgresServer
from batchline.queue.celery_queue import CeleryNudger
from batchline.queue.hints import Hints
from batchline.settings import Settings
from batchline.store.jobs import Jobs
from batchline.store.migrations import migrate
from batchline.testing import ephemeral_postgres


@contextmanager
def deaf_server() -> Iterator[str]:
    """A Redis that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


def test_a_hung_redis_does_not_slow_a_submit(database_url: str) -> None:
    """Submits and waits go on while Redis never answers, and while nobody listens there at all."""
    with deaf_server() as deaf:
        for redis_url in (deaf, f"redis://127.0.0.1:{free_port()}/0"):
            nudger = CeleryNudger(redis_url, Hints(redis_url))
            with api_server.running_api(database_url, redis_url, nudger) as api:
                api.submit()
                took = sorted(api.submit().elapsed.total_seconds() for _ in range(50))
                assert took[-5] < 0.4
                waited = api.submit(headers={"Prefer": "wait=1"})
                assert waited.status_code == 202
                assert waited.elapsed.total_seconds() < 4


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with ephemeral_postgres(durable=True) as server:  # a forgetful one loses the schema when it is killed
        migrate(server.url)
        yield server


@contextmanager
def frozen(database_url: str) -> Iterator[None]:
    """Every table is locked: statements hang, new connections do not."""
    with stack.connected(database_url) as connection:
        connection.autocommit = False
        connection.cursor().execute("LOCK TABLE jobs, api_keys, models IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


def test_a_hung_postgres_is_503_in_time(own_postgres: PostgresServer) -> None:
    """While statements hang, submits and reads are 503 with Retry-After soon after group_wait_s; then all is well."""
    with api_server.running_api(own_postgres.url, "redis://127.0.0.1:1/0", group_wait_s=0.5) as api:
        job_id = api.submit().json()["id"]
        with frozen(own_postgres.url), ThreadPoolExecutor(8) as many:
            submits = [many.submit(api.submit) for _ in range(3)]
            read = many.submit(api.call, "GET", f"/v1/jobs/{job_id}")
            listed = many.submit(api.call, "GET", "/v1/jobs")
            cancelled = many.submit(api.call, "POST", f"/v1/jobs/{job_id}/cancel")
            new_key = many.submit(api.submit, key=BOB)
            for answer in [*submits, read, listed, cancelled, new_key]:
                response = answer.result()
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) >= 1
                assert response.elapsed.total_seconds() < 5
            assert api.call("GET", "/livez").status_code == 200
        deadline = time.monotonic() + 20
        while api.submit().status_code != 202:
            assert time.monotonic() < deadline


def test_an_absent_postgres_is_503_and_its_return_is_noticed(own_postgres: PostgresServer) -> None:
    """Not ready, and 503 for those who ask; when Postgres is back, so are we."""
    with api_server.running_api(own_postgres.url, "redis://127.0.0.1:1/0") as api:
        assert api.submit().status_code == 202
        own_postgres.stop("immediate")
        refused = api.submit()
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert "Idempotency-Key" in refused.json()["detail"]
        unready = httpx.get(f"{api.url}/readyz")
        deadline = time.monotonic() + 5
        while unready.status_code != 503:
            assert time.monotonic() < deadline
            unready = httpx.get(f"{api.url}/readyz")
        assert api.call("GET", "/livez").status_code == 200
        own_postgres.start()
        deadline = time.monotonic() + 20
        while api.submit().status_code != 202 or api.call("GET", "/readyz").status_code != 200:
            assert time.monotonic() < deadline


def test_missing_tables_are_503_with_a_time_to_come_back(
    database_url: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Before a migration, or while a backup is read in: submits, reads and lists; the log says what to do."""
    with api_server.running_api(database_url, redis_url) as api:
        job_id = api.submit().json()["id"]
        stack.query(database_url, "ALTER TABLE jobs RENAME TO jobs_")
        for answer in (
            api.submit(),
            api.call("GET", f"/v1/jobs/{job_id}"),
            api.call("GET", "/v1/jobs"),
            api.call("POST", f"/v1/jobs/{job_id}/cancel"),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
        assert any("run `batchline migrate`" in r.message for r in caplog.records)
        stack.query(database_url, "ALTER TABLE jobs_ RENAME TO jobs")
        assert api.submit().status_code == 202


def test_a_process_has_a_short_limit_for_its_statements(database_url: str) -> None:
    """It comes back from a Postgres that hung a third as late as the others; a longer wait of submits raises it."""
    for wait_s, limit in ((2.0, "10s"), (20.0, "40s")):
        store = store_for(Settings(database_url=database_url, redis_url="", group_wait_s=wait_s))
        assert store.db.run("SHOW statement_timeout") == [(limit,)]
        assert store.db._patience._limit_s == float(limit[:-1]) + 5
        store.close()


def test_a_schema_that_changes_under_us_is_not_ready(database_url: str) -> None:
    """A database that is migrated, or restored, beneath a running process: 503 in words, until it fits again."""
    with api_server.running_api(database_url, "redis://127.0.0.1:1/0") as api:
        assert httpx.get(f"{api.url}/readyz").status_code == 200
        (before,) = stack.query(database_url, "SELECT version_num FROM alembic_version")[0]
        for version, status in (("0000", 503), (before, 200)):
            stack.query(database_url, "UPDATE alembic_version SET version_num = %s", [version])
            deadline = time.monotonic() + 5
            while (answer := httpx.get(f"{api.url}/readyz")).status_code != status:
                assert time.monotonic() < deadline
            assert status == 200 or "run `batchline migrate`" in answer.json()["detail"]


def test_what_arrives_during_a_commit_is_committed_together(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One statement takes all that gathered while the last one ran; one bad submit does not spoil the others."""
    groups: list[int] = []
    gate = threading.Event()
    submit = Jobs.submit

    def slow(self: Jobs, jobs: Any) -> Any:
        groups.append(len(jobs))
        gate.wait(10)
        return submit(self, jobs)

    with api_server.running_api(database_url, redis_url, group_wait_s=10.0) as api:
        api.submit(headers={"Idempotency-Key": "k"})
        monkeypatch.setattr(Jobs, "submit", slow)
        # A Commits holds the bound method of its store; a second process takes the patched one.
        with (
            api_server.running_api(database_url, redis_url, group_wait_s=10.0) as other,
            ThreadPoolExecutor(21) as many,
        ):
            first = many.submit(other.submit)
            deadline = time.monotonic() + 5
            while not groups:
                assert time.monotonic() < deadline
            rest = [many.submit(other.submit) for _ in range(19)]
            reused = many.submit(other.submit, [ROW, ROW], headers={"Idempotency-Key": "k"})
            commits = other.api.services.commits
            while len(commits._open) < 20:
                assert time.monotonic() < deadline
            gate.set()
            assert {f.result().status_code for f in [first, *rest]} == {202}
            assert reused.result().status_code == 422
            assert groups == [1, 20]


def test_a_full_group_is_503(database_url: str, redis_url: str) -> None:
    """More bytes than may wait are refused at once."""
    with api_server.running_api(database_url, redis_url, group_bytes=100) as api:
        response = api.submit()
        assert (response.status_code, response.json()["type"]) == (503, "urn:batchline:error:overloaded")
        assert api.jobs() == 0


def test_backlog_limits(database_url: str, redis_url: str) -> None:
    """A tenant over its limit is 429, the system over its own is 503, both with Retry-After; others are served."""
    limits = {"max_queued_rows_tenant": 10, "max_queued_rows": 15}
    with api_server.running_api(database_url, redis_url, **limits) as api:
        assert api.submit([ROW] * 8).status_code == 202
        over = api.submit([ROW] * 3)
        assert (over.status_code, over.json()["type"]) == (429, "urn:batchline:error:quota_exceeded")
        assert 1 <= int(over.headers["retry-after"]) <= 300
        assert api.submit([ROW] * 5, key=BOB).status_code == 202
        full = api.submit([ROW] * 3, key=BOB)
        assert (full.status_code, full.json()["type"]) == (503, "urn:batchline:error:overloaded")
        # The limit holds by the count too, when what this process admitted is no longer remembered.
        deadline = time.monotonic() + 5
        while sum(entry.rows for entry in api.api.services.backlog.queued) < 13:
            assert time.monotonic() < deadline
        assert api.submit([ROW] * 3).status_code == 429


class SetClock(SystemClock):
    """A machine's clock that somebody sets."""

    ahead_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead_s)


def test_a_job_takes_its_place_by_the_clock_of_postgres(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is an hour off, or set while it runs, puts no job before or behind those of others."""
    own = SetClock()
    monkeypatch.setattr("api.app.SystemClock", lambda: own)
    newest = "SELECT rank / 1e6 - extract(epoch FROM now()), id FROM jobs ORDER BY created_at DESC LIMIT 1"

    def off_s() -> float:
        assert api.submit().status_code == 202
        rank_off_s, job_id = stack.query(database_url, newest)[0]
        assert abs((uuid.UUID(str(job_id)).int >> 80) / 1000 - time.time() - float(rank_off_s)) < 10
        return abs(float(rank_off_s))

    own.ahead_s = 3600.0
    with api_server.running_api(database_url, redis_url) as api:
        until(lambda: off_s() < 10, within_s=10, what="Postgres is asked for the time")
        own.ahead_s = -3600.0
        assert off_s() < 10


def test_two_processes_need_nothing_of_each_other(database_url: str, redis_url: str) -> None:
    """What one takes the other answers, and an idempotency key holds across both."""
    with (
        api_server.running_api(database_url, redis_url) as one,
        api_server.running_api(database_url, redis_url) as two,
    ):
        headers = {"Idempotency-Key": "k"}
        job_id = one.submit(headers=headers).json()["id"]
        assert two.submit(headers=headers).json()["id"] == job_id
        with api_server.fake_worker(one, redis_url):
            assert two.call("GET", f"/v1/jobs/{job_id}", headers={"Prefer": "wait=10"}).json()["status"] == "succeeded"


@contextmanager
def process(database_url: str, redis_url: str, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m api` on a free port."""
    port = free_port()
    env = os.environ | {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "BATCHLINE_PORT": str(port)} | more
    running = subprocess.Popen([sys.executable, "-m", "api"], env=env, stderr=subprocess.PIPE)
    try:
        yield running, f"http://127.0.0.1:{port}"
    finally:
        running.kill()
        running.wait()


def ready(url: str) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            continue
    return False


def test_sigterm_sends_waiters_home_and_ends_with_0(database_url: str, redis_url: str) -> None:
    """A request that waits is answered with the job as it stands; then the process ends by itself."""
    api_server.prepared(database_url).close()
    with process(database_url, redis_url) as (running, url), ThreadPoolExecutor(1) as other:
        assert ready(url)
        headers = {"Authorization": f"Bearer {ALICE}", "Prefer": "wait=60"}
        content = {"model": "digits", "inputs": [ROW]}
        waiting = other.submit(httpx.post, f"{url}/v1/jobs", json=content, headers=headers, timeout=60)
        deadline = time.monotonic() + 10
        while not stack.query(database_url, "SELECT 1 FROM jobs"):
            assert time.monotonic() < deadline
        running.send_signal(signal.SIGTERM)
        response = waiting.result()
        assert (response.status_code, response.json()["status"]) == (202, "queued")
        assert running.wait(15) == 0


def test_a_schema_that_is_not_ours_ends_the_process_with_words(own_postgres: PostgresServer) -> None:
    """An empty or older database: exit 1 and what to do."""
    stack.query(own_postgres.url, "UPDATE alembic_version SET version_num = 'old'")
    with process(own_postgres.url, "redis://127.0.0.1:1/0") as (running, _):
        _, told = running.communicate(timeout=20)
        assert running.returncode == 1
        assert b"batchline migrate" in told
        assert b"Traceback" not in told


def test_a_kill_after_the_commit_loses_nothing(database_url: str, redis_url: str) -> None:
    """Killed between commit and answer, the job is there, and repeating with the same key finds it."""
    api_server.prepared(database_url).close()
    headers = {"Authorization": f"Bearer {ALICE}", "Idempotency-Key": "k"}
    content = json.dumps({"model": "digits", "inputs": [ROW]}).encode()
    sent: dict[str, Any] = {"content": content, "headers": headers | {"Content-Type": "application/json"}}
    with process(database_url, redis_url, BATCHLINE_FAILPOINTS="api.after_commit=kill") as (running, url):
        assert ready(url)
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{url}/v1/jobs", **sent)
        running.wait(10)
    assert len(stack.query(database_url, "SELECT 1 FROM jobs")) == 1
    with process(database_url, redis_url) as (_, url):
        assert ready(url)
        assert httpx.post(f"{url}/v1/jobs", **sent).status_code == 202
    assert len(stack.query(database_url, "SELECT 1 FROM jobs")) == 1
