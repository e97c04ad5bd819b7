"""Webhooks: messages to be sent and what became of them, endpoints, secrets. Who is told: `subscriptions`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta

from batchline.store import webhook_subjects
from batchline.store.postgres import Database, Row
from batchline.store.webhook_contract import (
    ROTATE_AGAIN_S,
    SECRET_KEPT_S,
    AttemptView,
    Due,
    EndpointView,
    MessageStatus,
    MessageView,
    SecretView,
)
from batchline.webhook import new_secret

_PROBES = 5000
"""Endpoints that one take looks at: some twenty milliseconds. Who has more is served in turns."""
_STEP = 10_000
"""Messages that one statement ends, endpoints that one removes."""
_ERROR_CHARACTERS = 500
_FIRST = uuid.UUID(int=0)
_GONE = "What this message is about has been deleted."

# From endpoint to endpoint by one probe of the index each, however many messages wait behind the first one; the probe
# brings the time when the first is due.
_CIRCLE = """
RECURSIVE circle AS (
  (SELECT m.endpoint_id, m.due_at, 1 AS nth FROM webhook_messages m
   WHERE m.status = 'pending' AND m.endpoint_id > %(after)s::uuid ORDER BY m.endpoint_id, m.due_at LIMIT 1)
  UNION ALL
  SELECT n.endpoint_id, n.due_at, c.nth + 1 FROM circle c CROSS JOIN LATERAL (
    SELECT m.endpoint_id, m.due_at FROM webhook_messages m
    WHERE m.status = 'pending' AND m.endpoint_id > c.endpoint_id ORDER BY m.endpoint_id, m.due_at LIMIT 1) n
  WHERE c.nth < %(probes)s
)
"""

# Messages of an endpoint that was disabled while they were written: one is shown, so that they are ended.
_TAKE = f"""
WITH {_CIRCLE}, due AS MATERIALIZED (
  SELECT p.id, e.disabled_at IS NOT NULL AS disabled
  FROM circle c LEFT JOIN webhook_endpoints e ON e.id = c.endpoint_id CROSS JOIN LATERAL (
    SELECT m.id FROM webhook_messages m
    WHERE m.endpoint_id = c.endpoint_id AND m.status = 'pending' AND m.due_at <= now()
    ORDER BY m.due_at LIMIT CASE WHEN e.disabled_at IS NOT NULL THEN 1 ELSE greatest(0, %(per_endpoint)s - (
      SELECT count(*) FROM webhook_messages t
      WHERE t.endpoint_id = c.endpoint_id AND t.status = 'pending' AND t.taken AND t.due_at > now())) END
    FOR UPDATE SKIP LOCKED) p
  WHERE c.due_at <= now() LIMIT %(limit)s
), u AS (
  UPDATE webhook_messages m SET attempts = m.attempts + (NOT due.disabled)::int, taken = NOT due.disabled,
    due_at = now() + CASE WHEN due.disabled THEN 0 ELSE %(lease)s::float8 END * interval '1 second'
  FROM due WHERE m.id = due.id AND m.status = 'pending'
  RETURNING m.id, m.attempts, m.attempts - m.replayed_after, m.tenant_id, m.endpoint_id, m.event, m.created_at,
    m.subject_id, due.disabled
)
SELECT u.*, s.url, CASE WHEN (SELECT count(*) FROM due) < %(limit)s
  THEN (SELECT c.endpoint_id FROM circle c WHERE c.nth = %(probes)s) END
