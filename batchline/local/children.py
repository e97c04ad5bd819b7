"""Child processes that end with this process, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

SELF = "self"
"""Run as whoever runs us."""
NAMESPACE = "namespace"
"""Run as uid 1000 of a new user namespace: what root uses for programs that refuse root."""

_PR_SET_CHILD_SUBREAPER = 36
_TRAMPOLINE = str(Path(__file__).with_name("trampoline.py"))


@cache
def _forker(_pid: int) -> ThreadPoolExecutor:
    # The kernel sends the death signal when the *thread* that forked ends, not the process. One thread that lives as
    # long as the process forks all children, so that `spawn` may be called from any thread, however short-lived.
    return ThreadPoolExecutor(1, "batchline-fork")


def through_trampoline(argv: Sequence[str], *, death_signal: signal.Signals, identity: str = SELF) -> list[str]:
    """The argument list that runs argv under the identity and ties it to this process."""
    return [sys.executable, "-I", "-S", _TRAMPOLINE, str(int(death_signal)), str(os.getpid()), identity, *argv]


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    death_signal: signal.Signals = signal.SIGKILL,
    identity: str = SELF,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with both outputs appended to a log.

    Args:
        argv: absolute path of the program, then its arguments.
        log: file; made with mode 0600 when absent.
        env: the whole environment.
        death_signal: what the kernel sends the program when this process ends (Linux).
        identity: SELF, NAMESPACE or `UID:GID`.
        cwd: working directory; ours when absent.
    """
    command = through_trampoline(argv, death_signal=death_signal, identity=identity)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return (
            _forker(os.getpid())
            .submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
            .result()
        )
    finally:
        os.close(descriptor)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parents end, in place of the system's first process (Linux).

    Whoever calls this must call `reap_orphans` from time to time.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(own: Collection[int]) -> None:
    """Take leave of adopted children that have ended; `own` are our own children's ids: others wait for these."""
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)


def run(
    argv: Sequence[str], *, identity: str = SELF, stdin: str = "", timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with its outputs as one text; never raises for its exit code."""
    command = through_trampoline(argv, death_signal=signal.SIGKILL, identity=identity)
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    # `run` blocks its caller until the program has ended, so the caller's thread outlives the program by itself.
    return subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=timeout_s,
        check=False,
    )


def wait_gone(pid: int, timeout_s: float) -> bool:
    """Whether a process that need not be our child has ended (or is a zombie) within the time."""
    deadline = time.monotonic() + timeout_s
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return sys.platform != "linux"
    return stat.rpartition(")")[2].split()[0] not in "ZX"
