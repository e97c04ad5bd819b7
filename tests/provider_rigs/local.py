"""The provider `local` with processes that only sleep."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoscaler.providers.local import LocalProvider, Options
from batchline.local.instances import Instances

SLEEPER = (sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)")


class LocalRig:
    """A stack's folder without a stack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instances = Instances(folder)
        self._processes = 0

    def provider(self, pool: str = "cpu", stack: str = "ours") -> LocalProvider:
        return LocalProvider(pool, Options(str(self.folder), self._processes), stack=stack, argv=SLEEPER)

    def vanish(self, instance_id: str) -> None:
        os.kill(next(i.pid for i in self.instances.list() if i.id == instance_id), signal.SIGKILL)

    def exhaust(self) -> None:
        self._processes = max(1, len(self.instances.list()))


@contextmanager
def rig(folder: Path) -> Iterator[LocalRig]:
    made = LocalRig(folder)
    try:
        yield made
    finally:
        made.instances.end_all(grace_s=0.0)
