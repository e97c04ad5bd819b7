"""What the store knows of webhooks: messages that wait to be sent, what became of each, endpoints, secrets.

A trigger of the database writes a job's or a batch's message in the very transaction that ends it, whoever ends it: one
for each subject whose event was asked for, never two. As in `batchline.store.contract`: every method but those that say
otherwise is one short statement that happens whole or not at all, calling it again is safe, and any of them raises
StoreUnavailableError when Postgres cannot be asked.

A message is `pending` until it is `delivered`, given up (`failed`), or its endpoint is disabled (`disabled`); each of
the three may be replayed. Ids of endpoints are made of tenant and URL: see `endpoint_id_of`.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

SECRET_KEPT_S = 86400.0
"""A secret that was replaced goes on signing beside the new one for so long."""
ROTATE_AGAIN_S = 60.0
"""Within it a rotation is the repeat of the one before, and does nothing: receivers would lose what they know."""


class MessageStatus(StrEnum):
    """Where a message stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Due:
    """A message that is to be sent now, by whoever was given it and by nobody else until the lease ends."""

    id: uuid.UUID
    """Shown, and sent as webhook-id, as `webhook.show_message_id` has it."""
    attempt: int
    """The fence, and the number in the log: 1 at first, one more at every take."""
    tries: int
    """The attempts since it was written or last replayed, this one included: what the schedule of retries goes by."""
    tenant_id: int
    endpoint_id: uuid.UUID
    url: str
    event: str
    created_at: datetime
    """When the subject ended."""
    subject_id: uuid.UUID
    secrets: tuple[str, ...] = field(repr=False)
    """What to sign with, newest first: one, or two for a while after a rotation."""
    data: str
    """JSON text: the subject as clients see it, without outputs and errors; the same at every attempt."""


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt, as it was reported."""

    nth: int
    at: datetime
    """When it had ended."""
    status_code: int | None
    error: str | None
    duration_ms: int


@dataclass(frozen=True, slots=True)
class MessageView:
    """One message as its row tells it."""

    id: uuid.UUID
    tenant_id: int
    endpoint_id: uuid.UUID
    url: str
    subject_id: uuid.UUID
    event: str
    status: MessageStatus
    attempts: int
    created_at: datetime
    due_at: datetime | None
    """When it is tried next; None unless it is pending."""
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class EndpointView:
    """A URL that a tenant named. Disabled ones are sent nothing."""

    id: uuid.UUID
    tenant_id: int
    url: str
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str | None


@dataclass(frozen=True, slots=True)
class SecretView:
    """What a tenant's messages are signed with."""

    secret: str = field(repr=False)
    previous: str | None = field(repr=False)
    """Signs too, until `previous_until`; None when there is none any more."""
    previous_until: datetime | None


class Webhooks(Protocol):
    """Messages, endpoints and secrets. The first four are the sender's, the rest the API's."""

    def take_due(self, *, limit: int, per_endpoint: int, lease_s: float) -> list[Due]:
        """Take messages that are due, oldest first of each endpoint, the endpoints in turn.

        Nobody else takes them for `lease_s`; then they are due again, reported or not. Not repeated by itself: after
        a lost reply they come back when the lease ends. A message whose subject has been deleted is given up here.

        Args:
            limit: at most so many.
            per_endpoint: of one endpoint no more than so many are under way; two takers at the same instant may
                both fill it.
            lease_s: longer than an attempt can take.
        """
        ...

    def delivered(self, message_id: uuid.UUID, attempt: int, *, status_code: int, duration_ms: int) -> bool:
        """The receiver has taken it. Counts although the lease has run out, unless it was replayed meanwhile.

        Returns:
            Whether the message is `delivered`, by this call or an earlier one of this attempt.
        """
        ...

    def failed(
        self,
        message_id: uuid.UUID,
        attempt: int,
        *,
        status_code: int | None,
        error: str,
        duration_ms: int,
        again_in_s: float | None,
    ) -> bool:
        """The attempt came to nothing. It is logged in any case.

        Args:
            message_id: of the message.
            attempt: that failed.
            status_code: of the answer, if there was one.
            error: one short sentence for the log; the first 500 characters are kept.
            duration_ms: how long it took.
            again_in_s: when to try again; None gives the message up: it is `failed`.

        Returns:
            False if the message is no longer this attempt's: taken again, disabled, delivered.
        """
        ...

    def disable(self, endpoint_id: uuid.UUID, why: str) -> int:
        """Send this endpoint nothing more: what is pending, and what comes, is `disabled`. Several statements.

        Args:
            endpoint_id: whose receiver said that it is gone.
            why: one short sentence for the owner.

        Returns:
            How many messages it ended; 0 if it was disabled before.
        """
        ...

    def overdue_s(self) -> float:
        """For how long the message that waits longest has been due; 0 when none is. Looks at 5,000 endpoints."""
        ...

    def list(
        self,
        tenant_id: int,
        *,
        status: MessageStatus | None = None,
        event: str | None = None,
        after: uuid.UUID | None = None,
        limit: int,
    ) -> list[MessageView]:
        """One tenant's messages, newest first.

        Args:
            tenant_id: whose.
            status: only these, or all.
            event: only these, or all.
            after: only messages older than this id, which need not exist.
            limit: at most so many.
        """
        ...

    def read(self, message_id: uuid.UUID) -> MessageView | None:
        """A message of any tenant."""
        ...

    def attempts(self, message_id: uuid.UUID) -> list[AttemptView]:
        """The log of a message, oldest first. An attempt whose sender died is not in it."""
        ...

    def replay(self, tenant_id: int, message_id: uuid.UUID) -> bool:
        """Send the message again, now, under the same id, with all its tries; one under way is left to end.

        Returns:
            False if there is no such message of this tenant, or its endpoint is disabled.
        """
        ...

    def endpoints(self, tenant_id: int, *, after: uuid.UUID | None = None, limit: int) -> Sequence[EndpointView]:
        """One tenant's endpoints, disabled ones too, by id."""
        ...

    def endpoint(self, endpoint_id: uuid.UUID) -> EndpointView | None:
        """An endpoint of any tenant."""
        ...

    def enable(self, tenant_id: int, endpoint_id: uuid.UUID) -> bool:
        """Send this endpoint messages again; those that ended meanwhile wait for `replay`.

        Returns:
            False if the tenant has no such endpoint.
        """
        ...

    def secret(self, tenant_id: int) -> SecretView:
        """What the tenant's messages are signed with; made at the first call."""
        ...

    def rotate(self, tenant_id: int) -> SecretView:
        """Make a new secret; the one before signs beside it for SECRET_KEPT_S; see ROTATE_AGAIN_S."""
        ...

    def prune(self, *, kept_s: float) -> int:
        """One step: endpoints of so long ago that nothing names any more; disabled ones too.

        Messages and their attempts go with the job or the batch that they are about: see `Chores.prune`,
        `Batches.prune`. Returns how many went; call again until it is 0.
        """
        ...


def endpoint_id_of(tenant_id: int, url: str) -> uuid.UUID:
    """The id of a tenant's endpoint: made of both, so that it is known before it is stored."""
    return uuid.UUID(bytes=hashlib.sha256(f"{tenant_id} {url}".encode()).digest()[:16])
