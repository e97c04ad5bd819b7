"""The embedded system as a whole: up, status, down, over real servers and tiny stand-ins for our processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from system import until

from batchline.errors import LocalError, SettingsError
from batchline.local import children
from batchline.local.plan import PROCESSES, Options, Process, make_plan
from batchline.local.server import PortInUseError, free_port, is_free
from batchline.local.stack import StackStatus, down, status, up

MIGRATE = "import os; open(os.environ['BATCHLINE_ADMIN_KEY_FILE'] + '.seen', 'w').write('made')"
API = """
import http.server, os
assert os.path.exists(os.environ["BATCHLINE_ADMIN_KEY_FILE"] + ".seen")
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["BATCHLINE_PORT"])), Answer).serve_forever()
"""
WORKER = "import time; time.sleep(600)"
TABLE = (
    Process("migrate", ("-c", MIGRATE), once=True),
    Process("api", ("-c", API), many="apis", ready_path="/readyz"),
    Process("worker", ("-c", WORKER), many="workers"),
)


@pytest.fixture(autouse=True)
def free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("BATCHLINE_PORT", "BATCHLINE_FLOWER_PORT"):
        monkeypatch.setenv(name, "0")


def living(now: StackStatus) -> list[int]:
    return [part.pid for part in now.parts if part.pid and children.is_alive(part.pid)]


def test_up_twice_status_and_down(tmp_path: Path) -> None:
    """A detached start returns when all is ready; a second says where it is; down leaves no process."""
    folder = tmp_path / "stack"
    try:
        addresses = up(folder, detach=True, apis=2, workers=2, processes=TABLE)
        assert len(addresses.api_urls) == 2
        assert addresses.key_path.stat().st_mode & 0o777 == 0o600
        psycopg2.connect(addresses.database_url).close()
        now = status(folder)
        assert [(p.name, p.state) for p in now.parts] == [
            ("postgres", "running"),
            ("valkey", "running"),
            ("migrate", "done"),
            ("api-1", "running"),
            ("api-2", "running"),
            ("worker-1", "running"),
            ("worker-2", "running"),
        ]
        assert now.ready
        assert all(p.uptime_s > 0 for p in now.parts if p.pid)
        seen = []
        again = up(folder, detach=True, processes=TABLE, on_ready=seen.append)
        assert again.already_running
        assert again.api_urls == addresses.api_urls
        assert seen == [again]
        assert down(folder)
        assert not living(now)
        assert not status(folder).running
        assert not down(folder)
    finally:
        down(folder)


def test_kill_of_the_supervisor_ends_all_and_the_next_up_works(tmp_path: Path) -> None:
    """kill -9 of the supervisor: no child is left, status says so, the same folder starts again with its data."""
    folder = tmp_path / "stack"
    try:
        first = up(folder, detach=True, processes=TABLE)
        connection = psycopg2.connect(first.database_url)
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept (n int)")
        before = status(folder)
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: not living(before))
        assert not status(folder).running
        second = up(folder, detach=True, processes=TABLE)
        connection = psycopg2.connect(second.database_url)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM kept")
            assert cursor.fetchone() == (0,)
        connection.close()
    finally:
        down(folder)


def test_a_killed_postgres_comes_back_at_the_same_address(tmp_path: Path) -> None:
    """The others were told its address, so a restarted server keeps it."""
    folder = tmp_path / "stack"
    try:
        addresses = up(folder, detach=True, processes=TABLE[:1])
        postgres = status(folder).parts[0]
        os.kill(postgres.pid, signal.SIGKILL)
        until(lambda: (p := status(folder).parts[0]).state == "running" and p.pid != postgres.pid)
        assert status(folder).parts[0].restarts == 1
        psycopg2.connect(addresses.database_url).close()
    finally:
        down(folder)


def test_given_servers_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL and REDIS_URL in the environment: those servers are used, none is started."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere/0")
    code = "import os, time; assert os.environ['DATABASE_URL'] == 'postgresql://elsewhere/db'; time.sleep(600)"
    try:
        addresses = up(tmp_path, detach=True, processes=(Process("worker", ("-c", code)),))
        assert (addresses.database_url, addresses.redis_url) == ("postgresql://elsewhere/db", "redis://elsewhere/0")
        assert [p.name for p in status(tmp_path).parts] == ["worker"]
        assert not (tmp_path / "pg").exists()
    finally:
        down(tmp_path)


@pytest.mark.parametrize("detach", [True, False])
def test_a_taken_api_port_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detach: bool
) -> None:
    """Nothing is started when a port is taken; the message says which variable moves it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("BATCHLINE_PORT", str(port))
        with pytest.raises(LocalError, match=f"Port {port} is in use.*BATCHLINE_PORT") as caught:
            up(tmp_path, detach=detach, processes=TABLE)
        assert detach or isinstance(caught.value, PortInUseError)
    assert not status(tmp_path).running


def test_a_process_that_ends_at_its_start_fails_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the end of that process's log, and everything else has been stopped."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere/0")
    table = (Process("worker", ("-c", "raise SystemExit('no such model')")),)
    with pytest.raises(LocalError, match=r"worker does not come up[\s\S]*no such model"):
        up(tmp_path, detach=True, processes=table)
    assert not status(tmp_path).running


