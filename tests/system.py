"""The four processes as subprocesses on servers of their own: started, killed and started again by tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from batchline.local.servers import PostgresServer, ValkeyServer, free_port
from batchline.registry import import_model
from batchline.store import open_store
from batchline.store.catalogue import new_key
from batchline.store.migrations.__main__ import prepare
from batchline.testing import ephemeral_postgres, ephemeral_valkey

SHORT = {
    "BATCHLINE_LEASE_S": "3",
    "BATCHLINE_HEARTBEAT_S": "1",
    "BATCHLINE_SWEEP_S": "0.5",
    "BATCHLINE_LEADER_LEASE_S": "3",
    "BATCHLINE_IDLE_POLL_S": "0.5",
    "BATCHLINE_LOG_LEVEL": "WARNING",
}
"""Leases as most fault tests use them."""


def until(
    condition: Callable[[], object],
    *,
    within_s: float = 20.0,
    what: str = "the condition",
    logs: Callable[[], str] = str,
) -> None:
    """Poll a condition to a deadline; a miss shows `logs` as they are then."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s\n{logs()}"
        time.sleep(0.05)


class Part:
    """One process of the system, in whatever incarnation."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self._argv = argv
        self._env = env
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **env: str) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, env=os.environ | self._env | env, stdout=log, stderr=log)

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM, within_s: float = 40.0) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        process = self._process
        assert process is not None
        with suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class System:
    """Postgres, Valkey and the processes; `parts` by name: api0, worker0, scheduler0, ..."""

    def __init__(
        self, folder: Path, postgres: PostgresServer, valkey: ValkeyServer, key: str, env: dict[str, str]
    ) -> None:
        self.folder = folder
        self.postgres = postgres
        self.valkey = valkey
        self.key = key
        self.env = env
        self.parts: dict[str, Part] = {}
        self.urls: list[str] = []

    def add(self, kind: str, *, launcher: list[str] | None = None, **env: str) -> Part:
        """Start one more process of a kind: api, workers, scheduler. `launcher` replaces `-m KIND`."""
        number = sum(name.startswith(kind.removesuffix("s")) for name in self.parts)
        name = f"{kind.removesuffix('s')}{number}"
        own = dict(self.env) | env
        if kind == "api":
            port = free_port()
            own["BATCHLINE_PORT"] = str(port)
            self.urls.append(f"http://127.0.0.1:{port}")
        argv = [sys.executable, "-P", *(launcher or ["-m", kind])]
        part = self.parts[name] = Part(name, argv, own, self.folder / f"{name}.log")
        part.start()
        return part

    def ready(self, within_s: float = 90.0) -> None:
        """Wait until every API answers readyz and every worker has a live row."""
        for url in self.urls:
            until(lambda url=url: answers(f"{url}/readyz"), within_s=within_s, what=f"{url} ready", logs=self.logs)
        store = open_store(self.postgres.url, connections=1)
        wanted = sum(name.startswith("worker") for name in self.parts)
        try:
            until(lambda: sum(w.live for w in store.workers.list()) >= wanted, within_s=within_s, what="workers live")
        finally:
            store.close()

    def logs(self) -> str:
        """The last lines of every process, for a failing test."""
        return "\n".join(f"--- {p.name}\n{p.log()[-1500:]}" for p in self.parts.values())


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:
            return response.status == 200
    except OSError:
        return False


@contextmanager
def running_system(
    folder: Path,
    models: dict[str, Path],
    *,
    apis: int = 1,
    workers: int = 1,
    durable: bool = True,
    env: dict[str, str] | None = None,
) -> Iterator[System]:
    """A whole system with these models imported; every process is ended at the end, by its pid."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        postgres = stack.enter_context(ephemeral_postgres(durable=durable))
        valkey = stack.enter_context(ephemeral_valkey())
        key = new_key()
        prepare(postgres.url, key)
        store = open_store(postgres.url, connections=1)
        for name, source in models.items():
            import_model(folder / "models", name, source, store.catalogue.register_model)
        store.close()
        (folder / "data").mkdir(exist_ok=True)
        settings = {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": valkey.url,
            "BATCHLINE_MODELS": str(folder / "models"),
            "BATCHLINE_BLOBS": f"file://{folder / 'blobs'}",
            "BATCHLINE_DATA_ROOTS": str(folder / "data"),
        }
        system = System(folder, postgres, valkey, key, SHORT | settings | (env or {}))
        try:
            for _ in range(apis):
                system.add("api")
            for _ in range(workers):
                system.add("workers")
            system.add("scheduler")
            system.ready()
            yield system
        finally:
            for part in system.parts.values():
                if part.is_alive():
                    part.kill()
