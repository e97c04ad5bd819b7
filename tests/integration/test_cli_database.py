"""Commands that need the database and no API: keys, models import, init, migrate, doctor."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import small_models
import stack
from cli_runner import Run, runner

from batchline.local.servers import PostgresServer
from batchline.store import Store


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; its exit code and both outputs."""
    return runner(tmp_path, monkeypatch, capfd)


@pytest.fixture
def on_database(database_url: str, monkeypatch: pytest.MonkeyPatch, run: Run) -> str:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


@pytest.mark.usefixtures("on_database")
def test_a_key_is_made_shown_once_and_revoked(run: Run, store: Store) -> None:
    """The last word printed is the key; afterwards only its name is known."""
    code, out, err = run("keys", "create", "ci", "--tenant", "acme", "--scope", "submit")
    key = out.strip()
    principal = store.catalogue.find_key(key)
    assert code == 0
    assert principal is not None
    assert (principal.tenant, principal.scopes) == ("acme", frozenset({"submit"}))
    assert key not in err
    _, listed, _ = run("keys", "list", "--json")
    assert [(k["name"], k["scopes"], k["revoked_at"]) for k in json.loads(listed)] == [("ci", ["submit"], None)]
    assert key not in listed
    assert run("keys", "revoke", str(principal.key_id))[0] == 0
    assert store.catalogue.find_key(key) is None
    code, _, err = run("keys", "revoke", str(principal.key_id))
    assert (code, "see `batchline keys list`" in err) == (1, True)


@pytest.mark.usefixtures("on_database")
def test_a_scope_that_is_none_is_refused(run: Run) -> None:
    code, out, err = run("keys", "create", "ci", "--scope", "root")
    assert (code, out) == (1, "")
    assert "root was given" in err


@pytest.mark.usefixtures("on_database")
def test_a_model_is_imported_with_its_policy(run: Run, store: Store, tmp_path: Path) -> None:
    """The folder's model.toml stays, what was given is written over it, and the catalogue knows the version."""
    source = small_models.double(tmp_path / "source" / "model.onnx").parent
    (source / "model.toml").write_text("[policy]\nmax_batch_size = 8\nallow_missing = true\n")
    code, out, _ = run("models", "import", "double", str(source), "--max-batch-size", "4", "--padding", "pad", "--json")
    assert code == 0
    assert json.loads(out)["policy"]["max_batch_size"] == 4
    policy = tomllib.loads((tmp_path / "models" / "double" / "1" / "model.toml").read_text())["policy"]
    assert policy == {"max_batch_size": 4, "allow_missing": True, "padding": {"mode": "pad"}}
    assert [r.spec.ref for r in store.catalogue.models()] == ["double@1"]
    assert "double@2" in run("models", "import", "double", str(source))[1]


@pytest.mark.usefixtures("on_database")
def test_a_file_that_is_no_model_is_refused(run: Run, store: Store, tmp_path: Path) -> None:
    """One sentence, exit 1, nothing in the repository or the catalogue."""
    (tmp_path / "model.onnx").write_bytes(b"\x80\x04pickle")
    code, out, err = run("models", "import", "bad", str(tmp_path / "model.onnx"))
    assert (code, out) == (1, "")
    assert err.startswith("batchline: ")
    assert "Traceback" not in err
    assert store.catalogue.models() == []
    assert list((tmp_path / "models").rglob("*.onnx")) == []


