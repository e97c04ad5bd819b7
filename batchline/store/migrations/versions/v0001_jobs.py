"""Jobs, workers, catalogue: the first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


LANE = postgresql.ENUM("online", "bulk", name="job_lane", create_type=False)
STATUS = postgresql.ENUM(
    "queued", "running", "succeeded", "failed", "cancelled", "expired", name="job_status", create_type=False
)


def upgrade() -> None:
    LANE.create(op.get_bind())
    STATUS.create(op.get_bind())
    op.create_table(
        "backlog",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("lane", LANE, nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("oldest_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "model_id", "lane"),
    )
    op.create_table(
        "chore_marks",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="when it last ran whole"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key"),
    )
    op.create_index("idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False, comment="rows as batchline.rows packs them"),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "job_results",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column(
            "outputs",
            postgresql.JSON(astext_type=sa.Text()),
            nullable=True,
            comment="one entry a row: {output: value} or null",
        ),
        sa.Column("errors", postgresql.JSON(astext_type=sa.Text()), nullable=True, comment="[{row, code, message}]"),
        sa.Column("timings", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("lane", LANE, nullable=False),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False, comment="place in the queue, microseconds; smaller first"),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("rows_failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "attempt",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="the fence: grows at every claim",
        ),
        sa.Column(
            "failures",
            sa.SmallInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="the budget: crashes alone, errors",
        ),
        sa.Column(
            "suspect",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="crashed in company: runs alone",
        ),
        sa.Column(
            "exposed",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="alone in a forward pass right now",
        ),
        sa.Column("worker_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "run_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="not claimable before; the dispatch chore clears it",
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("code", sa.String(), nullable=True, comment="why it failed"),
        sa.Column("metadata", sa.String(), nullable=True, comment="the client's, JSON text"),
        sa.Column("result_pruned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "jobs_claim",
        "jobs",
        ["model_id", "lane", "rank"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND run_at IS NULL AND NOT suspect"),
    )
    op.create_index(
        "jobs_deadline",
        "jobs",
        ["deadline_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND deadline_at IS NOT NULL"),
    )
    op.create_index(
        "jobs_run_at",
        "jobs",
        ["run_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND run_at IS NOT NULL"),
    )
    op.create_index("jobs_running", "jobs", ["worker_id"], unique=False, postgresql_where=sa.text("status = 'running'"))
    op.create_index(
        "jobs_suspect",
        "jobs",
        ["model_id", "rank"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND run_at IS NULL AND suspect"),
    )
    op.create_index("jobs_tenant", "jobs", ["tenant_id", "id"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "since",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when this holder took it",
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False, comment="from the spec's policy"),
        sa.Column("spec", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "version"),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False, comment="one per process incarnation"),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("draining", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "models", sa.String(), server_default="", nullable=False, comment="loaded model refs, space-separated"
        ),
        sa.Column("rows_per_s", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column(
            "digest", sa.LargeBinary(), nullable=False, comment="sha256 of the key; the key itself is never stored"
        ),
        sa.Column("scopes", sa.String(), nullable=False, comment="space-separated: submit read admin"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    # A job's row is updated at claim and at finish: leave room on the page, and clean up soon.
    op.execute(
        "ALTER TABLE jobs SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, "
        "autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.05)"
    )
    op.execute("ALTER TABLE workers SET (fillfactor = 50)")
    # Written once, read once or twice: pglz costs more CPU than all else that Postgres does for a large job.
    op.execute("ALTER TABLE job_inputs ALTER COLUMN payload SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE job_results ALTER COLUMN outputs SET STORAGE EXTERNAL")
    op.execute("INSERT INTO chore_marks (name, at) VALUES ('backlog', 'epoch')")


def downgrade() -> None:
    for table in (
        "api_keys",
        "workers",
        "tenants",
        "models",
        "leases",
        "jobs",
        "job_results",
        "job_inputs",
        "idempotency_keys",
        "chore_marks",
        "backlog",
    ):
        op.drop_table(table)
    STATUS.drop(op.get_bind())
    LANE.drop(op.get_bind())
