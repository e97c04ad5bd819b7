"""The tables of webhooks. Two triggers, `jobs_write_message` and `batches_write_message`, write the messages.

They stand in the database, so that no way to end a job or a batch can forget it.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, Integer, String, Table, Uuid, text

from batchline.store.schema_parts import AT, FALSE, NOW, ZERO, metadata

secrets = Table(
    "webhook_secrets",
    metadata,
    Column("tenant_id", Integer, primary_key=True, autoincrement=False),
    Column("secret", String, nullable=False, comment="whsec_ and base64"),
    Column("previous", String, comment="signs too, for a day after rotated_at"),
    Column("rotated_at", AT),
)

endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Uuid, primary_key=True, comment="made of tenant and url"),
    Column("tenant_id", Integer, nullable=False),
    Column("url", String, nullable=False),
    Column("created_at", AT, nullable=False, server_default=NOW),
    Column("disabled_at", AT),
    Column("disabled_why", String),
    Index("webhook_endpoints_tenant", "tenant_id", "id"),
    Index("webhook_endpoints_created", "created_at"),
)

subscriptions = Table(
    "webhook_subscriptions",
    metadata,
    Column("subject_id", Uuid, primary_key=True, comment="a job or a batch"),
    Column("tenant_id", Integer, nullable=False),
    Column("endpoint_id", Uuid, nullable=False),
    Column("url", String, nullable=False),
    Column("events", String, nullable=False, comment="space-separated; empty: all there are"),
    Index("webhook_subscriptions_endpoint", "endpoint_id"),
)

messages = Table(
    "webhook_messages",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("endpoint_id", Uuid, nullable=False),
    Column("subject_id", Uuid, nullable=False),
    Column("event", String, nullable=False),
    Column("status", String, nullable=False, comment="pending, delivered, failed or disabled"),
    Column("attempts", Integer, nullable=False, server_default=ZERO, comment="the fence"),
    Column("replayed_after", Integer, nullable=False, server_default=ZERO, comment="so many attempts"),
    Column("taken", Boolean, nullable=False, server_default=FALSE, comment="under way until due_at"),
    Column("created_at", AT, nullable=False, server_default=NOW, comment="when the subject ended"),
    Column("due_at", AT, nullable=False, server_default=NOW),
    Column("ended_at", AT),
    Index("webhook_messages_subject", "subject_id", "event", unique=True),
    Index("webhook_messages_due", "endpoint_id", "due_at", postgresql_where=text("status = 'pending'")),
    Index("webhook_messages_taken", "endpoint_id", "due_at", postgresql_where=text("status = 'pending' AND taken")),
    Index("webhook_messages_tenant", "tenant_id", "id"),
    Index("webhook_messages_status", "tenant_id", "status", "id"),
    Index("webhook_messages_event", "tenant_id", "event", "id"),
)

attempts = Table(
    "webhook_attempts",
    metadata,
    Column("message_id", Uuid, primary_key=True),
    Column("nth", Integer, primary_key=True),
    Column("at", AT, nullable=False, server_default=NOW, comment="when it had ended"),
    Column("status_code", Integer),
    Column("error", String),
    Column("duration_ms", Integer, nullable=False),
)
