"""Workers as processes of this machine: what `batchline up` scales with."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from autoscaler.providers.contract import Found, ProviderError, Trouble
from batchline.errors import LocalError, SettingsError
from batchline.local.instances import Instances, LocalInstance, NoRoomError
from batchline.store.instance_contract import Launch, NewInstance

_WORKER = ("-P", "-m", "workers")
_OWN = {"BATCHLINE_METRICS_PORT"}
"""What workers do not get of the autoscaler's environment: a port can be listened on once."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[pools.NAME.local]`.

    Attributes:
        folder: of the stack: records below `run/instances`, logs below `logs`. `up` sets it for its own.
        processes: how many there may be at a time; 0 means as many as the pool's max_workers lets be launched.
        grace_s: from being asked to end to being killed.
        environment: of the workers, over the autoscaler's own.
    """

    folder: str = ""
    processes: int = 0
    grace_s: float = 30.0
    environment: dict[str, str] = {}


class LocalProvider:
    """One pool's worker processes; they outlive the autoscaler, and are known by their records (batchline.local)."""

    name = "local"
    stale_s = 0.0

    def __init__(
        self, pool: str, options: Options, *, stack: str, argv: Sequence[str] = (sys.executable, *_WORKER)
    ) -> None:
        """Args:
        pool: whose workers.
        options: as configured.
        stack: tag; what tells two stacks in one folder apart.
        argv: the program; another one is for tests.
        """
        self._pool = pool
        self._options = options
        self._stack = stack
        self._argv = argv
        folder = options.folder or os.environ.get("BATCHLINE_FOLDER", "") or ".batchline"
        self._folder = Path(folder).resolve()
        self._instances = Instances(self._folder)

    def check(self) -> None:
        """Raises SettingsError: not Linux, a number that cannot be, a folder that cannot be written."""
        if sys.platform != "linux":
            raise SettingsError("the provider local knows its processes by /proc: it needs Linux")
        if self._options.processes < 0 or self._options.grace_s < 0:
            raise SettingsError("processes and grace_s of the provider local must not be below 0")
        nearest = next(path for path in (self._folder, *self._folder.parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise SettingsError(f"the provider local cannot write to {nearest}; name another folder")

    def launch(self, launch: Launch) -> Sequence[NewInstance]:
        """Start processes; see the contract."""
        env = {key: value for key, value in os.environ.items() if key not in _OWN}
        env |= {"BATCHLINE_POOL": self._pool, **self._options.environment}
        room = self._options.processes or None
        try:
            brought = self._instances.launch(
                launch.id, launch.count, self._argv, env, stack=self._stack, pool=self._pool, room=room
            )
        except NoRoomError as e:
            raise ProviderError(Trouble.CAPACITY, e.detail) from e
        except (LocalError, OSError) as e:
            raise ProviderError(Trouble.UNKNOWN, f"starting a worker here: {e}") from e
        return [_told(instance) for instance in brought]

    def list(self) -> Sequence[Found]:
        """Those that run."""
        now_s = time.time()
        return [
            Found(
                _told(instance),
                instance.pool,
                uuid.UUID(instance.launch),
                ending=self._instances.ending_since_s(instance) is not None,
                age_s=max(0.0, now_s - instance.launched_at_s),
            )
            for instance in self._instances.list(self._stack, self._pool)
        ]

    def end(self, instance_ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL when it is asked again after grace_s; does not wait."""
        self._instances.end(instance_ids, grace_s=self._options.grace_s)


def _told(instance: LocalInstance) -> NewInstance:
    return NewInstance(instance.id, kind="process")
