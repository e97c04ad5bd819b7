"""The embedded system: all servers and processes of Batchline on this machine, in one folder.

key                 the admin API key            pg/ valkey/         data, password, port of the servers
flower              Flower's password            logs/               one file a process, bounded
run/state.json      how each part is             run/addresses.json  where to find it
run/supervisor.pid  locked as long as it runs
run/autoscaler.toml what the autoscaler may do       run/instances/      the workers that it has added
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from batchline.errors import LocalError
from batchline.local.instances import Instances
from batchline.local.plan import PROCESSES, Addresses, Options, Process, make_plan
from batchline.local.server import write_private
from batchline.local.supervisor import Supervisor, read_state, tail

DEFAULT_FOLDER = Path(".batchline")
_LEFT_OVER_GRACE_S = 5.0
"""For workers whose servers are gone already."""


@dataclass(frozen=True)
class PartStatus:
    """One process as it is now."""

    name: str
    pid: int | None
    state: str
    restarts: int
    uptime_s: float
    port: int | None
    last_exit: int | None
    last_error: str
    metrics_port: int | None = None


@dataclass(frozen=True)
class StackStatus:
    """The whole as it is now; `running`: a supervisor holds the folder, `ready`: every part has come up."""

    folder: Path
    running: bool
    ready: bool = False
    pid: int | None = None
    parts: tuple[PartStatus, ...] = ()
    addresses: Addresses | None = None


def up(
    folder: Path = DEFAULT_FOLDER,
    *,
    detach: bool,
    apis: int = 1,
    workers: int = 1,
    flower: bool = True,
    max_workers: int | None = None,
    timeout_s: float = 120.0,
    on_ready: Callable[[Addresses], None] = lambda _addresses: None,
    processes: tuple[Process, ...] = PROCESSES,
) -> Addresses:
    """Start the system; when it runs in this folder already, say where.

    Args:
        folder: where everything is kept; made when absent.
        detach: leave it running and return when it is ready; otherwise supervise it here, from the main thread, until
            SIGTERM or SIGINT.
        apis: API processes, on consecutive ports from BATCHLINE_PORT.
        workers: worker processes.
        flower: whether Flower is started.
        max_workers: what the autoscaler may bring the workers to; the number of cores, at least 2, when absent.
        timeout_s: how long a detached start may take.
        on_ready: called once with the addresses when every part is up, and when it had been up already.
        processes: the Python processes; another table is for tests.

    Raises:
        LocalError: a port is taken, or a part does not come up; nothing is left running.
    """
    folder = folder.resolve()
    for part in ("logs", "run"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    options = Options(apis, workers, flower, processes, max_workers)
    lock = _take_lock(folder)
    if lock is None:
        addresses = replace(_await_ready(folder, timeout_s), already_running=True)
        on_ready(addresses)
        return addresses
    # What a killed supervisor left must not be taken for news of this one.
    os.ftruncate(lock, 0)
    for stale in (folder / "run" / "state.json", failure_path(folder)):
        stale.unlink(missing_ok=True)
    if detach:
        # The lock goes over to the background process: nobody can come between.
        background = _start_background(folder, options, lock)
        os.close(lock)
        addresses = _await_ready(folder, timeout_s, background)
        on_ready(addresses)
        return addresses
    return supervise(folder, options, lock, on_ready)


def supervise(
    folder: Path, options: Options, lock: int, on_ready: Callable[[Addresses], None] = lambda _addresses: None
) -> Addresses:
    """Run the system in this process until a signal ends it; `lock` is the descriptor that holds the folder."""
    try:
        os.set_inheritable(lock, False)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        Instances(folder).end_all(grace_s=_LEFT_OVER_GRACE_S)
        plan = make_plan(folder, options, os.environ)
        reached: list[Addresses] = []

        def ready() -> None:
            reached.append(plan.addresses())
            write_private(_addresses_path(folder), msgspec.json.encode(reached[0], enc_hook=str).decode())
            on_ready(reached[0])

        try:
            Supervisor(plan.stages, folder / "run" / "state.json", folder / "logs", adopts=True).run(ready)
            if not reached:
                raise LocalError("Stopped before everything was up.")
            return reached[0]
        finally:
            plan.close()
    finally:
        os.close(lock)


def down(folder: Path = DEFAULT_FOLDER, *, timeout_s: float = 120.0) -> bool:
    """Stop the system that runs in the folder, and wait for its end; also what is left of one that was killed.

    Returns:
        False when nothing ran.

    Raises:
        LocalError: it did not end in time.
    """
    deadline = time.monotonic() + timeout_s
    signalled = False
    while not _is_unlocked(folder):
        if not signalled and (pid := _supervisor_pid(folder)) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            signalled = True
        if time.monotonic() > deadline:
            raise LocalError(f"The system in {folder} did not stop in {timeout_s:g} s; see its logs folder.")
        time.sleep(0.05)
    return _end_left_over(folder.resolve()) > 0 or signalled


def status(folder: Path = DEFAULT_FOLDER) -> StackStatus:
    """How the system in the folder is; never waits."""
    folder = folder.resolve()
    if _is_unlocked(folder):
        return StackStatus(folder, running=False)
    state = read_state(folder / "run" / "state.json")
    if state is None:
        return StackStatus(folder, running=True, pid=_supervisor_pid(folder))
    now_s = time.time()
    parts = tuple(
        PartStatus(
            part.name,
            part.pid,
            part.state,
            part.restarts,
            now_s - part.started_at_s if part.pid and part.started_at_s else 0.0,
            part.port,
            part.last_exit,
            part.last_error,
            part.metrics_port,
        )
        for part in state.parts
    ) + tuple(_instances(folder, now_s))
    return StackStatus(folder, True, state.ready, state.pid, parts, _addresses(folder) if state.ready else None)


def _instances(folder: Path, now_s: float) -> Generator[PartStatus]:
    """The workers that the autoscaler has added."""
    instances = Instances(folder)
    for instance in instances.list():
        state = "running" if instances.ending_since_s(instance) is None else "ending"
        yield PartStatus(instance.id, instance.pid, state, 0, now_s - instance.launched_at_s, None, None, "")


def _end_left_over(folder: Path) -> int:
    """End the workers that a killed system left where nothing ends with its parent; not those of one that runs."""
    if not Instances(folder).list() or (lock := _take_lock(folder)) is None:
        return 0
    try:
        return Instances(folder).end_all(grace_s=_LEFT_OVER_GRACE_S)
    finally:
        os.close(lock)


def _take_lock(folder: Path) -> int | None:
    """A descriptor that holds the folder, or None when another process holds it."""
    lock = os.open(folder / "run" / "supervisor.pid", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_unlocked(folder: Path) -> bool:
    if not (folder / "run" / "supervisor.pid").exists():
        return True
    # Asked with a shared lock, so that two who ask at once do not take one another for a supervisor.
    with (folder / "run" / "supervisor.pid").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _supervisor_pid(folder: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int((folder / "run" / "supervisor.pid").read_text(encoding="ascii"))
    return None


def _start_background(folder: Path, options: Options, lock: int) -> subprocess.Popen[bytes]:
    log = os.open(folder / "logs" / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    command = [
        sys.executable, "-P", "-m", "batchline.local", str(folder), str(lock), msgspec.json.encode(options).decode(),
    ]  # fmt: skip
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock], start_new_session=True
        )
    finally:
        os.close(log)


def _await_ready(folder: Path, timeout_s: float, background: subprocess.Popen[bytes] | None = None) -> Addresses:
    """Wait for a system that another process starts.

    Raises:
        LocalError: that process has given up, or takes too long; one that we started is stopped.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        now = status(folder)
        if now.addresses is not None:
            return now.addresses
        if background.poll() is not None if background else not now.running:
            raise LocalError(tail(failure_path(folder)) or f"The system in {folder} stopped; see {folder / 'logs'}.")
        if time.monotonic() > deadline:
            late = ", ".join(part.name for part in now.parts if part.state not in ("running", "done"))
            if background:
                down(folder)
            raise LocalError(f"Not ready after {timeout_s:g} s: {late}. See {folder / 'logs'}.")
        time.sleep(0.05)


def failure_path(folder: Path) -> Path:
    """Where a background process that gives up says why."""
    return folder / "run" / "failure.txt"


def _addresses_path(folder: Path) -> Path:
    return folder / "run" / "addresses.json"


def _decode_path(_kind: type, text: str) -> Path:
    return Path(text)


def _addresses(folder: Path) -> Addresses | None:
    with suppress(FileNotFoundError):
        return msgspec.json.decode(_addresses_path(folder).read_bytes(), type=Addresses, dec_hook=_decode_path)
    return None
