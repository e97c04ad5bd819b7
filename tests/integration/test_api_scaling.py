"""What scalers and operators are told: the backlog as KEDA reads it, decisions and why, and the record of arrivals."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import api_server
import pytest
import stack
from api_server import ALICE, READER, Running
from batch_stack import planned
from cli_runner import Run, runner
from system import until

from autoscaler.simulate import trace
from batchline.job import Lane
from batchline.local.servers import PostgresServer, ValkeyServer
from batchline.store import Store
from batchline.store.contract import Speed
from batchline.store.instance_contract import NewInstance, Scaling

SEEN = {"queued_rows": 70.0, "oldest_age_s": 4.0, "workers": 1.0, "pending": 0.0, "draining": 0.0}
ALLOWED = {"min_workers": 0.0, "max_workers": 3.0, "enabled": 1.0}


@pytest.fixture
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer) -> Iterator[Running]:
    with stack.database_from(postgres.url, template) as url, api_server.running_api(url, valkey.url) as running:
        yield running


@pytest.fixture
def run(tmp_path, monkeypatch, capfd) -> Run:
    return runner(tmp_path, monkeypatch, capfd)


def gjson(document: object, path: str) -> object:
    """What KEDA's `valueLocation` finds, for paths of plain names."""
    for name in path.split("."):
        assert isinstance(document, dict), path
        document = document[name]
    return document


def backlog(api: Running) -> dict:
    api.store.chores.count_backlog(every_s=0.0)
    api.api.services.backlog.refresh()
    return api.call("GET", "/v1/backlog").json()


def test_the_backlog_is_a_number_for_every_pool(api: Running) -> None:
    """Also of a pool without work or workers, whose path would otherwise lead to nothing: KEDA could not wake it."""
    api.store.catalogue.register_model(stack.a_spec("resnet", pool="gpu-a10", digest="c" * 64))
    assert gjson(backlog(api), "pools.gpu-a10.unfinished_rows") == 0
    assert gjson(backlog(api), "pools.cpu.unfinished_rows") == 0
    assert api.submit([api_server.ROW] * 3).status_code == 202
    assert gjson(backlog(api), "pools.cpu.unfinished_rows") == 3


