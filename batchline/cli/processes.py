"""api, worker, scheduler: become one of the processes, as containers run them."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def become(module: str, *arguments: str) -> NoReturn:
    """End as this command and go on as that module."""
    # -P: a folder `api/` where the command is typed must not be taken for ours.
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], os.environ)  # noqa: S606 - no shell is the point


def api() -> None:
    """Run an API process here.

    BATCHLINE_HOST and BATCHLINE_PORT say where it listens.
    """
    become("api")


def worker() -> None:
    """Run a worker here.

    BATCHLINE_POOL, BATCHLINE_DEVICE and BATCHLINE_MODELS say what it serves, on what, from where.
    """
    become("workers")


def scheduler() -> None:
    """Run a scheduler here; several may run, one leads."""
    become("scheduler")