FROM (VALUES (0)) one LEFT JOIN u ON true LEFT JOIN webhook_subscriptions s ON s.subject_id = u.subject_id
"""

_OVERDUE = f"""
WITH {_CIRCLE} SELECT coalesce(extract(epoch FROM now() - min(due_at)), 0) FROM circle WHERE due_at <= now()
"""

_LOG = """
INSERT INTO webhook_attempts (message_id, nth, status_code, error, duration_ms)
SELECT m.id, %(attempt)s::int, %(code)s::int, %(error)s::text, %(duration)s::int FROM webhook_messages m
WHERE m.id = %(id)s AND m.attempts >= %(attempt)s ON CONFLICT DO NOTHING
"""

_DELIVERED = f"""
WITH u AS (
  UPDATE webhook_messages m SET status = 'delivered', taken = false, ended_at = now()
  WHERE m.id = %(id)s::uuid AND m.replayed_after < %(attempt)s AND %(attempt)s <= m.attempts AND m.status <> 'delivered'
  RETURNING m.id
), log AS ({_LOG})
SELECT id FROM u UNION SELECT m.id FROM webhook_messages m
WHERE m.id = %(id)s::uuid AND m.replayed_after < %(attempt)s AND %(attempt)s <= m.attempts AND m.status = 'delivered'
"""

# What an earlier call whose reply was lost has done is found by its line in the log.
_FAILED = f"""
WITH u AS (
  UPDATE webhook_messages m SET taken = false,
    status = CASE WHEN %(again)s::float8 IS NULL THEN 'failed' ELSE 'pending' END,
    ended_at = CASE WHEN %(again)s::float8 IS NULL THEN now() END,
    due_at = CASE WHEN %(again)s::float8 IS NULL THEN m.due_at ELSE now() + %(again)s::float8 * interval '1 second' END
  WHERE m.id = %(id)s::uuid AND m.attempts = %(attempt)s::int AND m.status = 'pending' AND m.taken
  RETURNING m.id
), log AS ({_LOG})
SELECT id FROM u UNION SELECT m.id FROM webhook_messages m JOIN webhook_attempts a ON a.message_id = m.id
WHERE m.id = %(id)s::uuid AND m.attempts = %(attempt)s::int AND m.status IN ('pending', 'failed') AND NOT m.taken
  AND a.nth = %(attempt)s
"""

_GIVE_UP = f"""
WITH u AS (
  UPDATE webhook_messages m SET status = 'failed', taken = false, ended_at = now()
  WHERE m.id = %(id)s::uuid AND m.attempts = %(attempt)s::int AND m.status = 'pending'
) {_LOG}
"""

_DISABLE = """
INSERT INTO webhook_endpoints AS e (id, tenant_id, url, disabled_at, disabled_why)
SELECT s.endpoint_id, s.tenant_id, s.url, now(), %(why)s FROM webhook_subscriptions s
WHERE s.endpoint_id = %(id)s LIMIT 1
ON CONFLICT (id) DO UPDATE SET disabled_at = now(), disabled_why = excluded.disabled_why WHERE e.disabled_at IS NULL
RETURNING 1
"""

_END_DISABLED = """
WITH old AS MATERIALIZED (
  SELECT m.id FROM webhook_messages m
  WHERE m.endpoint_id = %(id)s AND m.status = 'pending'
    AND EXISTS (SELECT FROM webhook_endpoints e WHERE e.id = %(id)s AND e.disabled_at IS NOT NULL)
  ORDER BY m.due_at LIMIT %(step)s FOR UPDATE SKIP LOCKED
)
UPDATE webhook_messages m SET status = 'disabled', taken = false, ended_at = now() FROM old
WHERE m.id = old.id AND m.status = 'pending' RETURNING 1
"""

_MESSAGE = """
SELECT m.id, m.tenant_id, m.endpoint_id, coalesce(s.url, ''), m.subject_id, m.event, m.status, m.attempts, m.created_at,
  CASE WHEN m.status = 'pending' THEN m.due_at END, m.ended_at
