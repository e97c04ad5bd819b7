"""The peer: FastAPI, predict.delay(), a Celery prefork worker, a Redis result backend; in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from batchline.local.servers import free_port
from batchline.testing import ephemeral_valkey
from benchmarks.digits import Digits
from benchmarks.processes import ROOT, BenchmarkError, Process, answers, running, until

SOURCE = Path(__file__).resolve().parent / "peers" / "fastapi_celery"
HOMES = ROOT / ".batchline" / "peers"


@dataclass(frozen=True)
class Peer:
    """A running peer: one port per API process, and the processes by name."""

    ports: list[int]
    processes: list[Process]


def environment(source: Path) -> Path:
    """Make a peer's environment with uv if it is absent or its requirements changed; give its folder of programs."""
    home = HOMES / source.name
    wanted = (source / "requirements.txt").read_text()
    stamp = home / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = [sys.executable, "-m", "uv"]
        for command in (
            [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
            [*uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python"),
             "-r", str(source / "requirements.txt")],
        ):  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchmarkError(f"the peer {source.name} cannot be installed: {done.stderr.strip()}")
        stamp.write_text(wanted)
    return home / "bin"


@contextlib.contextmanager
def peer(digits: Digits, folder: Path, *, apis: int = 1, children: int | None = None) -> Generator[Peer]:
    """Start the peer and wait until it answers.

    Args:
        digits: the model it serves.
        folder: for its logs.
        apis: API processes, each on a port of its own.
        children: prefork children of the worker; one a core when absent.
    """
    programs = environment(SOURCE)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(ephemeral_valkey({"appendonly": "no"}))  # the fastest broker the peer can have
        env = {"PEER_REDIS_URL": broker.url, "PEER_MODEL": str(digits.model), "OMP_NUM_THREADS": "1"}
        worker_command = [
            str(programs / "celery"), "-A", "tasks", "worker", "--pool", "prefork", "--loglevel", "INFO",
            "--concurrency", str(children or os.cpu_count() or 1),
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        ]  # fmt: skip
        worker = stack.enter_context(running("worker", worker_command, folder, env=env, cwd=SOURCE))
        until(lambda: b" ready." in (folder / "worker.log").read_bytes(), worker)
        ports = [free_port() for _ in range(apis)]
        servers = [
            stack.enter_context(running(f"api{n}", _api_command(programs, port), folder, env=env, cwd=SOURCE))
            for n, port in enumerate(ports)
        ]
        for port, server in zip(ports, servers, strict=True):
            until(lambda port=port: answers(f"http://127.0.0.1:{port}/livez"), server)
        yield Peer(ports, [*servers, worker, Process("valkey", broker.pid or 0)])


def _api_command(programs: Path, port: int) -> list[str]:
    return [
        str(programs / "uvicorn"), "api:app", "--host", "127.0.0.1", "--port", str(port),
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip
