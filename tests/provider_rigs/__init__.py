"""What the conformance suite of providers needs of each: a place to launch in, and hands to disturb it.

A provider joins the suite with a module here that offers `rig(folder)`, a context manager, and its name in RIGS.
"""

from __future__ import annotations

import importlib
import uuid
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from autoscaler.providers.contract import Provider
from batchline.store.instance_contract import Launch

RIGS = ("asg", "ec2_spot", "kubernetes", "local")


class Rig(Protocol):
    """One place. Everything that was launched in it ends with it."""

    def provider(self, pool: str = "cpu", stack: str = "ours") -> Provider:
        """A fresh provider over the same place, as a scaler that has just started makes it."""
        ...

    def vanish(self, instance_id: str) -> None:
        """The instance ends without our doing."""
        ...

    def exhaust(self) -> None:
        """From now on the place has no capacity for anything new."""
        ...


def open_rig(name: str, folder: Path) -> AbstractContextManager[Rig]:
    return importlib.import_module(f"provider_rigs.{name}").rig(folder)


def a_launch(count: int = 1, *, pool: str = "cpu", provider: str = "", total: int | None = None) -> Launch:
    """An intent as the ledger has written it."""
    return Launch(uuid.uuid4(), pool, provider, count, count if total is None else total, datetime.now(UTC))
