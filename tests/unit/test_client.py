"""The SDK against a scripted server: what it sends, what it survives, what it raises."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import batchline
from batchline import errors
from batchline.client import AsyncClient, Client, Job, RowError
from batchline.clock import FakeClock
from batchline.job import Status

Script = list[httpx.Response | type[Exception] | Callable[[httpx.Request], httpx.Response]]


def job(status: str = "queued", **more: Any) -> dict[str, Any]:
    """A job as the API shows it."""
    counts = {"total": 2, "succeeded": 0, "failed": 0}
    base = {"id": "job_1", "object": "job", "status": status, "model": "digits", "version": "1", "rows": 2}
    return base | {"created_at": "2026-01-01T00:00:00Z", "row_counts": counts} | more


def answer(status: int = 200, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"type": f"urn:batchline:error:{code}", "title": code, "status": status, "detail": f"It is {code}."}
    return answer(status, body, **headers)


class World:
    """A scripted server, a clock that stands still but for sleeps, and a client between them."""

    def __init__(self, script: Script, url: str = "http://a", **more: Any) -> None:
        self.requests: list[httpx.Request] = []
        self.clock = FakeClock()
        self.slept: list[float] = []
        self._script = iter(script)
        self.client = Client(
            url, "blk_k", transport=httpx.MockTransport(self.handle), clock=self.clock, sleep=self.sleep, **more
        )

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = next(self._script)
        if isinstance(step, httpx.Response):
            return step
        if isinstance(step, type):
            raise step("cut")
        return step(request)

    @property
    def hosts(self) -> str:
        return "".join(r.url.host for r in self.requests)

    @property
    def keys(self) -> set[str]:
        return {r.headers["idempotency-key"] for r in self.requests}


LOST = [httpx.ConnectError, httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError]


def test_submit_sends_the_contract() -> None:
    """Rows, key, priority and a minted Idempotency-Key; what was not given is not sent."""
    world = World([answer(202, job())])
    got = world.client.submit("digits", [[1.0, 2.0]], version=3, metadata={"k": "v"})
    request = world.requests[0]
    assert (request.method, str(request.url)) == ("POST", "http://a/v1/jobs")
    assert request.headers["authorization"] == "Bearer blk_k"
    assert len(request.headers["idempotency-key"]) == 32
    body = {"model": "digits", "inputs": [[1.0, 2.0]], "version": 3, "priority": 5, "metadata": {"k": "v"}}
    assert json.loads(request.content) == body
    assert got.status is Status.QUEUED


@pytest.mark.parametrize("lost", LOST)
def test_a_lost_answer_is_asked_for_with_the_same_key_on_the_next_server(lost: type[Exception]) -> None:
    """Fail-over never doubles: the key is minted once a call; the body is the same bytes."""
    world = World([lost, lost, answer(202, job())], url="http://a,http://b")
    world.client.submit("digits", [[1.0]])
    assert world.hosts == "aba"
    assert len(world.keys) == 1
    assert len({r.content for r in world.requests}) == 1
    assert len(world.slept) == 1


def test_two_submits_have_two_keys() -> None:
    """Equal rows submitted twice on purpose are two jobs."""
    world = World([answer(202, job()), answer(202, job())])
    world.client.submit("digits", [[1.0]])
    world.client.submit("digits", [[1.0]])
    assert len(world.keys) == 2


def test_the_server_that_answered_is_kept() -> None:
    """After a fail-over the next call begins where the last one succeeded."""
    world = World([problem(503, "overloaded"), answer(202, job()), answer(200, job())], url="http://a,http://b")
    world.client.get(world.client.submit("digits", [[1.0]]))
    assert world.hosts == "abb"


def test_retry_after_is_honoured() -> None:
    """429 and 503 wait as long as the server says, then succeed."""
    refusals: Script = [problem(429, "quota_exceeded", retry_after="7"), problem(503, "overloaded", retry_after="3")]
    world = World([*refusals, answer(202, job())])
    world.client.submit("digits", [[1.0]])
    assert 7.0 <= world.slept[0] <= 7.7
    assert 3.0 <= world.slept[1] <= 3.3


def test_a_key_in_flight_is_waited_for_and_an_ended_job_is_not() -> None:
    """Both are 409; only the first passes by itself."""
    world = World([problem(409, "conflict", retry_after="1"), answer(202, job())])
    world.client.submit("digits", [[1.0]])
    with pytest.raises(errors.AlreadyEndedError):
        World([problem(409, errors.AlreadyEndedError.code)]).client.cancel("job_1")


def test_patience_ends() -> None:
    """A call that cannot succeed in its time raises what the server last said."""
    world = World([problem(503, "overloaded", retry_after="2")] * 100, timeout_s=10.0)
    with pytest.raises(errors.OverloadedError, match="It is overloaded") as raised:
        world.client.submit("digits", [[1.0]])
    assert raised.value.retry_after_s == 2.0
    assert sum(world.slept) <= 10.0


def test_no_server_at_all_is_said_with_its_name() -> None:
    """The message names the servers and what to look at."""
    world = World([httpx.ConnectError] * 100, url="http://a,http://b", timeout_s=5.0)
    with pytest.raises(errors.UnreachableError, match="http://a, http://b cannot be reached"):
        world.client.get("job_1")


def _codes() -> Iterator[type[errors.BatchlineError]]:
    yield from (
        kind for kind in errors.HTTP_STATUS if not issubclass(kind, errors.RetryableError | errors.ConflictError)
    )


@pytest.mark.parametrize("kind", list(_codes()))
def test_a_problem_is_raised_as_the_error_it_was(kind: type[errors.BatchlineError]) -> None:
    """The code in the problem's type decides the class, not the status."""
    world = World([problem(422, kind.code)])
    with pytest.raises(errors.BatchlineError) as raised:
        world.client.get("job_1")
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, errors.NotFoundError),
        (401, errors.UnauthorizedError),
        (422, errors.InvalidRequestError),
        (500, errors.BatchlineError),
    ],
)
def test_an_answer_without_a_problem_is_raised_by_its_status(status: int, kind: type[Exception]) -> None:
    """A proxy between may answer with anything."""
    world = World([httpx.Response(status, text="<html>")])
    with pytest.raises(kind):
        world.client.get("job_1")


