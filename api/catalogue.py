"""The models that may be asked for, and who gets their jobs; refreshed each second and at a miss."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import NoReturn

from api.asking import Asking
from batchline.clock import Clock
from batchline.errors import Fault, NotFoundError
from batchline.model import ModelRecord
from batchline.traffic import Rule, Versions

_MISS_S = 0.2
"""Misses ask Postgres at most this often."""


class Models:
    """Versions by name. `refresh` and `resolve_now` are for threads; all else is for the event loop."""

    def __init__(
        self,
        fetch: Callable[[], list[ModelRecord]],
        fetch_rules: Callable[[], Mapping[str, Rule]],
        ask: Asking,
        clock: Clock,
    ) -> None:
        self._fetch = fetch
        self._fetch_rules = fetch_rules
        self._ask = ask
        self._clock = clock
        self._turn = threading.Lock()
        self._known = Versions()
        self._refreshed_at = float("-inf")

    @property
    def known(self) -> Versions:
        """As they were at the last refresh."""
        return self._known

    def refresh(self) -> None:
        """Read the catalogue anew (blocking). What was written before the call is known after it."""
        with self._turn:  # or one that read before us would be the last to write
            rules = self._fetch_rules()  # first: no rule names a version that is not there yet
            self._known = Versions(self._fetch(), rules)
            self._refreshed_at = self._clock.monotonic()

    async def resolve(self, name: str, version: str | int | None, by: bytes | None = None) -> ModelRecord:
        """The record that a request means.

        Args:
            name: of the model.
            version: a number, an alias, or None for what the model's traffic rule says.
            by: what the job is known by, for the rule; None: production takes it.

        Raises:
            NotFoundError: with the pointer /model or /version.
        """
        record = self._known.find(name, version, by)
        if record is None and self._clock.monotonic() - self._refreshed_at > _MISS_S:
            await self._ask(self.refresh)
            record = self._known.find(name, version, by)
        return record or self._refuse(name, version, by)

    def resolve_now(self, name: str, version: str | int | None) -> ModelRecord:
        """The same for threads, where it may block; production takes what names no version."""
        record = self._known.find(name, version)
        if record is None and self._clock.monotonic() - self._refreshed_at > _MISS_S:
            self.refresh()
            record = self._known.find(name, version)
        return record or self._refuse(name, version, None)

    def _refuse(self, name: str, version: str | int | None, by: bytes | None) -> NoReturn:
        if not self._known.of(name):
            raise NotFoundError("There is no such model.", faults=(Fault("/model", "is no model here"),))
        raise NotFoundError(
            "The model has no such version.",
            faults=(Fault("/version", self._known.must_be(name, version, by)),),
        )
