"""The command line: its manners, and what doctor thinks of what it sees."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import stack
import typer.main

from batchline import cli
from batchline.cli import diagnosis, doctor, installation, output
from batchline.store.contract import WorkerView
from batchline.store.health import ModelHealth

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXEC = ("api", "worker", "scheduler", "autoscaler")
"""Commands that become another process; they have nothing to tell."""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, no variables, and an address where nobody listens."""
    for name in [n for n in os.environ if n.startswith("BATCHLINE_")] + ["DATABASE_URL", "REDIS_URL"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHLINE_URL", "http://127.0.0.1:1")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["batchline", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words."""
    for name, child in getattr(command, "commands", {}).items():
        if getattr(child, "commands", None):
            yield from leaves(child, (*path, name))
        else:
            yield (*path, name), child


LEAVES = dict(leaves(typer.main.get_command(cli.app)))


def test_every_command_takes_json() -> None:
    """--json on every command that tells something."""
    without = [path for path, c in LEAVES.items() if "--json" not in {o for p in c.params for o in p.opts}]
    assert without == [(name,) for name in EXEC if (name,) in LEAVES]


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_says_what_it_does(path: tuple[str, ...]) -> None:
    """A sentence in --help, short enough not to be cut in the list of commands."""
    first = (LEAVES[path].help or "").strip().splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 62


def test_help_loads_no_library_it_does_not_need() -> None:
    """`batchline --help` answers at once: no rich, httpx, sqlalchemy, celery, numpy."""
    heavy = "{'rich', 'httpx', 'sqlalchemy', 'celery', 'redis', 'numpy', 'alembic', 'onnxruntime'}"
    code = f"""
import atexit, sys
from batchline import cli
atexit.register(lambda: print({heavy} & set(sys.modules), file=sys.stderr))
sys.argv = ["batchline", "--help"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert "submit" in done.stdout


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, the one of the installed distribution."""
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"batchline {version('batchline')}\n"


def test_python_m_batchline_is_the_command() -> None:
    """The same commands, called by the same name in what it says, with the same exit codes."""
    called = [sys.executable, "-m", "batchline"]
    assert subprocess.check_output([*called, "--version"], text=True) == f"batchline {version('batchline')}\n"
    wrong = subprocess.run([*called, "wait"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "Usage: batchline wait" in wrong.stderr


def test_the_port_that_up_would_take_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While nothing runs and no server is named, BATCHLINE_PORT says where the API would be."""
    monkeypatch.delenv("BATCHLINE_URL")
    monkeypatch.setenv("BATCHLINE_PORT", "1")
    assert run(monkeypatch, "jobs") == 1
    assert "http://127.0.0.1:1 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", "digits"),
        ("submit", "digits", "--rows", "{}"),
        ("submit", "digits", "--rows", "[1,"),
        ("submit", "digits", "--rows", "[1]", "--priority", "10"),
        ("jobs", "--status", "lost"),
        ("wait",),
        ("models", "import", "digits", "no-such-file.onnx"),
        ("no-such-command",),
        ("up", "--apis", "0"),
    ],
)
def test_wrong_usage_ends_with_2(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was typed wrong is told on stderr, and nothing is done."""
    assert run(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "Usage: batchline" in told.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "list"), "start one with `batchline up`, or set DATABASE_URL"),
        (("migrate",), "start one with `batchline up`, or set DATABASE_URL"),
        (("status",), "nothing runs in .batchline; start it with `batchline up`"),
        (("init", "secrets", "no-such-folder"), "is no-such-folder there, and ours to write?"),
    ],
)
@pytest.mark.parametrize("json", [(), ("--json",)])
def test_what_cannot_be_done_ends_with_1_and_a_sentence(
    arguments: tuple[str, ...],
    said: str,
    json: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What, to what, and what next; never a traceback; stdout stays clean."""
    assert run(monkeypatch, *arguments, *json) == 1
    told = capsys.readouterr()
    if arguments == ("status",) and json:
        assert '"running":false' in told.out
        return
    assert told.out == ""
    assert said in told.err
    assert "Traceback" not in told.err


def test_a_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An unreachable API does not make `wait` wait for ever."""
    from batchline.client import Client

    monkeypatch.setattr("batchline.cli.jobs.open_client", lambda: Client(timeout_s=0.2))
    assert run(monkeypatch, "wait", "job_x") == 1
    assert "http://127.0.0.1:1 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "module"), [(n, {"worker": "workers"}.get(n, n)) for n in EXEC])
def test_a_process_is_become_and_not_started(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command gives its pid to the process, so that signals reach it; -P keeps the user's folders out."""
    called: list[list[str]] = []

    def execve(_path: str, arguments: list[str], _environ: object) -> None:
        called.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    assert run(monkeypatch, name) == 0
    assert called == [[sys.executable, "-P", "-m", module]]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.04, "0.0 s"), (12.3, "12 s"), (120, "2.0 min"), (7200, "2.0 h"), (400_000, "5 d")]
)
def test_durations_are_for_people(value: float, shown: str) -> None:
    assert output.seconds(value) == shown


