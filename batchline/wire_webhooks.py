"""The JSON of /v1/webhooks."""

from __future__ import annotations

import msgspec


class AttemptShown(msgspec.Struct, frozen=True):
    """One attempt to deliver a message."""

    nth: int
    at: str
    """When it had ended."""
    status_code: int | None
    """Of the receiver's answer; null where there was none."""
    error: str | None
    duration_ms: int


class DeliveryShown(msgspec.Struct, frozen=True):
    """A message to a receiver, and how it fares. `id` is what the receiver sees as webhook-id."""

    id: str
    event: str
    status: str
    """pending, delivered, failed (given up) or disabled (its endpoint was)."""
    subject_id: str
    """The job or batch that it tells of."""
    endpoint_id: str
    url: str
    attempt_count: int
    created_at: str
    next_attempt_at: str | None
    """Null unless it is pending; while an attempt is under way, the latest that another one begins."""
    ended_at: str | None
    attempts: list[AttemptShown] | msgspec.UnsetType = msgspec.UNSET
    """Of one delivery, oldest first; a list of deliveries is without."""
    object: str = "webhook_delivery"


class DeliveryList(msgspec.Struct, frozen=True):
    """GET /v1/webhooks/deliveries: newest first."""

    data: list[DeliveryShown]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class EndpointShown(msgspec.Struct, frozen=True):
    """A URL that jobs or batches named."""

    id: str
    url: str
    enabled: bool
    created_at: str
    disabled_at: str | None
    disabled_why: str | None
    object: str = "webhook_endpoint"


class EndpointList(msgspec.Struct, frozen=True):
    """GET /v1/webhooks/endpoints: by id."""

    data: list[EndpointShown]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class SecretShown(msgspec.Struct, frozen=True):
    """What messages are signed with: verify against either."""

    secret: str
    previous: str | None
    """Signs too, until `previous_until`."""
    previous_until: str | None
    object: str = "webhook_secret"
