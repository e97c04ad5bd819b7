"""`batchline batch …` against a scripted server: what is sent, what is printed, how it exits."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from batchline import cli
from batchline.cli import batch as commands
from batchline.client import Client

Run = Callable[..., tuple[int, str, str]]


def batch(status: str = "completed", **more: Any) -> dict[str, Any]:
    rows = {"total": 4000, "succeeded": 3999, "failed": 1, "cancelled": 0, "expired": 0, "running": 0, "queued": 0}
    base = {"id": "batch_1", "status": status, "model": "churn", "version": "2", "rows": rows, "created_at": 100}
    return base | {"completed_at": 112} | more


class Server:
    """Answers from a script, or with a finished batch; keeps the requests."""

    def __init__(self) -> None:
        self.script: list[httpx.Response] = []
        self.requests: list[httpx.Request] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        if request.url.path == "/v1/files":
            return httpx.Response(200, json={"id": "file-1", "bytes": 1})
        return self.script.pop(0) if self.script else httpx.Response(200, json=batch())

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.requests[-1].content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    transport = httpx.MockTransport(server.handle)
    monkeypatch.setattr(
        commands, "open_client", lambda: Client("http://a", "k", transport=transport, sleep=lambda _: None)
    )
    return server


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["batchline", "batch", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capfd.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


def test_create_says_everything_the_api_takes(run: Run, server: Server) -> None:
    """Tables by `table:`, lists with commas, conditions in plain words; the id is all that is printed."""
    code, out, _ = run(
        *(
            "create",
            "churn@2",
            "--input",
            "table:public.users",
            "--database",
            "shop",
            "--key",
            "id",
            "--columns",
            "a, b",
        ),
        *("--where", "age >= 3", "--where", "name is not null", "--where", "country in AT, DE", "--where", "n != a b"),
        *(
            "--output",
            "table:scores",
            "--mode",
            "upsert",
            "--keep",
            "name",
            "--priority",
            "3",
            "--error-threshold",
            "0.5",
        ),
    )
    assert (code, out) == (0, "batch_1\n")
    assert server.body == {
        "model": "churn", "version": "2", "priority": 3, "error_threshold": 0.5,
        "input": {"table": "public.users", "database": "shop", "key": "id", "columns": ["a", "b"], "where": [
            ["age", ">=", "3"], ["name", "is not null"], ["country", "in", ["AT", "DE"]], ["n", "!=", "a b"]]},
        "output": {"table": "scores", "database": "shop", "mode": "upsert", "keep": ["name"]},
    }  # fmt: skip


def test_files_and_stdin_are_uploaded(
    run: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path is a file here; - is stdin, JSON lines unless --format says otherwise; a URI is the server's to read."""
    (tmp_path / "users.parquet").write_bytes(b"PAR1")
    assert run("create", "churn", "--input", str(tmp_path / "users.parquet"))[0] == 0
    assert b'filename="users.parquet"' in server.requests[0].content
    assert server.body["input"] == {"file_id": "file-1"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a,b\n1,2\n")))
    assert run("create", "churn", "--input", "-", "--format", "csv")[0] == 0
    assert b'filename="stdin.csv"' in server.requests[2].content
    assert b"a,b\n1,2\n" in server.requests[2].content
    assert server.body["input"] == {"file_id": "file-1", "format": "csv"}
    run("create", "churn", "--input", "s3://b/x.csv", "--output", "s3://b/out/", "--output-format", "parquet")
    assert server.body["input"] == {"uri": "s3://b/x.csv"}
    assert server.body["output"] == {"uri": "s3://b/out/", "format": "parquet"}


@pytest.mark.parametrize("where", ["age", "age ~ 3", "age >=", "is null", ""])
def test_what_is_no_condition_is_wrong_usage(run: Run, server: Server, where: str) -> None:
    """Exit 2, before anything is sent."""
    code, _, err = run("create", "churn", "--input", "table:users", "--where", where)
    assert (code, server.requests) == (2, [])
    assert "no condition" in err


def test_a_mode_without_a_table_is_wrong_usage(run: Run) -> None:
    assert run("create", "churn", "--input", "s3://b/x.csv", "--mode", "append")[0] == 2


def test_status_is_for_people_or_programs(run: Run, server: Server) -> None:
    """Counts, speed and faults in words; with --json the batch itself."""
    code, out, _ = run("status", "batch_1")
    assert (code, out) == (0, "batch_1 completed in 12 s\n  rows: 4,000 (3,999 succeeded, 1 failed)\n")
    rows = {"total": 10, "succeeded": 4, "failed": 0, "cancelled": 0, "expired": 0, "running": 2, "queued": 4}
    running = batch("in_progress", completed_at=None, rows=rows, rows_per_s=1234.5, eta_s=75.0)
    server.script = [httpx.Response(200, json=running), httpx.Response(200, json=running | {"paused_at": 5})]
    assert "  speed: 1,234 rows/s, 1 min 15 s left\n" in run("status", "batch_1")[1]
    assert "batch_1 paused" in run("status", "batch_1")[1]
    assert json.loads(run("status", "batch_1", "--json")[1])["rows"]["succeeded"] == 3999


def test_wait_exits_by_how_it_ended(run: Run, server: Server) -> None:
    """0 for completed, though a row failed; 1 for all else, with the reason."""
    assert run("wait", "batch_1")[0] == 0
    errors = {"data": [{"code": "source_error", "message": "users.csv is gone.", "line": None, "param": None}]}
    failed = batch("failed", completed_at=None, failed_at=101, errors=errors)
    server.script = [httpx.Response(200, json=failed)] * 2
    code, out, _ = run("wait", "batch_1")
    assert code == 1
    assert out.splitlines()[-1] == "  source_error: users.csv is gone."
    server.script = [httpx.Response(200, json=failed)] * 2
    code, out, err = run("create", "churn", "--input", "s3://b/x.csv", "--wait", "--json")
    assert (code, json.loads(out)["status"], err) == (1, "failed", "batch_1\n")


def test_results_are_json_lines(run: Run, server: Server) -> None:
    """One row a line, errors among them; with --json one array."""
    lines = b'{"row":0,"y":1.5}\n{"row":1,"error":{"code":"row_error","message":"no"}}\n'
    page = httpx.Response(200, content=lines, headers={"Batchline-Complete": "true"})
    server.script = [httpx.Response(200, json=batch()), page, httpx.Response(200, json=batch()), page]
    assert run("results", "batch_1")[1].encode() == lines
    assert json.loads(run("results", "batch_1", "--json")[1]) == [json.loads(line) for line in lines.splitlines()]


@pytest.mark.parametrize("what", ["cancel", "pause", "resume"])
def test_its_life_is_steered(run: Run, server: Server, what: str) -> None:
    assert run(what, "batch_1")[0] == 0
    assert server.requests[-1].url.path == f"/v1/batches/batch_1/{what}"
    late = {"message": "Cannot do it: completed.", "type": "invalid_request_error", "param": None, "code": None}
    server.script = [httpx.Response(200, json=batch()), httpx.Response(409, json={"error": late})]
    code, _, err = run(what, "batch_1")
    assert (code, err) == (1, "batchline: Cannot do it: completed.\n")


def test_retry_and_list(run: Run, server: Server) -> None:
    """Retry prints the child's id; the list is a table of tabs when nobody looks."""
    server.script = [httpx.Response(200, json=batch()), httpx.Response(200, json=batch(id="batch_2"))]
    assert run("retry", "batch_1")[1] == "batch_2\n"
    server.script = [httpx.Response(200, json={"data": [batch()], "has_more": False})]
    head, line = run("list")[1].splitlines()
    assert head.split("\t")[:5] == ["id", "status", "model", "rows", "done"]
    assert line.split("\t")[:6] == ["batch_1", "completed", "churn@2", "4,000", "3,999", "1"]