def test_what_runs_is_unfinished(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claimed rows leave `rows` and stay in `unfinished_rows`: a scaler must not take the workers that hold them."""
    monkeypatch.setattr("api.scaling._FRESH_S", 0.0)
    with api_server.running_api(database_url, redis_url) as api:
        assert api.submit([api_server.ROW] * 5).status_code == 202
        digits = max(m.id for m in api.store.catalogue.models() if m.spec.name == "digits")
        worker = stack.a_worker(api.store)
        assert api.store.claims.claim(worker, digits, Lane.ONLINE, rows=5).jobs
        pool = backlog(api)["pools"]["cpu"]
        assert (pool["rows"], pool["running_rows"], pool["unfinished_rows"]) == (0, 5, 5)


@pytest.mark.parametrize("path", ["/v1/backlog", "/v1/autoscaler"])
def test_only_admins_are_told(api: Running, path: str) -> None:
    """The numbers are of all tenants."""
    assert api.call("GET", path, READER).status_code == 403
    assert api.call("GET", path).status_code == 200


def decide(store: Store, desired: int, reason: str, *, ago_s: float = 0.0, **signals: float) -> None:
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    store.instances.decided(Scaling(at, "cpu", desired, reason, SEEN | signals))


def test_the_autoscaler_is_told_of_by_pool(api: Running) -> None:
    """The last decision with what it was made from, those before it, limits, and the instances there are."""
    assert api.call("GET", "/v1/autoscaler").json() == {"object": "autoscaler", "pools": {}, "instances": []}
    decide(api.store, 1, "a beginning", ago_s=60.0)
    decide(api.store, 3, "too much to do", **ALLOWED)
    leader, launch_id = uuid.uuid4(), uuid.uuid4()
    api.store.workers.lead("autoscaler", leader, lease_s=30.0)
    api.store.instances.intend(leader, launch_id, pool="cpu", provider="local", count=2, most=3)
    api.store.instances.settle(launch_id, [NewInstance("local-1"), NewInstance("local-2", price_per_hour=0.1)])
    api.store.instances.gone(["local-1"], "lost")
    told = api.call("GET", "/v1/autoscaler").json()
    assert gjson(told, "pools.cpu.desired") == 3
    pool = told["pools"]["cpu"]
    assert (pool["reason"], pool["signals"]) == ("too much to do", SEEN)
    assert pool["limits"] == ALLOWED | {"max_launches_per_hour": None, "budget_per_day": None}
    assert [d["desired"] for d in pool["decisions"]] == [3, 1]
    assert 0 <= pool["age_s"] < 30
    assert pool["instances"] == {"starting": 1, "serving": 0, "draining": 0, "stopping": 0}
    assert {(i["id"], i["status"], i["reason"]) for i in told["instances"]} == {
        ("local-1", "gone", "lost"),
        ("local-2", "starting", ""),
    }


def test_the_example_shows_what_is_answered(api: Running) -> None:
    """Fields of the description's examples are those of the answers."""
    decide(api.store, 3, "too much to do", **ALLOWED)
    paths = api.http.get("/openapi.json").json()["paths"]
    for path in ("/v1/backlog", "/v1/autoscaler"):
        shown = paths[path]["get"]["responses"]["200"]["content"]["application/json"]["example"]
        told = api.call("GET", path).json()
        assert (shown.keys(), shown["pools"]["cpu"].keys()) == (told.keys(), told["pools"]["cpu"].keys())


def test_workers_are_told_with_their_speeds(api: Running) -> None:
    """Rows/s by model and lane; null where a lane of it was never measured."""
    model = api.store.catalogue.register_model(stack.a_spec("digits"))
    worker = stack.a_worker(api.store)
    told = {"lease_s": 30.0, "models": "digits@1", "rows_per_s": 640.0}
    api.store.workers.heartbeat(worker, **told, speeds={model: Speed(0.0, 5120.0)})
    until(lambda: api.call("GET", "/v1/models/digits").status_code == 200, within_s=30, what="the model is known")
    (shown,) = api.call("GET", "/v1/workers").json()["data"]
    assert (shown["rows_per_s"], shown["speeds"]) == (640.0, {"digits@1": {"online": None, "bulk": 5120.0}})


def test_status_on_the_command_line(api: Running, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a pool with the reason, the instances below; old news are said to be old; JSON is the API's answer."""
    monkeypatch.setenv("BATCHLINE_URL", api.url)
    monkeypatch.setenv("BATCHLINE_API_KEY", ALICE)
    code, out, err = run("autoscaler", "status")
    assert (code, out, "no autoscaler has decided anything" in err) == (0, "", True)
    decide(api.store, 3, "too much to do", ago_s=200.0, queued_work_s=90.0, **ALLOWED)
    api.store.instances.adopt("cpu", "local", None, NewInstance("local-7"))
    code, out, err = run("autoscaler", "status")
    assert code == 0
    assert "3 wanted of at most 3 (too much to do); 70 rows queued (90 s of one worker)," in out
    assert "local-7" in out
    assert "does the autoscaler still run?" in err
    code, out, _ = run("autoscaler", "status", "--json")
    assert json.loads(out)["pools"]["cpu"]["desired"] == 3


def arrived(store: Store, url: str) -> datetime:
    """Jobs of two pools and two batches within the last hour; returns the beginning."""
    begin = datetime.now(UTC) - timedelta(minutes=50)
    cpu = store.catalogue.register_model(stack.a_spec(pool="cpu"))
    gpu = store.catalogue.register_model(stack.a_spec("other", pool="gpu", digest="c" * 64))
    plan = [(cpu, 4, 0.0), (cpu, 6, 1.0), (gpu, 100, 2.0), (cpu, 5, 61.0), (cpu, 7, 1800.0)]
    jobs = [stack.new_job(model, rows=rows) for model, rows, _ in plan]
    store.jobs.submit(jobs)
    due = begin + timedelta(hours=4)
    batches = [planned(store, cpu, [300, 200], deadline_at=due), planned(store, cpu, [50])]
    for table, id_, at_s in itertools.chain(
        (("jobs", job.id, at_s) for job, (_, _, at_s) in zip(jobs, plan, strict=True)),
        (("batches", id_, 600.0) for id_ in batches),
    ):
        at = begin + timedelta(seconds=at_s)
        low = (int(at.timestamp() * 1000) << 80) | (id_.int & ((1 << 80) - 1))
        stack.query(url, f"UPDATE {table} SET created_at = %s WHERE id = %s", (at, str(id_)))
        if table == "jobs":
            stack.query(url, "UPDATE jobs SET id = %s WHERE id = %s", (str(uuid.UUID(int=low)), str(id_)))
        else:
            new = str(uuid.UUID(int=low))
            stack.query(url, "UPDATE batches SET id = %s, in_progress_at = %s WHERE id = %s", (new, at, str(id_)))
            stack.query(url, "UPDATE slices SET batch_id = %s WHERE batch_id = %s", (new, str(id_)))
    return begin


def test_a_record_is_a_trace(store: Store, database_url: str, run: Run, monkeypatch, tmp_path) -> None:
    """What `record` writes, `simulate` reads: rows by step, batches with their deadlines, one pool or all."""
    begin = arrived(store, database_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    since = (begin - timedelta(minutes=5)).isoformat()
    code, out, err = run("autoscaler", "record", "--pool", "cpu", "--since", since)
    assert (code, "572 rows" in err) == (0, True)
    path = tmp_path / "trace.csv"
    path.write_text(out)
    found = trace.load(path)
    assert (found.rows, found.online.sum()) == (572, 22)
    assert [found.online[int(at // 5)] for at in (0, 61, 1800)] == [10, 5, 7]
    (due, undue) = sorted(found.batches, key=lambda b: -b.rows)
    assert (due.rows, undue.rows) == (500, 50)
    assert due.due_s - due.at_s == pytest.approx(4 * 3600 - 600, abs=0.2)
    assert undue.due_s - undue.at_s == pytest.approx(3600, abs=0.2)
    code, out, _ = run("autoscaler", "record", "--since", "2h", "--json")
    assert (code, sum(line["rows"] for line in json.loads(out))) == (0, 672)


@pytest.mark.parametrize("since", ["yesterday", "3x", "2126-01-01"])
def test_a_record_of_no_time_is_refused(run: Run, since: str) -> None:
    """A span, or a time in the past."""
    assert run("autoscaler", "record", "--since", since)[0] == 2


def test_a_record_of_nothing_is_told(store: Store, database_url: str, run: Run, monkeypatch) -> None:
    """An empty trace cannot be simulated; it is not written."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    code, out, err = run("autoscaler", "record")
    assert (code, out, "Nothing has arrived since" in err) == (1, "", True)