def test_an_empty_database_is_prepared_by_init(
    run: Run, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: what to run. After, once and twice: schema and the admin key of the file."""
    with stack.database_from(postgres.url, "template0") as url:
        monkeypatch.setenv("DATABASE_URL", url)
        code, _, err = run("keys", "list")
        assert (code, "run `batchline migrate`" in err) == (1, True)
        (tmp_path / "admin").write_text("blk_admin\n")
        monkeypatch.setenv("BATCHLINE_ADMIN_KEY_FILE", str(tmp_path / "admin"))
        for _ in range(2):
            code, out, _ = run("init", "database", "--json")
            assert code == 0
            assert json.loads(out)["admin_key"] is True
        _, listed, _ = run("keys", "list", "--json")
        assert [(k["name"], k["scopes"]) for k in json.loads(listed)] == [("admin", ["admin"])]
        assert run("migrate")[0] == 0


def test_a_database_that_is_away_is_told_without_its_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1 after the time given; the password in the URL is not shown."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:sesame@127.0.0.1:1/none")
    for command in (("init", "database", "--wait", "0"), ("keys", "list"), ("migrate",)):
        code, out, err = run(*command)
        assert (code, out) == (1, "")
        assert "Postgres did not answer" in err
        assert "sesame" not in err


def test_secrets_are_made_once(run: Run, tmp_path: Path) -> None:
    """A second run changes nothing."""
    code, out, _ = run("init", "secrets", str(tmp_path), "--json")
    assert code == 0
    assert "admin_key" in json.loads(out)["made"]
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert json.loads(run("init", "secrets", str(tmp_path), "--json")[1]) == {"made": []}
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("on_database")
def test_doctor_sees_who_is_missing(run: Run, store: Store, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Database and Redis are well; no worker, no leader, no API: each with what to do, and exit 1."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("BATCHLINE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("batchline.cli.doctor._ASK_S", 0.2)
    code, out, _ = run("doctor", "--json")
    parts = {f["part"]: f for f in json.loads(out)["parts"]}
    assert code == 1
    assert [p for p, f in parts.items() if not f["well"]] == ["workers", "scheduler", "api"]
    assert {"database", "redis", "clock", "queue", "models"} <= parts.keys()
    stack.a_worker(store)
    store.workers.lead("scheduler", stack.a_worker(store), lease_s=10.0)
    _, out, _ = run("doctor", "--json")
    assert [f["part"] for f in json.loads(out)["parts"] if not f["well"]] == ["api"]


def told(run: Run, part: str) -> list[str]:
    """What doctor finds wrong with a part: what, and what to do."""
    parts = json.loads(run("doctor", "--json")[1])["parts"]
    return [f"{f['detail']} {f['advice']}" for f in parts if f["part"] == part and not f["well"]]


def test_doctor_sees_models_that_cannot_be_served(
    run: Run, on_database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken catalogue entries, files that are changed, or missing here and in the blob store, useless folders."""
    monkeypatch.setattr("batchline.cli.doctor._ASK_S", 0.2)
    monkeypatch.setenv("BATCHLINE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("BATCHLINE_BLOBS", f"file://{tmp_path / 'blobs'}")
    for width, name in enumerate(("good", "fetched", "newer", "gone", "changed"), 1):
        assert run("models", "import", name, str(small_models.double(tmp_path / "double.onnx", width)))[0] == 0
    specs = {r.spec.name: r.spec for r in store.catalogue.models()}
    assert sorted(p.name for p in (tmp_path / "blobs" / "models").iterdir()) == sorted(s.digest for s in specs.values())
    assert told(run, "models") == []
    stack.query(on_database, "UPDATE models SET spec = '{\"future\": 1}' WHERE name = 'newer'")
    (tmp_path / "models" / "gone" / "1" / "model.onnx").unlink()
    shutil.rmtree(tmp_path / "models" / "fetched")
    (tmp_path / "blobs" / "models" / specs["gone"].digest).unlink()
    with (tmp_path / "models" / "changed" / "1" / "model.onnx").open("ab") as file:
        file.write(b"more")
    (tmp_path / "models" / "stranger" / "1").mkdir(parents=True)
    (tmp_path / "models" / "stranger" / "1" / "model.onnx").write_bytes(b"\x80\x04pickle")
    found = "\n".join(told(run, "models"))
    for part in (
        "entry of newer@1 cannot be read: ",
        "gone@1 cannot be loaded: ",
        "No such file",
        "changed@1 cannot be loaded: ",
        "other bytes than the catalogue knows",
        "stranger/1/model.onnx: ",
        "pickle",
    ):
        assert part in found
    assert "good" not in found
    assert "fetched" not in found


def test_doctor_says_why_jobs_wait(
    run: Run, on_database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers live, and a job waits for minutes: nobody of its pool, then a file with other bytes of the same size."""
    monkeypatch.setattr("batchline.cli.doctor._ASK_S", 0.2)
    monkeypatch.setenv("BATCHLINE_MODELS", str(tmp_path / "models"))
    assert run("models", "import", "double", str(small_models.double(tmp_path / "double.onnx")))[0] == 0
    (record,) = store.catalogue.models()
    store.jobs.submit([stack.new_job(record.id)])
    stack.query(on_database, "UPDATE jobs SET created_at = now() - interval '2 minutes'")
    stack.a_worker(store, pool="gpu")
    (said,) = told(run, "queue")
    assert "double@1: 1 job, the oldest waits for 2.0 min" in said
    assert "BATCHLINE_POOL=cpu `batchline worker`" in said
    stack.a_worker(store)
    file = tmp_path / "models" / "double" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[::-1])
    (said,) = told(run, "queue")
    assert "Workers cannot load it: " in said
    assert "other bytes than the catalogue knows" in said


@pytest.mark.usefixtures("on_database")
def test_doctor_tells_an_old_schema_and_a_dead_redis(
    run: Run, on_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.query(on_database, "UPDATE alembic_version SET version_num = '0000'")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("BATCHLINE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("batchline.cli.doctor._ASK_S", 0.2)
    _, out, _ = run("doctor")
    assert "schema 0000, this code needs" in out
    assert "Run `batchline migrate`" in out
    assert "no job is lost" in out
