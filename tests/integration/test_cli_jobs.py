"""Commands that go through the API, against a whole system: submit, wait, jobs, cancel, models, workers, doctor."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_models
from cli_runner import Run, runner
from system import System, running_system


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """API, worker, scheduler; `double` doubles, `pick` refuses rows beyond 9."""
    folder = tmp_path_factory.mktemp("system")
    models = {"double": small_models.double(folder / "double.onnx"), "pick": small_models.pick(folder / "pick.onnx")}
    with running_system(folder, models, durable=False) as system:
        yield system


@pytest.fixture
def run(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, as a user of the system; its exit code and both outputs."""
    run = runner(tmp_path, monkeypatch, capfd)
    monkeypatch.setenv("BATCHLINE_URL", ",".join(system.urls))
    monkeypatch.setenv("BATCHLINE_API_KEY", system.key)
    return run


def test_rows_come_back_one_a_line(run: Run) -> None:
    """Outputs on stdout, the summary on stderr."""
    code, out, err = run("submit", "double", "--rows", "[[1, 2], [3, 4]]", "--wait")
    assert (code, [json.loads(line) for line in out.splitlines()]) == (0, [{"y": [2.0, 4.0]}, {"y": [6.0, 8.0]}])
    assert "succeeded: 2 of 2 rows" in err


def test_rows_are_read_from_stdin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--rows -` is for rows that do not fit a command line; NAME@VERSION names a version."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[[1, 1]]")))
    code, out, _ = run("submit", "double@1", "--rows", "-", "--wait", "--json")
    job = json.loads(out)
    assert (code, job["status"], job["outputs"]) == (0, "succeeded", [{"y": [2.0, 2.0]}])


def test_a_job_is_submitted_now_and_waited_for_later(run: Run) -> None:
    """The id is the whole answer of submit, so that scripts need no parser."""
    ids = [run("submit", "double", "--rows", "[[1, 2]]")[1].strip() for _ in range(2)]
    code, out, _ = run("wait", *ids, "--json", "--timeout", "30")
    assert (code, [job["id"] for job in json.loads(out)]) == (0, ids)
    code, out, _ = run("jobs", "--model", "double", "--status", "succeeded", "--limit", "2", "--json")
    assert (code, [job["id"] for job in json.loads(out)]) == (0, ids[::-1])
    assert ids[1] in run("jobs", "--limit", "1")[1]


def test_a_failed_job_ends_with_1(run: Run) -> None:
    """Each row says why; a script sees it by the exit code."""
    code, out, err = run("submit", "pick", "--rows", "[99]", "--wait")
    assert code == 1
    assert json.loads(out)["error"]["row"] == 0
    assert "failed (predict_failed): 0 of 1 rows" in err


def test_bad_rows_are_told_with_their_place(run: Run) -> None:
    """Exit 1, a sentence, and a pointer to each row at fault."""
    code, out, err = run("submit", "double", "--rows", "[[1, 2], [1]]")
    assert (code, out) == (1, "")
    assert "/inputs/1" in err


def test_cancelling_what_has_ended_is_an_error(run: Run) -> None:
    """The others are cancelled all the same; here there is none."""
    job_id = run("submit", "double", "--rows", "[[1, 2]]")[1].strip()
    assert run("wait", job_id)[0] == 0
    code, out, err = run("cancel", job_id, "job_none")
    assert (code, out) == (1, "")
    assert "nothing to cancel" in err
    assert "no job with this id" in err


def test_the_catalogue_is_shown(run: Run) -> None:
    """Names, versions, tensors, policy."""
    assert [m["id"] for m in json.loads(run("models", "list", "--json")[1])] == ["double", "pick"]
    assert "x FP32 [2]" in run("models", "list")[1]
    assert "max_batch_size\t64" in run("models", "show", "double")[1]
    code, _, err = run("models", "show", "nothing")
    assert (code, "no such model" in err.lower() or "no model" in err.lower()) == (1, True)


def test_workers_are_shown_and_all_is_well(run: Run) -> None:
    """Doctor asks the API where it knows no database."""
    assert [w["live"] for w in json.loads(run("workers", "--json")[1])] == [True]
    code, out, err = run("doctor", "--json")
    assert code == 0, (out, err)
    assert {"api", "key", "workers", "queue"} <= {f["part"] for f in json.loads(out)["parts"]}


def test_a_wrong_key_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """401 in words, and doctor says where a key comes from."""
    monkeypatch.setenv("BATCHLINE_API_KEY", "blk_wrong")
    code, _, err = run("jobs")
    assert (code, err.count("\n")) == (1, 1)
    assert "batchline keys create" in run("doctor")[1]
