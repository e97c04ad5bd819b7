"""/v1/models/{m}/traffic: rules, aliases, the canary's part of the jobs, and copies that no client sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import api_server
import pytest
import stack
from api_server import ALICE, READER, ROW, SUBMITTER, Running
from cli_runner import runner
from system import until

from api import shadows
from batchline import rows
from batchline.client import Client
from batchline.errors import NotFoundError, StoreUnavailableError
from batchline.job import Lane, show_id
from batchline.local.servers import PostgresServer
from batchline.metrics import REGISTRY
from batchline.traffic import SHADOW_TENANT, takes_part

PATH = "/v1/models/digits/traffic"
TENSOR = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ROW}


@pytest.fixture
def api(postgres: PostgresServer, template: str, redis_url: str) -> Iterator[Running]:
    """An API with four versions of digits, of which the fourth takes other rows; nobody does its jobs."""
    with stack.database_from(postgres.url, template) as url, api_server.running_api(url, redis_url) as running:
        running.store.catalogue.register_model(stack.a_spec(version="3"))
        running.call("PUT", PATH, json={"production": "3"})  # it waits for the version to be known
        running.call("DELETE", PATH)
        yield running


def put(api: Running, **rule: Any) -> dict[str, Any]:
    """Set a rule; what it answers."""
    response = api.call("PUT", PATH, json=rule)
    assert response.status_code == 200, response.text
    return response.json()


def versions(api: Running, **more: Any) -> set[str]:
    """The versions that twenty jobs got."""
    return {api.submit(**more).json()["version"] for _ in range(20)}


def counted(outcome: str) -> float:
    labels = {"model": "digits", "outcome": outcome}
    return REGISTRY.get_sample_value("batchline_shadows_total", labels) or 0.0


def copies(api: Running) -> list[tuple[Any, ...]]:
    """Of each copy, by age: its model's version, its tenant, its status, priority and of which job it is."""
    sql = """SELECT m.version, j.tenant_id, j.status::text, j.priority, s.of,
             j.rank > (SELECT max(rank) FROM jobs WHERE tenant_id > 0) + 3e9,
             extract(epoch FROM j.deadline_at - j.created_at)::int, j.metadata
             FROM shadows s JOIN jobs j ON j.id = s.id JOIN models m ON m.id = j.model_id ORDER BY s.id"""
    return stack.query(api.database_url, sql)


def test_a_rule_is_set_shown_and_removed(api: Running) -> None:
    """Seen by this process at once, in the model, in the list and by itself; the body is the whole rule."""
    told = put(api, production="2", canary={"version": 3, "percent": 0.5}, shadow="1")
    rule = {"production": "2", "canary": {"version": "3", "percent": 0.5}, "shadow": "1"}
    assert rule.items() <= told.items()
    assert told["updated_at"].endswith("Z")
    model = api.call("GET", "/v1/models/digits", READER).json()
    assert model["traffic"] == rule
    assert model["aliases"] == {"production": "2", "canary": "3", "shadow": "1", "latest": "3"}
    assert model in api.call("GET", "/v1/models").json()["data"]
    assert (rule | {"lately": None}).items() <= api.call("GET", PATH, READER).json().items()
    given = {"production": "2", "canary": "3", "shadow": "1", "latest": "3"}
    assert {alias: api.submit(version=alias).json()["version"] for alias in given} == given
    rule = {"production": "1", "canary": None, "shadow": None}
    assert rule.items() <= put(api, production=1).items()
    refused = api.submit(version="canary")
    assert (refused.status_code, refused.json()["errors"]) == (
        404, [{"pointer": "/version", "detail": "must be 1, 2, 3, production, latest"}],
    )  # fmt: skip
    told = api.call("DELETE", PATH).json()
    assert (told["production"], told["updated_at"]) == ("3", None)
    assert api.submit().json()["version"] == "3"


def test_a_rule_pins_production(api: Running) -> None:
    """A version that is imported later takes no traffic; `latest` names it. Without a rule it takes all."""
    put(api, production="3")
    api.store.catalogue.register_model(stack.a_spec(version="7"))
    until(lambda: api.submit(version="latest").json()["version"] == "7", within_s=20, what="the new version is known")
    assert api.submit().json()["version"] == "3"
    api.call("DELETE", PATH)
    assert api.submit().json()["version"] == "7"


