"""Webhooks: who asked to be told of what, the messages that the ends of jobs and batches write, what became of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_AT = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_FALSE = sa.text("false")
_ZERO = sa.text("0")

# An id is a UUIDv7, as all of ours are (RFC 9562): milliseconds, then random bits; the version is set by two bits.
# An endpoint's row may be missing (it was pruned a moment ago): then it is not disabled.
_WRITE_MESSAGE = """
CREATE FUNCTION batchline_write_message() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  written text := TG_ARGV[0] || '.' || NEW.status;
BEGIN
  INSERT INTO webhook_messages (id, tenant_id, endpoint_id, subject_id, event, status, due_at, ended_at)
  SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
      PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
      52, 1), 53, 1), 'hex')::uuid,
    s.tenant_id, s.endpoint_id, s.subject_id, written,
    CASE WHEN e.disabled_at IS NULL THEN 'pending' ELSE 'disabled' END, now(),
    CASE WHEN e.disabled_at IS NOT NULL THEN now() END
  FROM webhook_subscriptions s LEFT JOIN webhook_endpoints e ON e.id = s.endpoint_id
  WHERE s.subject_id = NEW.id AND (s.events = '' OR written = ANY(string_to_array(s.events, ' ')))
  ON CONFLICT (subject_id, event) DO NOTHING;
  RETURN NULL;
END $$
"""

# The first test is of a boolean that hardly any job has: the others pay no more than that.
_OF_JOBS = """
CREATE TRIGGER jobs_write_message AFTER UPDATE OF status ON jobs FOR EACH ROW
WHEN (NEW.webhook AND OLD.status <> NEW.status AND NEW.status IN ('succeeded', 'failed', 'cancelled', 'expired'))
EXECUTE FUNCTION batchline_write_message('job')
"""
_OF_BATCHES = """
CREATE TRIGGER batches_write_message AFTER UPDATE OF status ON batches FOR EACH ROW
WHEN (NEW.webhook AND OLD.status <> NEW.status AND NEW.status IN ('completed', 'failed', 'cancelled', 'expired'))
EXECUTE FUNCTION batchline_write_message('batch')
"""


def upgrade() -> None:
    for table in ("jobs", "batches"):
        column = sa.Column(
            "webhook", sa.Boolean(), server_default=_FALSE, nullable=False, comment="webhook_subscriptions has its row"
        )
        op.add_column(table, column)
    op.create_table(
        "webhook_secrets",
        sa.Column("tenant_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("secret", sa.String(), nullable=False, comment="whsec_ and base64"),
        sa.Column("previous", sa.String(), nullable=True, comment="signs too, for a day after rotated_at"),
        sa.Column("rotated_at", _AT, nullable=True),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False, comment="made of tenant and url"),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("created_at", _AT, server_default=_NOW, nullable=False),
        sa.Column("disabled_at", _AT, nullable=True),
        sa.Column("disabled_why", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("webhook_endpoints_tenant", "webhook_endpoints", ["tenant_id", "id"])
    op.create_index("webhook_endpoints_created", "webhook_endpoints", ["created_at"])
    op.create_table(
        "webhook_subscriptions",
        sa.Column("subject_id", sa.Uuid(), nullable=False, comment="a job or a batch"),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("events", sa.String(), nullable=False, comment="space-separated; empty: all there are"),
        sa.PrimaryKeyConstraint("subject_id"),
    )
    op.create_index("webhook_subscriptions_endpoint", "webhook_subscriptions", ["endpoint_id"])
    _create_messages()
    op.execute(_WRITE_MESSAGE)
    op.execute(_OF_JOBS)
    op.execute(_OF_BATCHES)


def _create_messages() -> None:
    op.create_table(
        "webhook_messages",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False, comment="pending, delivered, failed or disabled"),
        sa.Column("attempts", sa.Integer(), server_default=_ZERO, nullable=False, comment="the fence"),
        sa.Column("replayed_after", sa.Integer(), server_default=_ZERO, nullable=False, comment="so many attempts"),
        sa.Column("taken", sa.Boolean(), server_default=_FALSE, nullable=False, comment="under way until due_at"),
        sa.Column("created_at", _AT, server_default=_NOW, nullable=False, comment="when the subject ended"),
        sa.Column("due_at", _AT, server_default=_NOW, nullable=False),
        sa.Column("ended_at", _AT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    pending = sa.text("status = 'pending'")
    taken = sa.text("status = 'pending' AND taken")
    op.create_index("webhook_messages_subject", "webhook_messages", ["subject_id", "event"], unique=True)
    op.create_index("webhook_messages_due", "webhook_messages", ["endpoint_id", "due_at"], postgresql_where=pending)
    op.create_index("webhook_messages_taken", "webhook_messages", ["endpoint_id", "due_at"], postgresql_where=taken)
    op.create_index("webhook_messages_tenant", "webhook_messages", ["tenant_id", "id"])
    op.create_index("webhook_messages_status", "webhook_messages", ["tenant_id", "status", "id"])
    op.create_index("webhook_messages_event", "webhook_messages", ["tenant_id", "event", "id"])
    op.create_table(
        "webhook_attempts",
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("nth", sa.Integer(), nullable=False),
        sa.Column("at", _AT, server_default=_NOW, nullable=False, comment="when it had ended"),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("message_id", "nth"),
    )
    # Taken, tried again, ended: clean up before the dead entries of the indexes are many.
    op.execute(
        "ALTER TABLE webhook_messages SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, "
        "autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.05)"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER batches_write_message ON batches")
    op.execute("DROP TRIGGER jobs_write_message ON jobs")
    op.execute("DROP FUNCTION batchline_write_message()")
    for table in (
        "webhook_attempts",
        "webhook_messages",
        "webhook_subscriptions",
        "webhook_endpoints",
        "webhook_secrets",
    ):
        op.drop_table(table)
    for table in ("batches", "jobs"):
        op.drop_column(table, "webhook")
