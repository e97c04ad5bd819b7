"""Commands that go through the API, against a whole system: jobs, models, workers, costs, doctor."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models
from cli_runner import Run, runner
from system import System, running_system

from batchline.store import open_store
from batchline.store.cost_contract import PoolMoney


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


def test_a_real_workers_time_is_priced_and_told_by_the_command(system: System, run: Run) -> None:
    """A job and a batch cost something, what is left is idle, and it all adds up to the worker's time."""
    assert run("costs")[0] == 0
    store = open_store(system.env["DATABASE_URL"], connections=1)
    store.costs.keep(PoolMoney("cpu", price_per_hour=3.6e6))
    store.close()
    job_id = run("submit", "double", "--rows", "[[1, 2]]", "--wait", "--json")[1]
    job_id = json.loads(job_id)["id"]
    Path("rows.jsonl").write_text("".join(f'{{"x": [{n}, {n}]}}\n' for n in range(5000)))
    batch_id = json.loads(run("batch", "create", "double", "--input", "rows.jsonl", "--wait", "--json")[1])["id"]

    def until(done: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 60.0
        while not (found := done()):
            assert time.monotonic() < deadline
        return found

    job = until(lambda: (found := json.loads(run("costs", "--job", job_id, "--json")[1]))["cost"] and found)
    assert job["cost"] == pytest.approx(job["worker_s"] * 1000, rel=1e-6)
    batch = until(lambda: json.loads(run("batch", "status", batch_id, "--json")[1])["cost"])
    assert batch > job["cost"] > 0
    assert "cost: " in run("batch", "status", batch_id)[1]
    assert job_id in run("costs", "--job", job_id)[1]

    told = json.loads(run("costs", "--by", "batch", "--json")[1])
    lines = {(line["key"], line["idle"]): line["cost"] for line in told["data"]}
    assert set(lines) == {(batch_id, False), (None, False), (None, True)}
    assert sum(lines.values()) == pytest.approx(told["total"]["cost"])
    assert lines[None, True] > 0
    code, out, err = run("costs", "--by", "model")
    assert code == 0
    assert "double@1" in out
    assert "(idle)" in out
    assert "1 machines for" in err
    assert run("costs", "--from", "yesterday")[0] == 2
    assert run("costs", "--job", "job_none")[0] == 1


def test_load_measures_what_clients_wait_for(run: Run) -> None:
    """Every job counts once; a table for people, one document for programs."""
    arguments = ("load", "double", "--rows", "[[1, 2], [3, 4]]", "--clients", "3", "--seconds", "0.5")
    code, out, _ = run(*arguments, "--json")
    told = json.loads(out)
    assert (code, told["faults"], told["clients"]) == (0, {}, 3)
    assert told["jobs"] >= 3
    assert told["rows_per_s"] == pytest.approx(2 * told["jobs_per_s"], abs=0.2)
    assert 0 < told["p50_ms"] <= told["p95_ms"] <= told["p99_ms"] <= told["max_ms"]
    found = json.loads(run("jobs", "--model", "double", "--limit", "1", "--json")[1])[0]
    assert (found["status"], found["rows"]) == ("succeeded", 2)
    code, out, _ = run(*arguments)
    assert (code, "p99_ms\t" in out) == (0, True)


def test_load_of_jobs_that_fail_says_why_and_is_1(run: Run) -> None:
    """Rows that fail are counted by status; what is refused ends each client at once."""
    code, out, err = run("load", "pick", "--rows", "[99]", "--clients", "2", "--seconds", "0.3", "--json")
    assert (code, json.loads(out)["jobs"], json.loads(out)["p50_ms"]) == (1, 0, None)
    assert list(json.loads(out)["faults"]) == ["failed"]
    assert "jobs: failed" in err
    code, out, _ = run("load", "nosuch", "--rows", "[[1, 2]]", "--clients", "2", "--seconds", "30", "--json")
    assert (code, json.loads(out)["faults"]) == (1, {"not_found": 2})
    assert run("load", "double", "--rows", "1")[0] == 2


def test_a_wrong_key_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """401 in words, and doctor says where a key comes from."""
    monkeypatch.setenv("BATCHLINE_API_KEY", "blk_wrong")
    code, _, err = run("jobs")
    assert (code, err.count("\n")) == (1, 1)
    assert "batchline keys create" in run("doctor")[1]
