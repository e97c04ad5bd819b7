"""Idempotency keys: one request of a key is taken, and the others are told of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import psycopg2

from batchline.batch import NewBatch
from batchline.errors import BatchlineError, ConflictError, InvalidRequestError, KeyReusedError
from batchline.job import Admitted
from batchline.store.postgres import Database, Transaction

_FIRST = """
SELECT k.tenant_id, k.key, k.body_hash, k.job_id FROM idempotency_keys k
JOIN unnest(%(tenant)s::int[], %(key)s::text[]) AS t(tenant_id, key) USING (tenant_id, key)
"""

_TAKE = """
WITH wait AS MATERIALIZED (SELECT set_config('lock_timeout', '2s', true))
INSERT INTO idempotency_keys (tenant_id, key, body_hash, job_id)
SELECT %(tenant)s::int, %(key)s::text, %(hash)s::bytea, %(id)s::uuid FROM wait ON CONFLICT DO NOTHING RETURNING 1
"""
First = dict[tuple[int, str], tuple[bytes, uuid.UUID]]
"""(tenant, key) -> hash of the body and id of what was taken under it."""


def first_of(db: Database, keys: Sequence[tuple[int, str | None]]) -> First:
    """What was taken under each (tenant, key)."""
    rows = db.run(_FIRST, {"tenant": [tenant for tenant, _ in keys], "key": [key for _, key in keys]})
    return {(tenant, key): (bytes(body_hash), taken) for tenant, key, body_hash, taken in rows}


def answer(own: uuid.UUID, body_hash: bytes | None, found: tuple[bytes, uuid.UUID] | None) -> Admitted | BatchlineError:
    """What to tell whoever sent `own` and found its key taken."""
    if found is None:
        return in_flight()
    first_hash, first = found
    if first_hash != body_hash:
        return KeyReusedError("This Idempotency-Key was used with another body; use a new key for a new request.")
    return Admitted(first, replayed=first != own)


def take(transaction: Transaction, batch: NewBatch) -> bool:
    """Take the batch's key within its transaction; False if it is taken.

    Raises:
        ConflictError: whoever takes it at this moment is not done within two seconds.
    """
    body_hash = psycopg2.Binary(batch.body_hash or b"")
    params = {"tenant": batch.tenant_id, "key": batch.idempotency_key, "hash": body_hash, "id": batch.id}
    try:
        return bool(transaction.run(_TAKE, params))
    except psycopg2.errors.LockNotAvailable as e:
        raise in_flight() from e


def in_flight() -> ConflictError:
    return ConflictError("This Idempotency-Key is in flight elsewhere; try again.", retry_after_s=1.0)


def refusal(error: Exception) -> BatchlineError:
    """For values that Postgres does not take."""
    refused = InvalidRequestError("The request has a value that cannot be stored.")
    refused.__cause__ = error
    return refused
