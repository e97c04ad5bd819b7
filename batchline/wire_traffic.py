"""The JSON of /v1/models/{m}/traffic."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec


class CanaryBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version and its part of the jobs."""

    version: str | int
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)]


class TrafficBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PUT: the whole rule."""

    production: str | int
    canary: CanaryBody | None = None
    shadow: str | int | None = None


class CanaryShown(msgspec.Struct, frozen=True):
    """As it was set."""

    version: str
    percent: float


class RoleShown(msgspec.Struct, frozen=True):
    """What became of the jobs of one version within the window."""

    version: str
    jobs: int
    """Ended by a worker."""
    failed: int
    p50_ms: float | None
    """Of predict."""
    p95_ms: float | None


class ComparedShown(msgspec.Struct, frozen=True):
    """Copies that were compared with the jobs of clients."""

    pairs: int
    agree: int


class LatelyShown(msgspec.Struct, frozen=True):
    """The jobs of the window, by role."""

    window_s: float
    production: RoleShown
    canary: RoleShown | None
    shadow: RoleShown | None
    compared: ComparedShown | None


class TrafficShown(msgspec.Struct, frozen=True):
    """The rule of a model."""

    model: str
    production: str
    canary: CanaryShown | None
    shadow: str | None
    updated_at: datetime | None
    """Null: no rule is set, and production is the highest version."""
    lately: LatelyShown | None = None
    """Null in the answers to PUT and DELETE, and for a key without the scope admin: it is about all tenants."""
    object: str = "model.traffic"
