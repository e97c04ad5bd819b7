"""Webhooks through the whole system: every end arrives, whatever dies; the standard's own library verifies them."""

from __future__ import annotations

import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import small_models
from chaos_monkey import ROWS
from hook_receiver import Arrival, HookReceiver, hook_receiver
from system import System, answers, running_system, until

from batchline.local.servers import free_port

LAUNCHER = [str(Path(__file__).parents[1] / "launchers" / "scheduler_of_short_leases.py")]


@pytest.fixture(scope="module")
def receiver() -> Iterator[HookReceiver]:
    with hook_receiver() as made:
        yield made


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, digits_model: Path) -> Iterator[System]:
    """Two schedulers; `idle` is a model whose pool has no worker, `pick` one that rejects some rows."""
    folder = tmp_path_factory.mktemp("hooks")
    idle, pick = folder / "idle", folder / "pick"
    shutil.copytree(digits_model, idle)
    (idle / "model.toml").write_text('[policy]\npool = "nobody"\n')
    pick.mkdir()
    small_models.pick(pick / "model.onnx")
    models = {"digits": digits_model, "idle": idle, "pick": pick}
    with running_system(folder / "system", models, env={"BATCHLINE_WEBHOOK_ALLOW": "127.0.0.0/8"}) as made:
        made.parts.pop("scheduler0").stop()
        for _ in range(2):
            made.add("scheduler", launcher=LAUNCHER, BATCHLINE_METRICS_PORT=str(free_port()))
        yield made


@pytest.fixture(scope="module")
def http(system: System, receiver: HookReceiver) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {system.key}"}
    with httpx.Client(base_url=system.urls[0], headers=headers, timeout=30) as client:
        receiver.secret = client.get("/v1/webhooks/secret").json()["secret"]
        yield client


def submit(http: httpx.Client, url: str, model: str = "digits", inputs: Any = None, **more: Any) -> str:
    body = {"model": model, "inputs": inputs or [ROWS[0]], "webhook": {"url": url}, **more}
    answer = http.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def batch(http: httpx.Client, url: str, model: str) -> str:
    answer = http.post("/v1/batches", json={"model": model, "input": {"rows": ROWS[:3]}, "webhook": {"url": url}})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def deliveries(http: httpx.Client, ids: set[str]) -> list[dict[str, Any]]:
    """What the log says of these messages."""
    return [http.get(f"/v1/webhooks/deliveries/{message}").json() for message in sorted(ids)]


def late_s(arrival: Arrival) -> float:
    """How long after its job's end a request came."""
    return arrival.at - datetime.fromisoformat(arrival.event["timestamp"]).timestamp()


def sent(url: str) -> float:
    """How many messages the scheduler with these metrics has delivered."""
    text = httpx.get(url).text
    told = re.search(r'^batchline_webhook_attempts_total\{outcome="delivered"\} (.+)$', text, re.MULTILINE)
    return float(told[1]) if told else 0.0


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def test_every_way_to_end_arrives_once(system: System, http: httpx.Client, receiver: HookReceiver) -> None:
    """Succeeded, failed, cancelled, expired; a batch's completion and cancellation; no event that was not asked for."""
    url = f"{receiver.url}/well/ends?token=secret-token"
    wanted = {
        submit(http, url, metadata={"n": "1"}): ("job.succeeded", "succeeded"),
        submit(http, url, "pick", [99]): ("job.failed", "failed"),
        submit(http, url, "idle", ttl_s=0.2): ("job.expired", "expired"),
        batch(http, url, "digits"): ("batch.completed", "completed"),
    }
    for path, made in (("jobs", submit(http, url, "idle")), ("batches", batch(http, url, "idle"))):
        assert http.post(f"/v1/{path}/{made}/cancel").status_code == 200
        wanted[made] = ("job.cancelled" if path == "jobs" else "batch.cancelled", "cancelled")
    submit(http, "", webhook={"url": f"{receiver.url}/well/not-wanted", "events": ["job.failed"]})

    def came() -> bool:
        return {a.event["data"]["id"] for a in receiver.of("/well/ends")} >= set(wanted)

    until(came, within_s=30, what="all ends arrive", logs=system.logs)
    arrivals = receiver.of("/well/ends")
    assert {a.event["data"]["id"]: (a.event["type"], a.event["data"]["status"]) for a in arrivals} == wanted
    assert len(arrivals) == len({a.id for a in arrivals}) == len(wanted)
    first = next(a.event["data"] for a in arrivals if a.event["type"] == "job.succeeded")
    assert (first["object"], first["metadata"], "outputs" in first) == ("job", {"n": "1"}, False)
    assert receiver.of("/well/not-wanted") == []
    assert receiver.unverified == 0
    assert "secret-token" not in "".join(part.log() for part in system.parts.values())


