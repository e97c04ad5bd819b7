"""Who is to be told of the end of a job or a batch: stored with it, in the same statement or the same transaction.

The messages are written by triggers (see `schema_webhooks`) from what stands here when the subject ends, and go with
the subject.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from batchline.job import NewJob
from batchline.store.postgres import Transaction, columns
from batchline.store.webhook_contract import endpoint_id_of
from batchline.webhook import Webhook

OF_JOBS = {
    "given": ", %(url)s::text[], %(events)s::text[], %(endpoint)s::uuid[]",
    "named": ", url, events, endpoint_id",
    "column": ", webhook",
    "value": ", endpoint_id IS NOT NULL",
    "beside": """, endpoints AS (
  INSERT INTO webhook_endpoints (id, tenant_id, url)
  SELECT DISTINCT ON (endpoint_id) endpoint_id, tenant_id, url FROM accepted WHERE endpoint_id IS NOT NULL
  ORDER BY endpoint_id ON CONFLICT (id) DO NOTHING
), subscribed AS (
  INSERT INTO webhook_subscriptions (subject_id, tenant_id, endpoint_id, url, events)
  SELECT id, tenant_id, endpoint_id, url, events FROM accepted WHERE endpoint_id IS NOT NULL
  ORDER BY id ON CONFLICT (subject_id) DO NOTHING
)""",
}
"""What the statement that stores a group of jobs has more, when one of them has a webhook; see `jobs`."""

_SUBSCRIBE = """
WITH endpoint AS (
  INSERT INTO webhook_endpoints (id, tenant_id, url) VALUES (%(endpoint)s, %(tenant)s, %(url)s)
  ON CONFLICT (id) DO NOTHING
)
INSERT INTO webhook_subscriptions (subject_id, tenant_id, endpoint_id, url, events)
VALUES (%(subject)s, %(tenant)s, %(endpoint)s, %(url)s, %(events)s) ON CONFLICT (subject_id) DO NOTHING
"""

FORGET = """
subscribed AS (
  DELETE FROM webhook_subscriptions WHERE subject_id = ANY(ARRAY(SELECT id FROM old WHERE webhook))
), messages AS (
  DELETE FROM webhook_messages WHERE subject_id = ANY(ARRAY(SELECT id FROM old WHERE webhook)) RETURNING id
), attempts AS (
  DELETE FROM webhook_attempts WHERE message_id = ANY(ARRAY(SELECT id FROM messages))
)
"""
"""CTEs of a statement that deletes the jobs or batches of a CTE `old` (id, webhook): what was asked for and told goes
too. By arrays, so that the keys are probed, however large the tables are.
"""


def columns_of(jobs: Sequence[NewJob]) -> dict[str, object]:
    """The parameters that OF_JOBS adds: one list of N each, None where a job has no webhook."""
    records = [
        (job.webhook.url, " ".join(job.webhook.events), endpoint_id_of(job.tenant_id, job.webhook.url))
        if job.webhook is not None
        else (None, None, None)
        for job in jobs
    ]
    return dict(zip(("url", "events", "endpoint"), columns(records, 3), strict=True))


def subscribe(transaction: Transaction, tenant_id: int, subject_id: uuid.UUID, webhook: Webhook) -> None:
    """Ask for messages of one subject, in the transaction that stores it."""
    params = {
        "subject": subject_id,
        "tenant": tenant_id,
        "endpoint": endpoint_id_of(tenant_id, webhook.url),
        "url": webhook.url,
        "events": " ".join(webhook.events),
    }
    transaction.run(_SUBSCRIBE, params)


def shown(table: str) -> str:
    """An SQL expression for `webhook_of`; looks at the subscriptions only where the row says that there is one."""
    return (
        f"CASE WHEN {table}.webhook THEN (SELECT ARRAY[w.url, w.events] FROM webhook_subscriptions w"
        f" WHERE w.subject_id = {table}.id) END"
    )


def webhook_of(found: Sequence[str] | None) -> Webhook | None:
    """What was asked for, from what `shown` selected."""
    return None if found is None else Webhook(found[0], tuple(found[1].split()))
