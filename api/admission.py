"""Admission: from a request's bytes to a job that fits its model, its tenant's share and the system's room."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

import msgspec

from api.backlog import Backlog
from api.catalogue import Models
from batchline import rows, webhook
from batchline.clock import Clock
from batchline.decoding import from_decoding
from batchline.errors import Fault, InvalidRequestError, MalformedError
from batchline.job import FairShare, Lane, NewJob, new_job_id, rank_us
from batchline.model import ModelRecord
from batchline.store.catalogue import Principal
from batchline.wire import SubmitBody

OFF_LOOP_BYTES = 64 * 1024
"""Bodies above this are read in a thread."""
MAX_METADATA_BYTES = 16 * 1024
_MAX_FAULTS = 20

_decoder = msgspec.json.Decoder(SubmitBody)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    max_rows: int
    ttl_default_s: float
    webhooks: webhook.Allowed = field(default_factory=webhook.Allowed)


class Wishes(msgspec.Struct, frozen=True, gc=False):
    """What is said of a job beside its model and its rows."""

    priority: int = 5
    ttl_s: float | None = None
    deadline: datetime | None = None
    metadata: str | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None
    webhook: webhook.Webhook | None = None
    job_id: uuid.UUID | None = None


class Chosen(msgspec.Struct, frozen=True, gc=False):
    """Who does a job."""

    model: ModelRecord
    shadow: ModelRecord | None = None
    """Gets a copy of it."""
    job_id: uuid.UUID | None = None
    """Where the choice may depend on it."""


class Admission:
    """Checks requests and mints jobs."""

    def __init__(self, models: Models, backlog: Backlog, executor: Executor, clock: Clock, limits: Limits) -> None:
        self._models = models
        self._backlog = backlog
        self._executor = executor
        self._clock = clock
        self._limits = limits
        self._share = FairShare()

    async def job(self, raw: bytes, principal: Principal, idempotency_key: str | None) -> tuple[NewJob, Chosen]:
        """The job of a POST /v1/jobs, and who does it.

        Raises:
            MalformedError, InvalidRequestError, NotFoundError: the request is at fault.
            QuotaError, OverloadedError: there is no room.
        """
        try:
            body = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise from_decoding(e) from None
        if body.parameters:
            raise InvalidRequestError(
                "The body does not fit.", faults=(Fault("/parameters", "must be empty: no parameter is known"),)
            )
        if body.webhook is not None:
            self._check(body.webhook)
        chosen = await self.choose(body.model, body.version, idempotency_key)
        model = chosen.model
        wishes = Wishes(
            priority=body.priority,
            ttl_s=body.ttl_s,
            deadline=body.deadline,
            metadata=_metadata(body.metadata),
            idempotency_key=idempotency_key,
            body_hash=hashlib.sha256(raw).digest() if idempotency_key is not None else None,
            webhook=body.webhook,
            job_id=chosen.job_id,
        )
        inputs = body.inputs
        count, payload = await self.off_loop(len(raw), lambda: self._rows(inputs, model))
        return self.mint(principal, model, count, payload, wishes), chosen

    async def choose(self, name: str, version: str | int | None, idempotency_key: str | None) -> Chosen:
        """The version that does a job, as the request or the model's traffic rule says.

        By the rule a job is known by its key, so that a submit which is repeated gets the same version, else by its id.

        Raises:
            NotFoundError: with the pointer /model or /version.
        """
        if version is not None or not self._models.known.has_rule(name):
            return Chosen(await self._models.resolve(name, version))
        job_id = new_job_id(self._clock.now().timestamp())
        by = job_id.bytes if idempotency_key is None else idempotency_key.encode()
        model = await self._models.resolve(name, None, by)
        return Chosen(model, self._models.known.shadow(name, model), job_id)

    def _check(self, wanted: webhook.Webhook) -> None:
        faults = webhook.faults(wanted, "job", self._limits.webhooks)
        if found := tuple(islice(faults, _MAX_FAULTS)):
            raise InvalidRequestError("The body does not fit.", faults=found)

    async def off_loop(self, size: int, work: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        """Do the work at once if `size` bytes are few, else in a thread."""
        if size <= OFF_LOOP_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _rows(self, inputs: msgspec.Raw, model: ModelRecord) -> tuple[int, bytes]:
        return rows.read(memoryview(inputs), model.spec, max_rows=self._limits.max_rows)

    def mint(self, principal: Principal, model: ModelRecord, count: int, payload: bytes, wishes: Wishes) -> NewJob:
        """A job of `count` packed rows, ranked and counted in.

        Raises:
            InvalidRequestError: the deadline has passed.
            QuotaError, OverloadedError: there is no room.
        """
        now = self._clock.now()
        deadline = self._deadline(now, wishes)
        self._backlog.admit(principal.tenant_id, model, count)
        cost_s = count / self._backlog.rate(model.spec.policy.pool)
        start = now.timestamp() + self._share.ahead_s(principal.tenant_id, self._clock.monotonic(), cost_s)
        return NewJob(
            id=wishes.job_id or new_job_id(now.timestamp()),
            tenant_id=principal.tenant_id,
            model_id=model.id,
            lane=Lane.ONLINE,
            priority=wishes.priority,
            rank=rank_us(start, wishes.priority, deadline.timestamp() if deadline else None),
            rows=count,
            payload=payload,
            metadata=wishes.metadata,
            deadline_at=deadline,
            idempotency_key=wishes.idempotency_key,
            body_hash=wishes.body_hash,
            webhook=wishes.webhook,
        )

    def _deadline(self, now: datetime, wishes: Wishes) -> datetime | None:
        if wishes.deadline is not None and wishes.deadline <= now:
            raise InvalidRequestError("The body does not fit.", faults=(Fault("/deadline", "has passed"),))
        ttl_s = wishes.ttl_s
        if ttl_s is None and wishes.deadline is None:
            ttl_s = self._limits.ttl_default_s or None
        try:
            ends = [wishes.deadline.astimezone(UTC)] if wishes.deadline is not None else []
        except OverflowError:
            raise InvalidRequestError(
                "The body does not fit.", faults=(Fault("/deadline", "is beyond the year 9999"),)
            ) from None
        if ttl_s is not None:
            ends.append(now + timedelta(seconds=ttl_s))
        return min(ends) if ends else None


def _metadata(raw: msgspec.Raw) -> str | None:
    """The metadata as compact JSON text; what is too large is refused unread."""
    size = memoryview(raw).nbytes
    if size == 0 or (size == len(b"null") and bytes(raw) == b"null"):
        return None
    if size > MAX_METADATA_BYTES:
        fault = f"is larger than {MAX_METADATA_BYTES} bytes"
    else:
        try:
            return msgspec.json.encode(msgspec.json.decode(raw, type=dict[str, object])).decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            fault = "must be an object"
    raise InvalidRequestError("The body does not fit.", faults=(Fault("/metadata", fault),))


def idempotency_key(headers: Mapping[bytes, bytes]) -> str | None:
    """The request's Idempotency-Key: 1 to 255 visible ASCII characters.

    Raises:
        MalformedError: it is none.
    """
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not all(0x21 <= byte <= 0x7E for byte in key):
        raise MalformedError("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return key.decode("ascii")
