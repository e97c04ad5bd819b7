"""Processes of a benchmark: each in its own group, with its own port and log, ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
STOP_S = 15.0


class BenchmarkError(RuntimeError):
    """A benchmark cannot be run or its answers are wrong; the message says which and why."""


@dataclass(frozen=True)
class Process:
    """One started command and all its children."""

    name: str
    pid: int
    popen: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    def cpu_s(self) -> float:
        """CPU seconds used so far by the process and its living descendants."""
        return sum(_of_tree(self.pid, lambda p: sum(p.cpu_times()[:2])))

    def rss_bytes(self) -> int:
        """Resident bytes of the process and its descendants, shared pages counted once a process."""
        return int(sum(_of_tree(self.pid, lambda p: float(p.memory_info().rss))))


def _of_tree(pid: int, read: Callable[[psutil.Process], float]) -> Iterator[float]:
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield read(process)


@contextlib.contextmanager
def running(
    name: str, command: list[str], folder: Path, *, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> Generator[Process]:
    """Run a command in its own process group; at the end TERM to it, then KILL to what is left of the group."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("ab") as out:
        popen = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield Process(name, popen.pid, popen, log)
    finally:
        popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def until(ready: Callable[[], bool], process: Process, *, within_s: float = START_S) -> None:
    """Wait until ready() holds.

    Raises:
        BenchmarkError: the process died or within_s seconds passed; the end of its log is in the message.
    """
    deadline = time.monotonic() + within_s
    while not ready():
        if (process.popen and process.popen.poll() is not None) or time.monotonic() > deadline:
            tail = process.log.read_text(errors="replace")[-2000:] if process.log else ""
            raise BenchmarkError(f"{process.name} did not become ready; the end of {process.log}:\n{tail}")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Does GET url answer 2xx now?"""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return 200 <= response.status < 300
    except (OSError, urllib.error.URLError):
        return False