def test_faults_keep_their_pointers() -> None:
    """What is wrong with which row reaches the caller."""
    faults = [{"pointer": "/inputs/3", "detail": "has 63 values"}]
    world = World([answer(422, {"type": "urn:batchline:error:invalid", "detail": "no", "errors": faults})])
    with pytest.raises(errors.InvalidRequestError) as raised:
        world.client.submit("digits", [[1.0]])
    assert raised.value.faults == (errors.Fault("/inputs/3", "has 63 values"),)


def test_an_answer_that_is_not_ours_is_an_error_of_ours() -> None:
    """A wrong address that answers 200 does not end in a decoder's traceback."""
    with pytest.raises(errors.BatchlineError, match="does BATCHLINE_URL name Batchline"):
        World([httpx.Response(200, text="<html>")]).client.get("job_1")


def test_wait_survives_restarts_refusals_and_resets() -> None:
    """Waiting goes on by the job's id, whatever happens to connections and servers."""
    trouble: Script = [*LOST, problem(503, "overloaded", retry_after="1"), problem(429, "quota_exceeded")]
    world = World([*trouble, answer(200, job("running")), answer(200, job("succeeded"))])
    assert world.client.wait("job_1").status == "succeeded"
    assert {r.url.path for r in world.requests} == {"/v1/jobs/job_1"}
    assert world.requests[0].headers["prefer"] == "wait=30"