def test_foreground_runs_until_a_signal(tmp_path: Path) -> None:
    """Ctrl-C in the foreground stops everything in order and exits without a traceback."""
    code = (
        "import sys; from pathlib import Path; from batchline.local.stack import up;"
        "from batchline.local.plan import Process;"
        "up(Path(sys.argv[1]), detach=False, processes=(Process('worker', ('-c', 'import time; time.sleep(600)')),),"
        "   on_ready=lambda a: print(a.database_url, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("postgresql://batchline:")
        before = status(tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not living(before)
    finally:
        process.kill()
        process.wait()


def test_status_and_down_of_a_folder_that_never_ran(tmp_path: Path) -> None:
    """Not running is an answer, no error."""
    assert not status(tmp_path / "none").running
    assert not down(tmp_path / "none")


def test_batches_have_folders_of_the_stacks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads and file:// lie in the stack's folder unless the settings say; a relative place is that of the caller."""
    seen: list[dict[str, str]] = []
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    monkeypatch.chdir(tmp_path)
    for number, environ in enumerate(({}, {"BATCHLINE_BLOBS": "file://mine", "BATCHLINE_DATA_ROOTS": "/a:/b"})):
        told = tmp_path / f"environ{number}"
        process = Process("once", ("-c", code, str(told)), once=True)
        servers = {"DATABASE_URL": "postgresql://elsewhere/db", "REDIS_URL": "redis://elsewhere"}
        (tmp_path / "logs").mkdir(exist_ok=True)
        plan = make_plan(tmp_path, Options(processes=(process,)), dict(os.environ) | servers | environ)
        assert plan.stages[0][0].spawn().wait(20) == 0
        seen.append(json.loads(told.read_text()))
    assert seen[0]["BATCHLINE_BLOBS"] == f"file://{tmp_path}/blobs"
    assert seen[0]["BATCHLINE_DATA_ROOTS"] == f"{tmp_path}/data"
    assert (tmp_path / "data").is_dir()
    assert (seen[1]["BATCHLINE_BLOBS"], seen[1]["BATCHLINE_DATA_ROOTS"]) == (f"file://{tmp_path}/mine", "/a:/b")


def test_each_process_has_a_port_of_its_own_for_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From BATCHLINE_METRICS_PORT upwards in the order of their start; the others get none, and `status` shows them."""
    first = free_ports_in_a_row(5)
    monkeypatch.setenv("BATCHLINE_METRICS_PORT", str(first))
    told = "import os; open(os.path.join({!r}, {!r} + os.environ['BATCHLINE_METRICS_PORT']), 'w').close()\n"
    table = tuple(
        replace(p, arguments=("-c", told.format(str(tmp_path), p.name) + p.arguments[1]), metrics=not p.once)
        for p in (*TABLE, Process("autoscaler", ("-c", WORKER)))
    )
    try:
        up(tmp_path / "stack", detach=True, apis=2, workers=2, processes=table)
        now = {part.name: part.metrics_port for part in status(tmp_path / "stack").parts}
    finally:
        down(tmp_path / "stack")
    names = ("api-1", "api-2", "worker-1", "worker-2", "autoscaler")
    assert now == {"postgres": None, "valkey": None, "migrate": None} | dict(
        zip(names, range(first, first + 5), strict=True)
    )
    given = {f"{name.split('-')[0]}{port}" for name, port in now.items() if port}
    assert given | {"migrate0"} <= {path.name for path in tmp_path.iterdir()}
    assert [process.name for process in PROCESSES if process.metrics] == ["api", "worker", "scheduler", "autoscaler"]


def free_ports_in_a_row(count: int) -> int:
    """The first of so many that are free now."""
    while True:
        first = free_port()
        if all(is_free(port) for port in range(first, first + count)):
            return first


@pytest.mark.parametrize("taken", ["BATCHLINE_PORT", None])
def test_a_taken_port_of_metrics_is_named(tmp_path: Path, taken: str | None) -> None:
    """By another program, or by ourselves."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = free_ports_in_a_row(2) if taken else listening.getsockname()[1]
        environ = {"BATCHLINE_PORT": "0", "BATCHLINE_FLOWER_PORT": "0", "BATCHLINE_METRICS_PORT": str(port)}
        if taken:
            environ[taken] = str(port)
        with pytest.raises(PortInUseError, match=f"Port {port} is .*BATCHLINE_METRICS_PORT"):
            make_plan(tmp_path, Options(), environ)


def test_flower_gets_its_password_by_environment(tmp_path: Path) -> None:
    """Loopback, a generated password of mode 0600, nothing of it in an argument list."""
    plan = make_plan(tmp_path, Options(), {"BATCHLINE_PORT": "0", "BATCHLINE_FLOWER_PORT": "0"})
    assert plan.flower_port
    password = (tmp_path / "flower").read_text().strip()
    assert len(password) >= 32
    assert (tmp_path / "flower").stat().st_mode & 0o777 == 0o600
    assert all(password not in " ".join(process.arguments) for process in Options().processes)


def test_a_port_that_is_none_is_refused(tmp_path: Path) -> None:
    """The variable is named."""
    with pytest.raises(SettingsError, match="BATCHLINE_FLOWER_PORT"):
        make_plan(tmp_path, Options(), {"BATCHLINE_PORT": "0", "BATCHLINE_FLOWER_PORT": "99999"})