def test_nothing_is_lost_when_a_scheduler_dies_and_postgres_restarts(
    system: System, http: httpx.Client, receiver: HookReceiver
) -> None:
    """200 messages to a receiver that fails half of the first tries: kill -9 in the middle, Postgres crashes after it.
    Each arrives under one id with one body, few twice."""
    url = f"{receiver.url}/flaky"
    jobs = {submit(http, url) for _ in range(200)}

    def arrived(count: int) -> Callable[[], bool]:
        return lambda: len({a.id for a in receiver.of("/flaky")}) >= count

    until(arrived(40), within_s=30, what="some arrive", logs=system.logs)
    system.parts["scheduler0"].kill()
    until(arrived(90), within_s=30, what="more arrive", logs=system.logs)
    system.postgres.stop("immediate")
    system.postgres.start()
    system.parts["scheduler0"].start()
    until(lambda: len(receiver.delivered("/flaky")) == 200, within_s=60, what="all are delivered", logs=system.logs)
    arrivals, delivered = receiver.of("/flaky"), receiver.delivered("/flaky")
    assert {a.event["data"]["id"] for a in arrivals} == jobs
    assert len({a.id for a in arrivals}) == len({(a.id, a.body) for a in arrivals}) == 200
    doubles = sum(delivered.values()) - 200
    print(f"{len(arrivals)} requests for 200 messages, {doubles} delivered twice")
    assert doubles <= 40
    until(
        lambda: {d["status"] for d in deliveries(http, set(delivered))} == {"delivered"}, within_s=30, what="all noted"
    )


def test_two_schedulers_hardly_ever_send_the_same_message(
    system: System, http: httpx.Client, receiver: HookReceiver
) -> None:
    """Each message is taken under a lease: without a fault, none of 200 goes out twice, and both schedulers send."""
    url = f"{receiver.url}/well/two"
    ports = [system.parts[name]._env["BATCHLINE_METRICS_PORT"] for name in ("scheduler0", "scheduler1")]
    metrics = [f"http://127.0.0.1:{port}/metrics" for port in ports]
    until(lambda: all(map(answers, metrics)), within_s=60, what="both schedulers are up", logs=system.logs)
    before = list(map(sent, metrics))
    for _ in range(200):
        submit(http, url)
    until(lambda: len(receiver.delivered("/well/two")) == 200, within_s=30, what="all arrive", logs=system.logs)
    doubles = len(receiver.of("/well/two")) - 200
    late = p95([late_s(a) for a in receiver.of("/well/two")])
    each = [sent(url) - then for url, then in zip(metrics, before, strict=True)]
    print(f"{doubles} of 200 sent twice by two schedulers ({each}); p95 {late:.2f} s after the end")
    assert doubles <= 2
    assert all(each)


def test_a_dead_endpoint_holds_up_no_other(system: System, http: httpx.Client, receiver: HookReceiver) -> None:
    """100 messages to a receiver that hangs: one by one they would take minutes; its neighbour waits for none."""
    for n in range(100):
        submit(http, f"{receiver.url}/hang")
        if n % 2:
            submit(http, f"{receiver.url}/well/live")
    until(lambda: len(receiver.delivered("/well/live")) == 50, within_s=30, what="the live one's arrive")
    late = p95([late_s(a) for a in receiver.of("/well/live")])
    print(f"beside a dead endpoint p95 {late:.2f} s after the end")
    assert late < 5


def test_gone_disables_and_a_replay_after_enabling_delivers(
    system: System, http: httpx.Client, receiver: HookReceiver
) -> None:
    """410: nothing more is sent, and the log says so; enabled again, a replay goes out under the same id."""
    url = f"{receiver.url}/gone"
    submit(http, url)

    def endpoint() -> dict[str, Any]:
        return next(e for e in http.get("/v1/webhooks/endpoints").json()["data"] if e["url"] == url)

    until(lambda: endpoint()["disabled_at"], within_s=20, what="the endpoint is disabled", logs=system.logs)
    later = submit(http, url)
    until(lambda: http.get(f"/v1/jobs/{later}").json()["finished_at"], within_s=20, what="the second job ends")
    told = [d for d in http.get("/v1/webhooks/deliveries?status=disabled").json()["data"] if d["url"] == url]
    assert len(told) == 2
    assert len(receiver.of("/gone")) == 1
    receiver.gone = False
    message = receiver.of("/gone")[0].id
    assert http.post(f"/v1/webhooks/deliveries/{message}/replay").status_code == 409
    assert http.post(f"/v1/webhooks/endpoints/{endpoint()['id']}/enable").status_code == 200
    assert http.post(f"/v1/webhooks/deliveries/{message}/replay").status_code == 202
    until(lambda: receiver.delivered("/gone") == {message: 1}, within_s=20, what="the replay arrives", logs=system.logs)
    until(lambda: deliveries(http, {message})[0]["status"] == "delivered", within_s=10, what="the log says so")
    assert [a["status_code"] for a in deliveries(http, {message})[0]["attempts"]] == [410, 204]
