"""The worker as a process under a test: started, killed and started again, with a short lease."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRODUCT = ("-m", "workers")
DYING = (str(ROOT / "tests" / "dying_worker.py"),)


class Worker:
    """One process at a time, started again when the test says so."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self._env = env
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: tuple[str, ...] = PRODUCT, **env: str) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=self._env | env, stdout=log, stderr=log
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self, number: signal.Signals) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(20)

    def log(self) -> str:
        return self._log.read_text()


@contextlib.contextmanager
def a_worker(database_url: str, redis_url: str, repository: Path, log: Path, **more: str) -> Iterator[Worker]:
    """Not started yet; ended at the end."""
    env = os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "BATCHLINE_MODELS": str(repository),
        "BATCHLINE_BLOBS": f"file://{log.parent / 'blobs'}",
        "BATCHLINE_LEASE_S": "3",
        "BATCHLINE_HEARTBEAT_S": "1",
        "PYTHONPATH": str(ROOT),
    }
    worker = Worker(env | more, log)
    try:
        yield worker
    finally:
        if worker.alive:
            with contextlib.suppress(ProcessLookupError):
                worker.end(signal.SIGKILL)


def until(true: Callable[[], Any], worker: Worker, seconds: float = 40.0) -> None:
    """Wait for something to become true while the worker works."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, worker.log()[-3000:]
        time.sleep(0.05)