def test_one_is_no_plural() -> None:
    assert [output.counted(n, "job") for n in (0, 1, 2, 1000)] == ["0 jobs", "1 job", "2 jobs", "1,000 jobs"]


def test_a_stranger_in_our_packages_is_named() -> None:
    """Another `scheduler` from PyPI overwrites ours; so does a folder on the path."""

    def here(name: str) -> Path:
        return Path("/site") / name

    assert installation.packages(here, {"batchline": ["batchline"], "numpy": ["numpy"]}).well
    stranger = installation.packages(here, {"scheduler": ["scheduler", "batchline"]})
    assert not stranger.well
    assert "scheduler has written into our package scheduler" in stranger.detail
    shadowed = installation.packages(lambda n: Path("/home/api") if n == "api" else here(n), {})
    assert (shadowed.well, "api is taken from /home/api" in shadowed.detail) == (False, True)
    missing = installation.packages(lambda n: None if n == "workers" else here(n), {})
    assert "workers is missing" in missing.detail


def test_our_five_names_are_ours() -> None:
    """In this very environment: nobody else has installed api, workers, scheduler or autoscaler."""
    assert [f.detail for f in installation.examine() if not f.well] == []


def test_two_runtimes_are_broken() -> None:
    """onnxruntime and onnxruntime-gpu write the same files."""
    assert not installation.runtime(["onnxruntime", "onnxruntime-gpu"]).well
    assert installation.runtime([]).well
    assert not installation.runtime(["onnxruntime", "onnxruntime-gpu", "torch"]).well
    assert "leaves .pt2 models to others" in installation.runtime(["onnxruntime"]).detail


def test_an_old_python_is_not_well() -> None:
    assert [installation.python(v).well for v in ((3, 10, 9), (3, 11, 0), (3, 14, 1))] == [False, True, True]


@pytest.mark.parametrize(("away_s", "well"), [(0.0, True), (1.9, True), (2.5, False), (-2.5, False), (-1.0, True)])
def test_a_clock_far_from_the_databases_is_not_well(away_s: float, well: bool) -> None:
    """Leases stand on the database's clock; people read ours."""
    assert doctor.clock(NOW + timedelta(seconds=away_s), NOW, NOW).well is well


def test_a_slow_answer_is_no_skew() -> None:
    """The database's clock was read somewhere between our two readings."""
    assert doctor.clock(NOW + timedelta(seconds=5), NOW, NOW + timedelta(seconds=9)).well


