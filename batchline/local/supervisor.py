"""Keeps a set of processes running, and writes down how they are."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from batchline.errors import LocalError
from batchline.local import children
from batchline.local.rotation import rotate_all
from batchline.local.server import write_private
from batchline.retry import backoff_s

_log = logging.getLogger(__name__)

GOOD_RUN_S = 60.0
"""A process that was up this long has earned a fresh start of the backoff."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
START_TRIES = 3
"""A part that ends this often before the whole has ever been ready will not come up by itself."""
ROTATE_EVERY_S = 5.0
"""What a child may write beyond the limit of its log is what it writes in this time."""
_POLL_S = 0.05

WAITING, STARTING, RUNNING, RESTARTING, DONE, STOPPED = (
    "waiting",
    "starting",
    "running",
    "restarting",
    "done",
    "stopped",
)


@dataclass(frozen=True)
class Part:
    """One process to keep running.

    Args:
        name: unique; what `status` shows.
        spawn: starts the process; raises LocalError or OSError when it cannot.
        ready: whether it serves; asked until it says yes once after each start. Must answer within a second.
        settle_s: how long it must have been up before it counts as ready: finds what ends at its imports.
        port: where it listens; asked after each start.
        metrics_port: where it serves /metrics, if it does.
        once: it is meant to end; exit code 0 lets the next stage begin, any other is tried again.
        log: where its outputs go, for messages.
        stop_signal: what ends it in good order.
        grace_s: how long that may take before SIGKILL to its whole session.
        after_stop: called once everything is being stopped and this process has ended, to end what it has started;
            with a function that says whether to hurry.
    """

    name: str
    spawn: Callable[[], subprocess.Popen[bytes]]
    ready: Callable[[], bool] = lambda: True
    settle_s: float = 0.0
    port: Callable[[], int | None] = lambda: None
    metrics_port: int | None = None
    once: bool = False
    log: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 15.0
    after_stop: Callable[[Callable[[], bool]], object] | None = None


@dataclass(frozen=True)
class PartState:
    """What the state file says of one part; `started_at_s` is Unix time, exit codes below 0 are signals."""

    name: str
    state: str
    pid: int | None
    restarts: int
    started_at_s: float | None
    port: int | None
    last_exit: int | None
    last_error: str
    metrics_port: int | None = None


@dataclass(frozen=True)
class State:
    """The state file: the supervisor and its parts, in the order of their start."""

    pid: int
    ready: bool
    parts: tuple[PartState, ...]


def next_failures(failures: int, up_s: float) -> int:
    """Failures in a row after a process ended that had been up for up_s seconds."""
    return 1 if up_s >= GOOD_RUN_S else failures + 1


