"""Workers that the autoscaler starts on this machine: each started once, found again by anybody, ended by whoever may.

run/instances/ID.json    who it is: tags, process id and start time; written by the process itself before it becomes a
                         worker, kept for a day after its end so that a repeated launch starts nothing
run/instances/ID.ending  since when it is to end
run/instances/HEX.done   the launch has brought all that it will
logs/ID.log              what it says; rotated with the others
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchline.errors import LocalError

_DETACH = str(Path(__file__).with_name("detach.py"))
_START_S = 15.0
"""From asking to the record; an interpreter without imports takes some hundredths of it."""
_KEPT_S = 86400.0
_POLL_S = 0.05
_KILLED_S = 10.0
"""What a killed process may need to be gone."""


class NoRoomError(LocalError):
    """This machine, or the limit that was set, has no room for another process."""


@dataclass(frozen=True)
class LocalInstance:
    """One process, as its record says.

    Attributes:
        id: local-LAUNCH-N; the worker's environment has it as BATCHLINE_INSTANCE.
        stack: whose, as the configuration calls it.
        pool: whose workers.
        launch: id of the launch in hexadecimal.
        boot: id of the machine's run; process ids mean nothing in another.
        pid: process, and leader of its session.
        started_ticks: of the process, in clock ticks since the machine's start. With pid and boot it names a process.
        launched_at_s: Unix time.
    """

    id: str
    stack: str
    pool: str
    launch: str
    boot: str
    pid: int
    started_ticks: int
    launched_at_s: float


class Instances:
    """All of one stack's folder; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: of the stack; made when something is launched.
        """
        self._stack_folder = folder.resolve()
        self._folder = self._stack_folder / "run" / "instances"

    def launch(
        self,
        launch_id: uuid.UUID,
        count: int,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        stack: str,
        pool: str,
        room: int | None = None,
    ) -> list[LocalInstance]:
        """Start up to `count` processes; repeated with the same id, name the same ones and start none.

        A launch that was cut short is completed when it is repeated.

        Args:
            launch_id: what makes it the same launch.
            count: processes wanted.
            argv: absolute path of the program, then its arguments.
            env: the whole environment, but for BATCHLINE_INSTANCE.
            stack: tag.
            pool: tag.
            room: how many processes of this stack and pool there may be.

        Raises:
            NoRoomError: there is none for a first one.
            LocalError: a first one did not start; it is not known whether it will.
        """
        for needed in (self._folder, self._stack_folder / "logs"):
            needed.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._forget()
            brought = self._of(launch_id)
            if (self._folder / f"{launch_id.hex}.done").exists():
                return brought
            known = {instance.id for instance in brought}
            for number in range(1, count + 1):
                instance_id = f"local-{launch_id.hex}-{number}"
                if instance_id in known:
                    continue
                tags = {"id": instance_id, "stack": stack, "pool": pool, "launch": launch_id.hex, "boot": _boot()}
                try:
                    self._check_room(stack, pool, room)
                    brought.append(self._start(tags, argv, env))
                except LocalError:
                    if not brought:
                        raise
                    break
            (self._folder / f"{launch_id.hex}.done").touch()
            return brought

    def list(self, stack: str | None = None, pool: str | None = None) -> list[LocalInstance]:
        """Those that run now, oldest first; only of one stack and pool when they are named."""
        found = [i for i in self._records() if stack in (None, i.stack) and pool in (None, i.pool) and is_running(i)]
        return sorted(found, key=lambda instance: (instance.launched_at_s, instance.id))

    def ending_since_s(self, instance: LocalInstance) -> float | None:
        """Unix time at which it was first told to end; None if it was not."""
        with suppress(FileNotFoundError):
            return (self._folder / f"{instance.id}.ending").stat().st_mtime
        return None

    def end(self, instance_ids: Sequence[str], *, grace_s: float) -> None:
        """Ask processes to end, without waiting; who was first asked longer than `grace_s` ago is killed."""
        for instance in self._named(instance_ids):
            if not is_running(instance):
                continue
            since = self.ending_since_s(instance)
            if since is None:
                (self._folder / f"{instance.id}.ending").touch()
            late = since is not None and time.time() - since > grace_s
            _send(instance, signal.SIGKILL if late else signal.SIGTERM)

    def end_all(self, *, grace_s: float, at_once: Callable[[], bool] = lambda: False) -> int:
        """End every process of the folder and wait for it.

        Args:
            grace_s: from being asked to being killed.
            at_once: asked all the time; True ends the grace.

        Returns:
            How many there were.

        Raises:
            LocalError: one could not even be killed.
        """
        asked: set[str] = set()
        begun = time.monotonic()
        while left := self.list():
            passed_s = time.monotonic() - begun
            if passed_s > grace_s + _KILLED_S:
                raise LocalError("Cannot end " + ", ".join(f"{i.id} (process {i.pid})" for i in left) + ".")
            for instance in left:
                if passed_s > grace_s or at_once():
                    _send(instance, signal.SIGKILL)
                elif instance.id not in asked:
                    self.end([instance.id], grace_s=grace_s)
                asked.add(instance.id)
            time.sleep(_POLL_S)
        return len(asked)

    def _start(self, tags: Mapping[str, str], argv: Sequence[str], env: Mapping[str, str]) -> LocalInstance:
        record = self._folder / f"{tags['id']}.json"
        log = os.open(self._log(tags["id"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        reader, writer = os.pipe()
        command = [
            sys.executable, "-I", "-S", _DETACH, str(record), str(self._owner()), str(writer),
            msgspec.json.encode(tags).decode(), *argv,
        ]  # fmt: skip
        try:
            between = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**env, "BATCHLINE_INSTANCE": tags["id"]},
                pass_fds=[writer],
            )
        except OSError as e:
            os.close(reader)
            if e.errno in (errno.EAGAIN, errno.ENOMEM):
                raise NoRoomError(f"This machine cannot start another process: {e.strerror}.") from e
            raise LocalError(f"{sys.executable} cannot be run: {e.strerror}.") from e
        finally:
            os.close(writer)
            os.close(log)
        between.wait()
        try:
            select.select([reader], [], [], _START_S)
        finally:
            os.close(reader)
        for instance in self._named([tags["id"]]):
            return instance
        raise LocalError(f"{tags['id']} did not start within {_START_S:g} s; see {self._log(tags['id'])}.")

    def _owner(self) -> int:
        """The supervisor that adopts what we start; 0 when none stands above us."""
        with suppress(OSError, ValueError):
            pid = int((self._stack_folder / "run" / "supervisor.pid").read_text(encoding="ascii"))
            return pid if pid == os.getppid() else 0
        return 0

    def _check_room(self, stack: str, pool: str, room: int | None) -> None:
        if room is not None and len(self.list(stack, pool)) >= room:
            raise NoRoomError(f"{room} processes of pool {pool} are all that this machine is allowed.")

    def _records(self) -> list[LocalInstance]:
        return [found for path in self._folder.glob("local-*.json") if (found := _read(path))]

    def _of(self, launch_id: uuid.UUID) -> list[LocalInstance]:
        found = [i for path in self._folder.glob(f"local-{launch_id.hex}-*.json") if (i := _read(path))]
        return sorted(found, key=lambda instance: int(instance.id.rpartition("-")[2]))

    def _named(self, instance_ids: Sequence[str]) -> list[LocalInstance]:
        wanted = set(instance_ids)
        return [instance for instance in self._records() if instance.id in wanted]

    def _forget(self) -> None:
        """Remove what is left of processes that ended, and of launches that were made, a day ago."""
        old_s = time.time() - _KEPT_S
        for instance in self._records():
            if not is_running(instance) and max(instance.launched_at_s, self._last_word_s(instance.id)) < old_s:
                log = self._log(instance.id)
                for path in (*log.parent.glob(f"{log.name}*"), *self._folder.glob(f"{instance.id}.*")):
                    path.unlink(missing_ok=True)
        for done in self._folder.glob("*.done"):
            if not any(self._folder.glob(f"local-{done.stem}-*.json")):
                done.unlink(missing_ok=True)

    def _last_word_s(self, instance_id: str) -> float:
        with suppress(FileNotFoundError):
            return self._log(instance_id).stat().st_mtime
        return 0.0

    def _log(self, instance_id: str) -> Path:
        return self._stack_folder / "logs" / f"{instance_id}.log"

    @contextmanager
    def _locked(self) -> Generator[None]:
        with (self._folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def is_running(instance: LocalInstance) -> bool:
    """Whether the very process that the record names is there, and no zombie."""
    if instance.boot != _boot():
        return False
    try:
        stat = Path(f"/proc/{instance.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    fields = stat.rpartition(")")[2].split()
    return int(fields[19]) == instance.started_ticks and fields[0] not in "ZX"


def _send(instance: LocalInstance, number: signal.Signals) -> None:
    """Signal the process if it is still the one of the record: a descriptor stays with it when its id is given away."""
    try:
        descriptor = os.pidfd_open(instance.pid)
    except ProcessLookupError:
        return
    try:
        if is_running(instance):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def _read(path: Path) -> LocalInstance | None:
    """None when it is gone, or no record of the instance that the file is named after."""
    with suppress(FileNotFoundError, msgspec.DecodeError):
        found = msgspec.json.decode(path.read_bytes(), type=LocalInstance)
        return found if found.id == path.stem else None
    return None


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
