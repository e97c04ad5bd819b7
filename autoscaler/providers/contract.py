"""What a provider of workers is: it launches, lists and ends instances, idempotently, and says why it cannot."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from batchline.errors import BatchlineError
from batchline.store.instance_contract import Launch, NewInstance


class Trouble(enum.StrEnum):
    """Why a provider did not do what it was asked."""

    CAPACITY = "capacity"
    """It has none left of what was asked for; nothing was launched. Left alone for some minutes."""
    THROTTLED = "throttled"
    """Too many calls; nothing was done."""
    REFUSED = "refused"
    """The request is wrong, or not allowed: repeating it is vain until somebody mends the settings."""
    UNKNOWN = "unknown"
    """No answer, or one that does not say: it may have been done. Ask again with the same token."""


class ProviderError(BatchlineError):
    """A provider could not be asked, or said no."""

    def __init__(self, trouble: Trouble, detail: str) -> None:
        """Args:
        trouble: what follows from it.
        detail: what happened and what to do next.
        """
        super().__init__(detail)
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class Found:
    """An instance that the provider lists as ours, by its tags.

    Attributes:
        instance: what it is.
        pool: from its tags.
        launch_id: from its tags; None where they say none.
        ending: it is shutting down or being taken away.
        age_s: since the provider launched it.
    """

    instance: NewInstance
    pool: str
    launch_id: uuid.UUID | None
    ending: bool
    age_s: float


class Provider(Protocol):
    """One place that workers run at. All methods raise ProviderError; none keeps the caller for over a minute.

    A launch is idempotent by its id: repeated, it answers with the same instances and starts nothing new.
    """

    @property
    def name(self) -> str:
        """As settings and the ledger call it."""
        ...

    @property
    def stale_s(self) -> float:
        """For how long a listing may not show what has just been done."""
        ...

    def check(self) -> None:
        """Ask whether the settings work: region, permission, image, types.

        Raises:
            SettingsError: something cannot work; the message says what and what to do.
        """
        ...

    def launch(self, launch: Launch) -> Sequence[NewInstance]:
        """Start up to `launch.count` instances of the pool; fewer when there is no capacity for all.

        Raises:
            ProviderError: CAPACITY when there was none at all.
        """
        ...

    def list(self) -> Sequence[Found]:
        """Everything of ours that is not gone, as far as the provider knows."""
        ...

    def end(self, instance_ids: Sequence[str]) -> None:
        """Stop these for good; what is gone already is fine, and does not keep the rest from being stopped."""
        ...