class _Slot:
    """A part and its present process."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.process: subprocess.Popen[bytes] | None = None
        self.state = WAITING
        self.restarts = -1
        self.failures = 0
        self.started = self.due = 0.0
        self.started_at_s: float | None = None
        self.port: int | None = None
        self.last_exit: int | None = None
        self.last_error = ""

    def start(self) -> None:
        self.restarts += 1
        self.started, self.started_at_s = time.monotonic(), time.time()
        try:
            self.process = self.part.spawn()
            self.port = self.part.port()
        except (LocalError, OSError) as e:
            self._failed(str(e))
        else:
            self.state = STARTING

    def check(self) -> None:
        """One look: has it ended, is it ready, is its next start due?"""
        if self.state == RESTARTING and time.monotonic() >= self.due:
            self.start()
        if self.process is None or self.state not in (STARTING, RUNNING):
            return
        code = self.process.poll()
        if code is not None:
            self.last_exit, self.process = code, None
            if self.part.once and code == 0:
                self.state = DONE
            else:
                self._failed(f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        elif self.state == STARTING and self._is_ready():
            self.state, self.last_error = RUNNING, ""
            _log.info("%s is up, pid %d", self.part.name, self.process.pid)

    def _is_ready(self) -> bool:
        settled = time.monotonic() - self.started >= self.part.settle_s
        return settled and not self.part.once and self.part.ready()

    def _failed(self, error: str) -> None:
        self.failures = next_failures(self.failures, time.monotonic() - self.started)
        wait_s = backoff_s(self.failures, base_s=FIRST_WAIT_S, cap_s=LONGEST_WAIT_S)
        self.due = time.monotonic() + wait_s
        self.state, self.last_error = RESTARTING, error
        _log.warning("%s %s; next start in %.1f s", self.part.name, error, wait_s)

    def signal_session(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def to_state(self) -> PartState:
        pid = self.process.pid if self.process else None
        return PartState(
            self.part.name, self.state, pid, max(self.restarts, 0), self.started_at_s, self.port, self.last_exit,
            self.last_error, self.part.metrics_port,
        )  # fmt: skip


class Supervisor:
    """Runs stages of parts: a stage starts when the one before is ready, and stops before it does.

    One thread; `run` must be called from the main thread, because it handles signals.
    """

    def __init__(
        self, stages: Sequence[Sequence[Part]], state_path: Path, logs: Path | None = None, *, adopts: bool = False
    ) -> None:
        """Describe the whole; nothing is started yet.

        Args:
            stages: in the order of their start.
            state_path: the state file, of mode 0600; gone while nothing runs.
            logs: the folder whose logs are rotated meanwhile.
            adopts: what our children leave behind becomes ours and ends with us; only for a process of our own, whose
                children are all parts.
        """
        self._stages = [[_Slot(part) for part in stage] for stage in stages]
        self._slots = [slot for stage in self._stages for slot in stage]
        self._state_path = state_path
        self._logs = logs
        self._adopts = adopts
        self._rotation_due = time.monotonic()
        self._written: State | None = None
        self._ready = False
        self._stops = 0

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Start all, keep all running until SIGTERM or SIGINT, stop all. A second signal stops without grace.

        Args:
            on_ready: called once, when every stage is ready for the first time.

        Raises:
            LocalError: a part could not be brought up at all; everything has been stopped.
        """
        if self._adopts:
            children.adopt_orphans()
        with self._wakeups() as wakeup:
            try:
                while not self._stops:
                    self._step(on_ready)
                    if self._adopts:
                        children.reap_orphans({slot.process.pid for slot in self._slots if slot.process})
                    waits = [slot.due - time.monotonic() for slot in self._slots if slot.state == RESTARTING]
                    busy = any(slot.state == STARTING for slot in self._slots)
                    waits.append(self._rotate())
                    wait_s = _POLL_S if busy else max(0.0, min(waits))
                    if select.select([wakeup], [], [], wait_s)[0]:
                        os.read(wakeup, 512)
            finally:
                self._stop_all()

    def _step(self, on_ready: Callable[[], None]) -> None:
        for stage in self._stages:
            for slot in stage:
                if slot.state == WAITING:
                    slot.start()
                slot.check()
            if not self._ready and any(slot.state not in (RUNNING, DONE) for slot in stage):
                break
        else:
            if not self._ready:
                on_ready()  # before the state file says so: who reads "ready" there may count on what this wrote
                self._ready = True
        self._write()
        if not self._ready:
            self._give_up_on_the_hopeless()

    def _rotate(self) -> float:
        """Rotate the logs when it is time; returns the seconds until the next time."""
        now = time.monotonic()
        if now >= self._rotation_due:
            if self._logs is not None:
                rotate_all(self._logs)
            self._rotation_due = now + ROTATE_EVERY_S
        return self._rotation_due - now

    def _give_up_on_the_hopeless(self) -> None:
        for slot in self._slots:
            if slot.failures >= START_TRIES:
                where = f" The end of {slot.part.log}:\n{tail(slot.part.log)}" if slot.part.log else ""
                raise LocalError(f"{slot.part.name} does not come up: {slot.last_error}.{where}")

    def _stop_all(self) -> None:
        _log.info("stopping")
        for stage in reversed(self._stages):
            for slot in stage:
                slot.signal_session(slot.part.stop_signal)
            begun = time.monotonic()
            for slot in sorted(stage, key=lambda slot: slot.part.after_stop is None):
                self._await_end(slot, begun + slot.part.grace_s)
                self._end_what_it_started(slot.part)
            self._write()
        self._state_path.unlink(missing_ok=True)

    def _end_what_it_started(self, part: Part) -> None:
        if part.after_stop is None:
            return
        try:
            part.after_stop(lambda: self._stops > 1)
        except (LocalError, OSError) as e:
            _log.error("what %s started is not ended: %s", part.name, e)

    def _await_end(self, slot: _Slot, deadline: float) -> None:
        while slot.process is not None and slot.process.poll() is None:
            if time.monotonic() > deadline or self._stops > 1:
                slot.signal_session(signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                slot.process.wait(_POLL_S)
        if slot.process is not None:
            slot.last_exit = slot.process.returncode
        slot.process, slot.state = None, STOPPED

    def _write(self) -> None:
        state = State(os.getpid(), self._ready, tuple(slot.to_state() for slot in self._slots))
        if state == self._written:
            return
        fresh = self._state_path.with_name(self._state_path.name + ".new")
        write_private(fresh, json.dumps(asdict(state), indent=1))
        fresh.replace(self._state_path)
        self._written = state

    @contextmanager
    def _wakeups(self) -> Generator[int]:
        """A descriptor that is readable when a child has ended or somebody asks us to stop."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stops += 1

        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        try:
            yield reader
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup_before)
            os.close(reader)
            os.close(writer)


def read_state(path: Path) -> State | None:
    """The state file's content; None when there is none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return State(raw["pid"], raw["ready"], tuple(PartState(**part) for part in raw["parts"]))


def tail(path: Path, size_bytes: int = 3000) -> str:
    """The end of a text file; empty when it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size_bytes))
        return file.read().decode("utf-8", "replace").strip()
    return ""
