"""The models that may be asked for, refreshed each second and at a miss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from api.asking import Asking
from batchline.clock import Clock
from batchline.errors import Fault, NotFoundError
from batchline.model import ModelRecord

ALIASES = ("production", "latest")
"""Both mean the highest version."""
_MISS_S = 0.2
"""Misses ask Postgres at most this often."""


class Models:
    """Versions by name. `refresh` and `resolve_now` are for threads; all else is for the event loop."""

    def __init__(self, fetch: Callable[[], list[ModelRecord]], ask: Asking, clock: Clock) -> None:
        self._fetch = fetch
        self._ask = ask
        self._clock = clock
        self._versions: dict[str, dict[int, ModelRecord]] = {}
        self._refreshed_at = float("-inf")

    def refresh(self) -> None:
        """Read the catalogue anew (blocking)."""
        versions: dict[str, dict[int, ModelRecord]] = {}
        for record in self._fetch():
            versions.setdefault(record.spec.name, {})[int(record.spec.version)] = record
        self._versions = versions
        self._refreshed_at = self._clock.monotonic()

    def names(self) -> list[str]:
        """The names of all models, sorted."""
        return sorted(self._versions)

    def versions(self, name: str) -> list[ModelRecord]:
        """All versions of a model, the lowest first; empty for an unknown one."""
        found = self._versions.get(name, {})
        return [found[number] for number in sorted(found)]

    async def resolve(self, name: str, version: str | int | None) -> ModelRecord:
        """The record that a request means.

        Args:
            name: of the model.
            version: a number, an alias, or None for the highest.

        Raises:
            NotFoundError: with the pointer /model or /version.
        """
        record = self._find(name, version)
        if record is None and self._clock.monotonic() - self._refreshed_at > _MISS_S:
            await self._ask(self.refresh)
            record = self._find(name, version)
        return record or self._refuse(name)

    def resolve_now(self, name: str, version: str | int | None) -> ModelRecord:
        """The same for threads, where it may block."""
        record = self._find(name, version)
        if record is None and self._clock.monotonic() - self._refreshed_at > _MISS_S:
            self.refresh()
            record = self._find(name, version)
        return record or self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        if name not in self._versions:
            raise NotFoundError("There is no such model.", faults=(Fault("/model", "is no model here"),))
        have = ", ".join(str(number) for number in sorted(self._versions[name]))
        raise NotFoundError(
            "The model has no such version.", faults=(Fault("/version", f"must be {have} or production"),)
        )

    def _find(self, name: str, version: str | int | None) -> ModelRecord | None:
        versions = self._versions.get(name)
        if not versions:
            return None
        if version is None or version in ALIASES:
            return versions[max(versions)]
        text = str(version)
        return versions.get(int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else None
