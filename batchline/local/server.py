"""What the embedded servers have in common: a folder, a password, a port, a process."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal

from batchline.errors import LocalError
from batchline.local import binaries, children

StopMode = Literal["fast", "immediate"]

HOST = "127.0.0.1"


class PortInUseError(LocalError):
    """Another program listens on the port that this server was told to take."""


class StillInUseError(LocalError):
    """Processes that a killed server left behind have not ended yet; they do so by themselves."""


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port that was free a moment ago; whoever uses it must be ready to ask again."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on; also one that others could read before."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)


def secret(path: Path, prefix: str = "") -> str:
    """The secret kept in a file of mode 0600, made at the first call."""
    with suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    write_private(fresh, prefix + secrets.token_urlsafe(24) + "\n")
    with suppress(FileExistsError):  # another process was faster: its secret counts
        os.link(fresh, path)
    fresh.unlink()
    return path.read_text(encoding="ascii").strip()


class Server(ABC):
    """One embedded server over one folder; data, password and port outlive it there.

    One process at a time may hold the folder. The server ends with the process that started it, also when that is
    killed with SIGKILL, and the next start takes over what it left.
    """

    name: ClassVar[str]
    port_variable: ClassVar[str]
    fast_signal: ClassVar[signal.Signals]
    immediate_signal: ClassVar[signal.Signals]

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        log: Path | None = None,
    ) -> None:
        """Describe a server; nothing is made or started yet.

        Args:
            folder: where data, password and port are kept.
            port: where it must listen; a free port, kept for the next start, when absent.
            settings: the server's own settings, over our defaults.
            log: where it writes; `server.log` in the folder when absent.
        """
        self.folder = folder.resolve()
        self.settings = dict(settings or {})
        self.log = log or self.folder / "server.log"
        self._wanted_port = port
        self._port: int | None = None
        self._was_ready = False
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Address with user and password; known once `prepare` or `start` has been called."""

    @abstractmethod
    def _program(self) -> binaries.Program: ...

    @abstractmethod
    def _make(self) -> None:
        """Make what the first start needs; must survive being interrupted and called again."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _pid_file(self) -> Path: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    def is_ready(self) -> bool:
        """Whether the process that we started answers."""
        ready = self._answers()
        self._was_ready |= ready
        return ready

    @property
    def port(self) -> int:
        if self._port is None:
            raise LocalError(f"{self.name} has no port before it is started.")
        return self._port

    @property
    def password(self) -> str:
        return secret(self.folder / "password")

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout_s: float = 60.0) -> None:
        """Start and wait until it answers; does nothing when it runs already.

        Raises:
            PortInUseError: the port that was asked for is taken.
            LocalError: it ended or did not answer in time; the message holds the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self.pid is None:
                self.spawn()
            try:
                self.wait_ready(timeout_s)
            except LocalError as e:
                self.kill()
                if not isinstance(e, self._may_pass) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    @property
    def _may_pass(self) -> tuple[type[LocalError], ...]:
        # A port of our own choice may be lost between choosing and listening: the next try chooses another.
        return (StillInUseError,) if self._wanted_port is not None else (StillInUseError, PortInUseError)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Prepare the folder and start the process, without waiting for it.

        Raises:
            PortInUseError: the port that must be used is taken.
            LocalError: another process holds the folder, or the data cannot be made.
        """
        self.prepare()
        program = self._program()
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._process = children.spawn(
            self._command(),
            log=self.log,
            env={"PATH": os.defpath, "LC_ALL": "C", "HOME": str(self.folder)},
            death_signal=self.fast_signal,
            identity=program.identity,
            cwd=Path("/"),
        )
        return self._process

    def prepare(self) -> None:
        """Take the folder, end what an earlier owner left running, make the data and choose the port."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._end_leftover()
            self._make()
            self._choose_port()
        except BaseException:
            self._release_lock()
            raise

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until it answers.

        Raises:
            PortInUseError: it ended because its port is taken.
            LocalError: it ended otherwise, or did not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if self.pid is None:
                text = self._log_tail()
                if "address already in use" in text.lower():
                    raise PortInUseError(self._port_in_use())
                if "is still in use" in text:
                    raise StillInUseError(f"{self.folder} is still in use by what a crashed {self.name} left running.")
                raise LocalError(f"{self.name} ended at its start. The end of {self.log}:\n{text}")
            if time.monotonic() > deadline:
                raise LocalError(
                    f"{self.name} did not answer in {timeout_s:g} s. The end of {self.log}:\n{self._log_tail()}"
                )
            time.sleep(0.02)

    def stop(self, mode: StopMode = "fast", timeout_s: float = 30.0) -> None:
        """End the server and give the folder back; harsher signals follow when it does not end in time.

        Args:
            mode: `fast` ends sessions and writes everything down; `immediate` leaves that to the next start.
            timeout_s: how long each signal is given.
        """
        gentle = [self.fast_signal, self.immediate_signal]
        for number in (*(gentle if mode == "fast" else gentle[1:]), signal.SIGKILL):
            if self._process is None or self._process.poll() is not None:
                break
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        self._process = None
        self._release_lock()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._release_lock()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise LocalError(f"{self.folder} is in use: another process runs {self.name} there.") from None
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _end_leftover(self) -> None:
        """End a server that an owner killed with SIGKILL left here, and forget a pid file that names a stranger."""
        path = self._pid_file()
        try:
            pid = int(path.read_text(encoding="utf-8").split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        if not children.is_alive(pid):
            return
        if self._works_here(pid):
            for number, timeout_s in ((self.fast_signal, 20.0), (self.immediate_signal, 5.0), (signal.SIGKILL, 5.0)):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                if children.wait_gone(pid, timeout_s):
                    break
        # A pid file that a crash left may name a process of today's; Postgres would refuse to start beside it.
        path.unlink(missing_ok=True)

    def _works_here(self, pid: int) -> bool:
        # Both servers make their data folder their working directory, which no stranger does.
        try:
            return Path(os.readlink(f"/proc/{pid}/cwd")) == self._pid_file().parent  # noqa: PTH115 - a name, not a file
        except OSError:
            return False

    def _choose_port(self) -> None:
        kept = self.folder / "port"
        if self._port is None:
            self._port = self._wanted_port
        if self._port is None:
            with suppress(FileNotFoundError, ValueError):
                self._port = int(kept.read_text(encoding="ascii"))
        if self._port is None or not is_free(self._port):
            if self._wanted_port is not None or self._was_ready:  # others have been told this address
                raise PortInUseError(self._port_in_use())
            self._port = free_port()
        kept.write_text(f"{self._port}\n", encoding="ascii")

    def _port_in_use(self) -> str:
        return f"Port {self._port} is in use by another program; set {self.port_variable} to another for {self.name}."

    def _log_tail(self) -> str:
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(self._log_start, self.log.stat().st_size - 4000))
            return file.read().decode("utf-8", "replace").strip()
        return ""