FROM webhook_messages m LEFT JOIN webhook_subscriptions s ON s.subject_id = m.subject_id
"""
_READ = _MESSAGE + "WHERE m.id = %(id)s"
_OF_TENANT = "WHERE m.tenant_id = %(tenant)s AND m.id < %(before)s::uuid"
_NEWEST = "ORDER BY m.id DESC LIMIT %(limit)s"

_ATTEMPTS = """
SELECT nth, at, status_code, error, duration_ms FROM webhook_attempts WHERE message_id = %(id)s ORDER BY nth
"""

# One that is under way is left to end; the answer is found either way.
_REPLAY = """
WITH own AS MATERIALIZED (
  SELECT m.id, m.status = 'pending' AND m.taken AND m.due_at > now() AS under_way FROM webhook_messages m
  WHERE m.id = %(id)s AND m.tenant_id = %(tenant)s AND NOT EXISTS (
    SELECT FROM webhook_endpoints e WHERE e.id = m.endpoint_id AND e.disabled_at IS NOT NULL)
  FOR UPDATE OF m
), u AS (
  UPDATE webhook_messages m SET status = 'pending', taken = false, due_at = now(), ended_at = NULL,
    replayed_after = m.attempts
  FROM own WHERE m.id = own.id AND NOT own.under_way
)
SELECT 1 FROM own
"""

_ENDPOINT = "SELECT id, tenant_id, url, created_at, disabled_at, disabled_why FROM webhook_endpoints "
_ENDPOINTS = _ENDPOINT + "WHERE tenant_id = %(tenant)s AND id > %(after)s::uuid ORDER BY id LIMIT %(limit)s"

_ENABLE = """
UPDATE webhook_endpoints SET disabled_at = NULL, disabled_why = NULL WHERE id = %(id)s AND tenant_id = %(tenant)s
RETURNING 1
"""

_KEPT = """
SELECT tenant_id, secret, CASE WHEN rotated_at > now() - %(kept)s * interval '1 second' THEN previous END, rotated_at
FROM webhook_secrets WHERE tenant_id = ANY(%(tenants)s::int[])
"""
_MAKE = """
INSERT INTO webhook_secrets (tenant_id, secret) VALUES (%(tenant)s, %(secret)s) ON CONFLICT DO NOTHING
"""
_ROTATE = """
UPDATE webhook_secrets SET previous = secret, secret = %(secret)s, rotated_at = now()
WHERE tenant_id = %(tenant)s AND (rotated_at IS NULL OR rotated_at < now() - %(again)s * interval '1 second')
"""

_PRUNE_ENDPOINTS = """
WITH old AS MATERIALIZED (
  SELECT e.id FROM webhook_endpoints e
  WHERE e.created_at < now() - %(kept)s * interval '1 second'
    AND NOT EXISTS (SELECT FROM webhook_subscriptions s WHERE s.endpoint_id = e.id)
  ORDER BY e.created_at LIMIT %(step)s FOR UPDATE SKIP LOCKED
)
DELETE FROM webhook_endpoints e USING old WHERE e.id = old.id RETURNING 1
"""


class Webhooks:
    """See `batchline.store.webhook_contract.Webhooks`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._after = _FIRST
        """The endpoint that the last take ended with."""

    def take_due(self, *, limit: int, per_endpoint: int, lease_s: float) -> list[Due]:
        from_start = self._after == _FIRST
        taken = self._take(limit, per_endpoint, lease_s)
        if not taken and not from_start:
            self._after = _FIRST
            taken = self._take(limit, per_endpoint, lease_s)
        if not taken:
            return []
        data = webhook_subjects.read(self._db, [(row[5], row[7]) for row in taken])
        secrets = self._secrets({row[3] for row in taken})
        due: list[Due] = []
        for message_id, attempt, tries, tenant, endpoint_id, event, created_at, subject_id, _, url in taken:
            text = data.get(subject_id)
            if text is None or url is None:
                self._db.run(_GIVE_UP, {**_attempt(message_id, attempt), "error": _GONE})
                continue
            signed = secrets[tenant]
            both = (signed.secret, signed.previous) if signed.previous else (signed.secret,)
            due.append(
                Due(message_id, attempt, tries, tenant, endpoint_id, url, event, created_at, subject_id, both, text)
            )
        return due

    def _take(self, limit: int, per_endpoint: int, lease_s: float) -> list[Row]:
        """Take from the endpoints behind the last one; ends what waits for disabled ones."""
        params = {
            "after": self._after, "probes": _PROBES, "limit": limit, "per_endpoint": per_endpoint, "lease": lease_s,
        }  # fmt: skip
        rows = self._db.run(_TAKE, params, repeat=False, prepare=True)
        stopped_at = rows[0][-1]
        found = [row[:-1] for row in rows if row[0] is not None]
        self._after = max(row[4] for row in found) if len(found) >= limit else stopped_at or _FIRST
        for endpoint_id in {row[4] for row in found if row[8]}:
            self._end_disabled(endpoint_id)
        return [row for row in found if not row[8]]

    def delivered(self, message_id: uuid.UUID, attempt: int, *, status_code: int, duration_ms: int) -> bool:
        params = _attempt(message_id, attempt) | {"code": status_code, "duration": duration_ms}
        return bool(self._db.run(_DELIVERED, params, prepare=True))

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
        told = error.replace("\0", " ").encode("utf-8", "replace").decode()[:_ERROR_CHARACTERS]
        report = {"code": status_code, "error": told, "duration": duration_ms, "again": again_in_s}
        return bool(self._db.run(_FAILED, _attempt(message_id, attempt) | report, prepare=True))

    def disable(self, endpoint_id: uuid.UUID, why: str) -> int:
        if not self._db.run(_DISABLE, {"id": endpoint_id, "why": why}):
            return 0
        return self._end_disabled(endpoint_id)

    def _end_disabled(self, endpoint_id: uuid.UUID) -> int:
        ended = 0
        while step := len(self._db.run(_END_DISABLED, {"id": endpoint_id, "step": _STEP})):
            ended += step
        return ended

    def overdue_s(self) -> float:
        params = {"after": _FIRST, "probes": _PROBES}
        return float(self._db.run(_OVERDUE, params, prepare=True)[0][0])

    def list(
        self,
        tenant_id: int,
        *,
        status: MessageStatus | None = None,
        event: str | None = None,
        after: uuid.UUID | None = None,
        limit: int,
    ) -> list[MessageView]:
        # A statement for each filter, since each has its index.
        wanted = {"status": status.value if status else None, "event": event}
        filters = " ".join(f"AND m.{name} = %({name})s" for name, value in wanted.items() if value is not None)
        params = {"tenant": tenant_id, "before": after or uuid.UUID(int=2**128 - 1), "limit": limit, **wanted}
        rows = self._db.run(f"{_MESSAGE} {_OF_TENANT} {filters} {_NEWEST}", params)
        return [_message(row) for row in rows]

    def read(self, message_id: uuid.UUID) -> MessageView | None:
        rows = self._db.run(_READ, {"id": message_id})
        return _message(rows[0]) if rows else None

    def attempts(self, message_id: uuid.UUID) -> list[AttemptView]:
        return [AttemptView(*row) for row in self._db.run(_ATTEMPTS, {"id": message_id})]

    def replay(self, tenant_id: int, message_id: uuid.UUID) -> bool:
        return bool(self._db.run(_REPLAY, {"tenant": tenant_id, "id": message_id}))

    def endpoints(self, tenant_id: int, *, after: uuid.UUID | None = None, limit: int) -> Sequence[EndpointView]:
        rows = self._db.run(_ENDPOINTS, {"tenant": tenant_id, "after": after or _FIRST, "limit": limit})
        return [EndpointView(*row) for row in rows]

    def endpoint(self, endpoint_id: uuid.UUID) -> EndpointView | None:
        rows = self._db.run(_ENDPOINT + "WHERE id = %(id)s", {"id": endpoint_id})
        return EndpointView(*rows[0]) if rows else None

    def enable(self, tenant_id: int, endpoint_id: uuid.UUID) -> bool:
        return bool(self._db.run(_ENABLE, {"tenant": tenant_id, "id": endpoint_id}))

    def secret(self, tenant_id: int) -> SecretView:
        return self._secrets({tenant_id})[tenant_id]

    def rotate(self, tenant_id: int) -> SecretView:
        self.secret(tenant_id)  # one that was never made has signed nothing, yet whoever rotates may have read it
        self._db.run(_ROTATE, {"tenant": tenant_id, "secret": new_secret(), "again": ROTATE_AGAIN_S})
        return self.secret(tenant_id)

    def _secrets(self, tenants: set[int]) -> dict[int, SecretView]:
        found = self._kept_secrets(tenants)
        missing = tenants - set(found)
        for tenant_id in missing:
            self._db.run(_MAKE, {"tenant": tenant_id, "secret": new_secret()})
        return found | self._kept_secrets(missing) if missing else found

    def _kept_secrets(self, tenants: set[int]) -> dict[int, SecretView]:
        rows = self._db.run(_KEPT, {"tenants": sorted(tenants), "kept": SECRET_KEPT_S}, prepare=True)
        kept = timedelta(seconds=SECRET_KEPT_S)
        return {
            tenant: SecretView(secret, previous, rotated_at + kept if previous else None)
            for tenant, secret, previous, rotated_at in rows
        }

    def prune(self, *, kept_s: float) -> int:
        return len(self._db.run(_PRUNE_ENDPOINTS, {"kept": kept_s, "step": _STEP}))


def _attempt(message_id: uuid.UUID, attempt: int) -> dict[str, object]:
    return {"id": message_id, "attempt": attempt, "code": None, "error": None, "duration": 0}


def _message(row: Row) -> MessageView:
    fields = list(row)
    fields[6] = MessageStatus(fields[6])
    return MessageView(*fields)