@pytest.mark.parametrize(
    ("jobs", "oldest_s", "well"), [(0, 0.0, True), (5000, 10.0, True), (3, 90.0, False), (0, 90.0, True)]
)
def test_old_work_is_a_symptom(jobs: int, oldest_s: float, well: bool) -> None:
    """A long queue that moves is well; a job that waits for a minute is not."""
    pools = {"cpu": {"jobs": jobs, "oldest_age_s": oldest_s}}
    for stuck in (
        diagnosis.queue([an_entry(jobs=jobs, oldest_s=oldest_s)], [], Path("nowhere")),
        diagnosis.pools(pools, []),
    ):
        (finding,) = doctor.queue(jobs, oldest_s, stuck)
        assert finding.well is well
        assert well or "No live worker serves its pool cpu" in finding.advice


def an_entry(*, jobs: int = 0, oldest_s: float = 0.0, fault: str = "") -> ModelHealth:
    return ModelHealth("digits@1", "cpu", None if fault else stack.a_spec(), fault, jobs, oldest_s)


def a_worker(**changes: Any) -> WorkerView:
    fields: dict[str, Any] = {
        "id": uuid.uuid4(), "host": "here", "pid": 1, "pool": "cpu", "device": "cpu", "started_at": NOW,
        "heartbeat_at": NOW, "live": True, "draining": False, "models": "digits@1", "rows_per_s": 5.0,
        "instance": "",
    }  # fmt: skip
    return WorkerView(**fields | changes)


@pytest.mark.parametrize(
    ("workers", "fault", "advice"),
    [
        ([], "", "No live worker serves its pool cpu: start one with BATCHLINE_POOL=cpu"),
        ([{"pool": "gpu"}, {"live": False}, {"draining": True}], "", "No live worker serves its pool cpu"),
        ([{}], "unknown field", "catalogue entry cannot be read"),
        ([{"models": "other@1"}], "", "None of the 1 live worker of its pool cpu has loaded it"),
        ([{"rows_per_s": 0.0}], "", "1 worker loaded it and finished no row lately"),
        ([{}, {}], "", "Add workers of its pool cpu: 2 loaded it and do 10.0 rows/s"),
    ],
)
def test_it_is_said_why_jobs_wait(workers: list[dict[str, Any]], fault: str, advice: str) -> None:
    """Which model, how many jobs, and what keeps the live workers from them."""
    entry = an_entry(jobs=3, oldest_s=90.0, fault=fault)
    (finding,) = diagnosis.queue([entry], [a_worker(**changes) for changes in workers], Path("nowhere"))
    assert finding.detail == "digits@1: 3 jobs, the oldest waits for 1.5 min"
    assert advice in finding.advice


def test_a_models_folder_where_we_stand_need_not_be_the_workers(tmp_path: Path) -> None:
    """An unset BATCHLINE_MODELS means ./models: without any file of the catalogue it is somebody else's. So is an empty
    one, as the API's container has it."""
    (tmp_path / "models").mkdir()
    (here,) = diagnosis.models([an_entry()], Path("models"))
    (empty,) = diagnosis.models([an_entry()], tmp_path / "models")
    assert (here.well, empty.well) == (True, True)
    (tmp_path / "models" / "notes.txt").write_text("x")
    found = list(diagnosis.models([an_entry()], tmp_path / "models"))
    assert any("digits@1 cannot be loaded" in f.detail and not f.well for f in found)


def test_a_patient_that_cannot_be_looked_at_does_not_end_the_visit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part's surprise is that part's finding."""

    def surprise(*_: object) -> Iterator[installation.Finding]:
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "redis", surprise)
    monkeypatch.setattr(doctor, "_ASK_S", 0.1)
    findings = {f.part: f for f in doctor.examine(tmp_path)}
    assert "RuntimeError: boom" in findings["redis"].detail
    assert not findings["api"].well
    assert all(f.advice for f in findings.values() if not f.well)


def test_everything_wrong_with_the_settings_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor does not stumble over what it is asked to find."""
    monkeypatch.setenv("BATCHLINE_LEASE_S", "soon")
    findings = list(doctor.examine(tmp_path))
    assert findings[-1].part == "settings"
    assert "BATCHLINE_LEASE_S" in findings[-1].detail