@pytest.mark.parametrize(
    ("body", "status", "pointer", "told"),
    [
        (b"{]", 400, "", "malformed"),
        (b"{}", 422, "/production", "missing"),
        (b'{"production": "9"}', 422, "/production", "must be one of 1, 2, 3"),
        (b'{"production": "latest"}', 422, "/production", "must be one of 1, 2, 3"),
        (b'{"production": null}', 422, "/production", "Expected"),
        (b'{"production": "1", "canary": {"version": "1", "percent": 5}}', 422, "/canary/version", "another one"),
        (b'{"production": "1", "canary": {"version": "2"}}', 422, "/canary/percent", "missing"),
        (b'{"production": "1", "canary": {"version": "2", "percent": 101}}', 422, "/canary/percent", "<= 100"),
        (b'{"production": "1", "canary": {"version": "2", "percent": -1}}', 422, "/canary/percent", ">= 0"),
        (b'{"production": "1", "canary": {"version": "2", "percent": 1, "x": 1}}', 422, "/canary/x", "version, per"),
        (b'{"production": "1", "shadow": "9"}', 422, "/shadow", "must be one of 1, 2, 3"),
        (b'{"production": "1", "green": "2"}', 422, "/green", "there are production, canary, shadow"),
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused(api: Running, body: bytes, status: int, pointer: str, told: str) -> None:
    """With the place and what there is; the rule stays as it was."""
    headers = {"Content-Type": "application/json"}
    refused = api.call("PUT", PATH, content=body, headers=headers)
    assert refused.status_code == status
    (fault,) = refused.json()["errors"]
    assert (fault["pointer"], told in fault["detail"]) == (pointer, True), fault
    assert api.call("GET", PATH).json()["updated_at"] is None


def test_only_admins_change_rules(api: Running) -> None:
    """Readers may look; an unknown model is 404 for all three."""
    for key in (READER, SUBMITTER):
        assert api.call("PUT", PATH, key, json={"production": "1"}).status_code == 403
        assert api.call("DELETE", PATH, key).status_code == 403
    assert api.call("GET", PATH, SUBMITTER).status_code == 403
    for method in ("GET", "PUT", "DELETE"):
        assert api.call(method, "/v1/models/nix/traffic", json={"production": "1"}).status_code == 404


def test_the_canary_gets_its_part_by_key(api: Running) -> None:
    """The same key, the same version, as the hash says; jobs without one by their ids; /v2 as /v1."""
    put(api, production="1", canary={"version": "2", "percent": 50})
    keys = [f"key-{n}" for n in range(20)]
    got = {key: api.submit(headers={"Idempotency-Key": key}).json()["version"] for key in keys}
    assert got == {key: "2" if takes_part(key.encode(), 50) else "1" for key in keys}
    assert versions(api) == {"1", "2"}
    assert versions(api, version="production") == {"1"}
    later = {"Prefer": "respond-async", "Idempotency-Key": "v2-key"}
    job = api.call("POST", "/v2/models/digits/infer", json={"inputs": [TENSOR]}, headers=later).json()
    assert job["version"] == ("2" if takes_part(b"v2-key", 50) else "1")
    put(api, production="1", canary={"version": "2", "percent": 100})
    job = api.call("POST", "/v2/models/digits/infer", json={"inputs": [TENSOR]}, headers={"Prefer": "respond-async"})
    assert job.json()["version"] == "2"
    versioned = "/v2/models/digits/versions/3/infer"
    job = api.call("POST", versioned, json={"inputs": [TENSOR]}, headers={"Prefer": "respond-async"})
    assert job.json()["version"] == "3"


def test_a_repeated_submit_is_the_first_job_whatever_the_rule_says_now(api: Running) -> None:
    """The rule changes between the two; the answer is the same job of the same version, and no copy is made of it."""
    put(api, production="1")
    headers = {"Idempotency-Key": "again"}
    first = api.submit(headers=headers).json()
    put(api, production="2", shadow="3")
    again = api.submit(headers=headers).json()
    assert (again["id"], again["version"]) == (first["id"], "1")
    assert api.submit().json()["version"] == "2"
    until(lambda: copies(api), within_s=20, what="a copy of the other job")
    assert len(copies(api)) == 1


def test_data_sets_are_productions(api: Running) -> None:
    """One batch, one model digest: no part of it goes to the canary."""
    put(api, production="1", canary={"version": "2", "percent": 100})
    got = {
        json.dumps(version): api.call(
            "POST", "/v1/batches", json={"model": "digits", "version": version, "input": {"rows": [ROW]}}
        ).json()
        for version in (None, "production", "canary")
    }
    assert [batch["version"] for batch in got.values()] == ["1", "1", "2"], got


def test_another_process_sees_it_within_a_second(api: Running, redis_url: str) -> None:
    """Its catalogue is refreshed each second."""
    with api_server.running_api(api.database_url, redis_url) as other:
        put(api, production="1")
        until(lambda: other.submit().json()["version"] == "1", within_s=20, what="the rule is known there")


def test_a_version_that_cannot_be_read_answers_for_nobody(api: Running) -> None:
    """404 that names it, instead of another version; what is asked for by number goes on."""
    put(api, production="2")
    stack.query(api.database_url, "UPDATE models SET spec = '{\"name\": 1}' WHERE name = 'digits' AND version = 2")
    api.api.services.models.refresh()
    refused = api.submit()
    assert refused.status_code == 404
    (fault,) = refused.json()["errors"]
    assert fault == {
        "pointer": "/version",
        "detail": "means version 2 by the model's traffic rule, which this release cannot read",
    }
    assert api.submit(version="1").status_code == 202
    assert api.call("GET", PATH).json()["lately"]["production"] == {
        "version": "2", "jobs": 0, "failed": 0, "p50_ms": None, "p95_ms": None,
    }  # fmt: skip


def test_jobs_without_a_version_are_copied_to_the_shadow(api: Running, redis_url: str) -> None:
    """At the lowest rank, for an hour; the client finds nothing of them: not in lists, not by id, not in its limits."""
    put(api, production="1", shadow="2")
    before = counted("sent")
    jobs = [api.submit(metadata={"a": 1}, priority=9).json()["id"] for _ in range(3)]
    asked = api.call("POST", "/v2/models/digits/infer", json={"inputs": [TENSOR]}, headers={"Prefer": "respond-async"})
    jobs.append(asked.json()["id"])
    api.submit(version="1")
    api.submit(version="production")
    until(lambda: len(copies(api)) == 4, within_s=20, what="four copies")
    assert {row[:4] + row[5:] for row in copies(api)} == {(2, SHADOW_TENANT, "queued", 9, True, 3600, None)}
    until(lambda: counted("sent") == before + 4, within_s=20, what="four counted")
    listed = {job["id"] for job in api.call("GET", "/v1/jobs?limit=100").json()["data"]}
    assert len(listed) == 6
    assert set(jobs) <= listed
    copy = stack.query(api.database_url, "SELECT id FROM shadows LIMIT 1")[0][0]
    assert api.call("GET", f"/v1/jobs/{show_id(copy)}").status_code == 404
    with api_server.running_api(api.database_url, redis_url, max_queued_rows=7) as small:
        until(lambda: small.api.services.backlog.shadow_rows() == 4, within_s=20, what="copies are counted")
        assert [small.submit(version="1").status_code for _ in range(2)] == [202, 503]


def test_copies_are_dropped_when_too_many_wait(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """For workers, or to be written; both are counted, and the client's job is taken as ever."""
    put(api, production="1", shadow="2")
    monkeypatch.setattr(shadows, "MAX_QUEUED_ROWS", 0)
    before = counted("backlog")
    assert api.submit().status_code == 202
    until(lambda: counted("backlog") == before + 1, within_s=20, what="dropped for the backlog")
    monkeypatch.setattr(shadows, "MAX_BYTES", 1)
    before = counted("full")
    assert api.submit().status_code == 202
    assert counted("full") == before + 1
    assert copies(api) == []


def test_trouble_with_copies_is_nobodys(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that refuses them is left alone for a while, and clients hear nothing."""
    put(api, production="1", shadow="2")
    own = api.api.services.shadows
    asked: list[int] = []

    def refuse(group: Any) -> None:
        asked.append(len(group))
        raise StoreUnavailableError("no")

    monkeypatch.setattr(own, "_copy", refuse)
    before = counted("trouble")
    assert api.submit().status_code == 202
    until(lambda: counted("trouble") == before + 1, within_s=20, what="trouble")
    assert [api.submit().status_code for _ in range(5)] == [202] * 5
    assert counted("trouble") == before + 6
    assert asked == [1]


def test_lately_tells_how_the_versions_do(api: Running, redis_url: str) -> None:
    """Jobs by role with the times of their passes, and how many copies came to the same: here those of dark rows."""
    put(api, production="1", canary={"version": "3", "percent": 50}, shadow="2")

    for value in (0.0, 5.0, 0.0, 7.0):
        api.submit([[value] * 64])
    until(lambda: len(copies(api)) == 4, within_s=20, what="copies")
    worker = stack.a_worker(api.store)
    ids = {r.spec.version: r.id for r in api.store.catalogue.models() if r.spec.name == "digits"}
    for version in ("1", "3", "2"):
        jobs = api.store.claims.claim(worker, ids[version], Lane.ONLINE, rows=64).jobs
        done = []
        for job in jobs:
            label = 0 if version == "2" else int(rows.unpack(job.payload).columns["x"][0][0])
            outputs, timings = json.dumps([{"label": label}]), '{"predict": 2.5}'
            done.append(stack.done(job, outputs=outputs, timings=timings))
        api.store.claims.finish(worker, done)
    lately = api.call("GET", PATH).json()["lately"]
    assert lately["production"]["jobs"] + lately["canary"]["jobs"] == 4
    assert lately["shadow"] == {"version": "2", "jobs": 4, "failed": 0, "p50_ms": 2.5, "p95_ms": 2.5}
    assert lately["compared"] == {"pairs": 4, "agree": 2}


def test_the_sdk_says_and_asks_the_same(api: Running) -> None:
    """`traffic`, `set_traffic`, `reset_traffic`."""
    with Client(api.url, ALICE) as client:
        told = client.set_traffic("digits", "1", canary="2", percent=2.5, shadow=3)
        assert told.canary is not None
        assert (told.production, told.canary.percent, told.shadow, told.lately) == ("1", 2.5, "3", None)
        found = client.traffic("digits")
        assert found.lately is not None
        assert (found.canary, found.lately.window_s) == (told.canary, 3600.0)
        assert client.reset_traffic("digits").production == "3"
        with pytest.raises(NotFoundError):
            client.traffic("nix")


def test_commands_change_what_they_name(
    api: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`models traffic` keeps what is not named, `models promote` ends the canary of the version that it promotes."""
    run = runner(tmp_path, monkeypatch, capfd)
    monkeypatch.setenv("BATCHLINE_URL", api.url)
    monkeypatch.setenv("BATCHLINE_API_KEY", ALICE)

    def rule(*words: str) -> tuple[Any, ...]:
        code, out, err = run("models", *words, "--json")
        assert code == 0, err
        told = json.loads(out)
        canary = told["canary"]
        return told["production"], canary and (canary["version"], canary["percent"]), told["shadow"]

    assert "No rule is set" in run("models", "traffic", "digits")[1]
    assert rule("promote", "digits", "1") == ("1", None, None)
    assert rule("traffic", "digits", "--canary", "2", "--percent", "0.5") == ("1", ("2", 0.5), None)
    assert rule("traffic", "digits", "--shadow", "3") == ("1", ("2", 0.5), "3")
    assert rule("traffic", "digits", "--percent", "20") == ("1", ("2", 20.0), "3")
    out = run("models", "traffic", "digits")[1]
    assert [word in out for word in ("production", "80 %", "canary", "20 %", "shadow")] == [True] * 5
    assert rule("promote", "digits", "2") == ("2", None, "3")
    assert rule("promote", "digits", "3") == ("3", None, None)
    assert rule("traffic", "digits", "--canary", "1", "--percent", "5", "--shadow", "2") == ("3", ("1", 5.0), "2")
    assert rule("traffic", "digits", "--no-canary", "--no-shadow") == ("3", None, None)
    assert rule("traffic", "digits", "--reset") == ("3", None, None)
    assert "must be one of 1, 2, 3" in run("models", "promote", "digits", "9")[2]
    for words in (("--canary", "1", "--no-canary"), ("--shadow", "1", "--no-shadow"), ("--reset", "--no-shadow")):
        assert run("models", "traffic", "digits", *words)[0] == 2
    code, _, err = run("models", "traffic", "digits", "--percent", "5")
    assert (code, "add --canary VERSION" in err) == (1, True)
    assert run("models", "traffic", "digits", "--canary", "1")[0] == 1