def test_wait_polls_a_server_that_does_not_hold_the_answer() -> None:
    """Without Prefer the pauses grow, and no busy loop arises."""
    world = World([answer(200, job("queued"))] * 12 + [answer(200, job("succeeded"))])
    world.client.wait("job_1")
    assert len(world.slept) == 12
    assert world.slept == sorted(world.slept)


def test_wait_asks_again_at_once_when_the_server_held_the_answer() -> None:
    """A long poll that ran its time is followed by the next without a pause."""
    world = World([])

    def held(_request: httpx.Request) -> httpx.Response:
        world.clock.advance(30.0)
        return answer(200, job("running"))

    world._script = iter([held, held, answer(200, job("failed"))])
    assert world.client.wait("job_1").status is Status.FAILED
    assert world.slept == []


def test_wait_ends_when_its_time_is_over() -> None:
    """TimedOutError names the job and its status; the job goes on."""
    world = World([answer(200, job("running"))] * 100)
    with pytest.raises(errors.TimedOutError, match="job_1 is still running after 5 s"):
        world.client.wait("job_1", timeout_s=5.0)
    assert sum(world.slept) == pytest.approx(5.0, abs=0.1)


def test_wait_with_no_time_asks_once() -> None:
    """timeout_s=0 means: is it finished?"""
    world = World([answer(200, job("succeeded"))])
    assert world.client.wait("job_1", timeout_s=0).is_finished


def test_wait_for_an_unknown_job_ends_at_once() -> None:
    """What no retry can mend is raised."""
    with pytest.raises(errors.NotFoundError):
        World([problem(404, "not_found")]).client.wait("job_1")


def test_rows_are_outputs_and_errors_in_order() -> None:
    """A failed row stands at its own place."""
    parts = {"outputs": [{"y": 1}, None], "errors": [{"row": 1, "code": "row_error", "message": "bad"}]}
    world = World([answer(200, job("succeeded", **parts))])
    assert list(world.client.rows("job_1")) == [{"y": 1}, RowError(1, "row_error", "bad")]


@pytest.mark.parametrize("status", ["cancelled", "expired"])
def test_rows_of_a_job_that_never_ran_are_errors(status: str) -> None:
    """As many entries as rows, each saying how the job ended."""
    rows = list(World([answer(200, job(status))]).client.rows("job_1"))
    assert [(r.row, r.code) for r in rows if isinstance(r, RowError)] == [(0, status), (1, status)]


def test_jobs_come_page_by_page_up_to_the_limit() -> None:
    """The next page begins after the last id; no page is asked for beyond the limit."""
    pages: Script = [
        answer(200, {"data": [job(id=f"job_{i}") for i in ids], "last_id": f"job_{ids[-1]}", "has_more": True})
        for ids in (range(100), range(100, 150))
    ]
    world = World(pages)
    assert len(list(world.client.jobs(status="queued", model="digits", limit=150))) == 150
    assert [dict(r.url.params) for r in world.requests] == [
        {"status": "queued", "model": "digits", "limit": "100"},
        {"status": "queued", "model": "digits", "after": "job_99", "limit": "50"},
    ]


def test_a_finished_job_tells_its_parts() -> None:
    """Status, counts and timings are typed."""
    timings = {"queued": 1, "predict": 2.5, "micro_batch": {"rows": 64, "flush_reason": "full"}}
    got: Job = World([answer(200, job("succeeded", timings_ms=timings))]).client.get("job_1")
    assert got.timings_ms is not None
    assert got.timings_ms.micro_batch is not None
    assert (got.timings_ms.predict, got.timings_ms.micro_batch.rows, got.row_counts.total) == (2.5, 64, 2)


def test_numpy_rows_are_sent_as_lists() -> None:
    """Arrays, arrays in objects, and numbers of numpy."""
    world = World([answer(202, job())] * 2)
    world.client.submit("digits", np.ones((2, 3), np.float32))
    world.client.submit("digits", [{"x": np.arange(2), "y": np.float32(1.5)}])
    assert [json.loads(r.content)["inputs"] for r in world.requests] == [[[1.0] * 3] * 2, [{"x": [0, 1], "y": 1.5}]]


def test_nan_is_sent_as_null_and_infinity_is_refused() -> None:
    """JSON has no infinity: as null it would be taken for a missing value."""
    world = World([answer(202, job())])
    world.client.submit("digits", [[float("nan")]])
    assert json.loads(world.requests[0].content)["inputs"] == [[None]]
    for rows in ([[float("inf")]], np.array([[-np.inf]])):
        with pytest.raises(errors.InvalidRequestError, match="infinity"):
            world.client.submit("digits", rows)


@pytest.mark.parametrize(("rows", "more"), [([object()], {}), ([[1.0]], {"deadline": datetime(2026, 1, 1)})])  # noqa: DTZ001
def test_what_cannot_be_sent_is_refused_here(rows: list[object], more: dict[str, Any]) -> None:
    """A value without a JSON form and a deadline without a zone never leave the program."""
    with pytest.raises(errors.InvalidRequestError):
        World([]).client.submit("digits", rows, **more)


def test_addresses_and_keys_are_looked_at_first() -> None:
    """A wrong address or key is told at once, not as a lost connection."""
    with pytest.raises(errors.InvalidRequestError, match="give http://HOST:PORT"):
        Client("localhost:8000", "k")
    with pytest.raises(errors.UnauthorizedError):
        Client("http://a", "kéy")


def test_environment_and_key_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BATCHLINE_URL and BATCHLINE_API_KEY first, else .batchline/key under the working folder."""
    from batchline.settings import ClientSettings, load_client

    monkeypatch.chdir(tmp_path)
    assert load_client({}) == ClientSettings((), "")
    (tmp_path / ".batchline").mkdir()
    (tmp_path / ".batchline" / "key").write_text("blk_file\n")
    assert load_client({}).api_key == "blk_file"
    both = load_client({"BATCHLINE_URL": "http://a/, http://b", "BATCHLINE_API_KEY": "blk_env"})
    assert (both.urls, both.api_key) == (("http://a", "http://b"), "blk_env")
    with pytest.raises(errors.SettingsError, match="cannot be read"):
        load_client({"BATCHLINE_API_KEY_FILE": str(tmp_path / "none")})


def test_the_async_client_is_the_same_with_await() -> None:
    """Submit over a lost connection, wait, rows, pages, models."""
    clock = FakeClock()
    script = iter(
        [
            httpx.ConnectError,
            answer(202, job()),
            answer(200, job("running")),
            answer(200, job("succeeded", outputs=[{"y": 1}, {"y": 2}])),
            answer(200, {"data": [job()], "has_more": False}),
            answer(200, {"data": [{"id": "digits"}]}),
        ]
    )

    async def handle(_request: httpx.Request) -> httpx.Response:
        step = next(script)
        if isinstance(step, type):
            raise step("cut")
        return step

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    async def run() -> None:
        transport = httpx.MockTransport(handle)
        async with AsyncClient("http://a,http://b", "k", transport=transport, clock=clock, sleep=sleep) as client:
            done = await client.wait(await client.submit("digits", [[1.0], [2.0]]))
            assert [row async for row in client.rows(done)] == [{"y": 1}, {"y": 2}]
            assert [j.id async for j in client.jobs()] == ["job_1"]
            assert [m.id for m in await client.models()] == ["digits"]

    asyncio.run(run())


def test_the_sdk_loads_none_of_the_servers_libraries() -> None:
    """A program that only submits pays for no celery, sqlalchemy or litestar; nor for numpy."""
    code = (
        "import sys, batchline.client; from batchline import Client, AsyncClient;"
        "print({'celery', 'kombu', 'sqlalchemy', 'psycopg2', 'litestar', 'numpy', 'redis'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_batchline_has_no_other_lazy_names() -> None:
    """The package gives its clients, and says so when asked for more."""
    assert batchline.Client is Client
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = batchline.Server  # type: ignore[attr-defined]
