"""Batches, their slices and results, files, schedules."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


STATUS = postgresql.ENUM(
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
    name="batch_status",
    create_type=False,
)


def upgrade() -> None:
    STATUS.create(op.get_bind())
    _batches()
    _slices()
    _files()
    _schedules()
    _suspects("model_id", "lane", "rank")
    # A list of jobs shows no slices; it should not have to pass over them.
    op.drop_index("jobs_tenant", "jobs")
    op.create_index("jobs_online", "jobs", ["tenant_id", "id"], postgresql_where=sa.text("lane = 'online'"))
    op.execute("ALTER TABLE batches SET (fillfactor = 70)")
    # A slice's row is updated once a second while it runs: leave room on the page.
    op.execute("ALTER TABLE slices SET (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02)")
    op.execute("ALTER TABLE batch_lines ALTER COLUMN lines SET STORAGE EXTERNAL")


def downgrade() -> None:
    for table in ("schedule_runs", "schedules", "files", "batch_lines", "slices", "batches"):
        op.drop_table(table)
    STATUS.drop(op.get_bind())
    op.drop_index("jobs_online", "jobs")
    op.create_index("jobs_tenant", "jobs", ["tenant_id", "id"])
    _suspects("model_id", "rank")


def _suspects(*columns: str) -> None:
    """Suspects of the lanes run apart since there are slices."""
    op.drop_index("jobs_suspect", "jobs")
    where = sa.text("status = 'queued' AND run_at IS NULL AND suspect")
    op.create_index("jobs_suspect", "jobs", [*columns], postgresql_where=where)


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False, comment="data_set or requests"),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="batchline.batch.DataSet or Requests, JSON"),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("error_threshold", sa.Float(), nullable=True),
        sa.Column("metadata", sa.String(), nullable=True, comment="the client's, JSON text"),
        sa.Column("parent_id", sa.Uuid(), nullable=True, comment="of a retry: the batch whose failed rows it does"),
        sa.Column("schedule_id", sa.Uuid(), nullable=True),
        sa.Column("fire_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("input_file_id", sa.Uuid(), nullable=True),
        sa.Column("output_file_id", sa.Uuid(), nullable=True),
        sa.Column("error_file_id", sa.Uuid(), nullable=True),
        sa.Column("errors", sa.String(), nullable=True, comment="[batchline.batch.BatchFault], JSON text"),
        sa.Column("note", sa.String(), nullable=True, comment="the planner's, JSON text"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("in_progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finalizing_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelling_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True, comment="whichever of the four it was"),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "held",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="paused, and no slice can come back",
        ),
        sa.Column("holder", sa.Uuid(), nullable=True, comment="who plans or ends it, or did so last"),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True, comment="nobody else takes it before"),
        sa.Column(
            "rows_total",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="as planned; frozen at the end",
        ),
        sa.Column(
            "rows_succeeded",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="this and below: at the end",
        ),
        sa.Column("rows_failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows_cancelled", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows_expired", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("slices", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("results_pruned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "batches_file",
        "batches",
        ["input_file_id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL AND input_file_id IS NOT NULL"),
    )
    op.create_index(
        "batches_old",
        "batches",
        ["ended_at"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NOT NULL AND results_pruned"),
    )
    op.create_index(
        "batches_open", "batches", ["status", "id"], unique=False, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index(
        "batches_paused",
        "batches",
        ["id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL AND paused_at IS NOT NULL AND NOT held"),
    )
    op.create_index(
        "batches_results",
        "batches",
        ["ended_at"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NOT NULL AND NOT results_pruned"),
    )
    op.create_index(
        "batches_schedule",
        "batches",
        ["schedule_id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL AND schedule_id IS NOT NULL"),
    )
    op.create_index("batches_tenant", "batches", ["tenant_id", "id"], unique=False)


def _slices() -> None:
    op.create_table(
        "slices",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("first_row", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False, comment="as planned; as found, once it is finished"),
        sa.Column(
            "attempt", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="whose progress rows_done is"
        ),
        sa.Column("rows_done", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "rows_failed",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of a slice that has ended",
        ),
        sa.Column(
            "crashes",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of its process, while it ran alone",
        ),
        sa.Column(
            "exposed_from", sa.Integer(), nullable=True, comment="row offsets that were last alone in a forward pass"
        ),
        sa.Column("exposed_upto", sa.Integer(), nullable=True),
        sa.Column(
            "died",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="the process, with these rows exposed",
        ),
        sa.Column(
            "poison",
            postgresql.ARRAY(sa.Integer()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="row offsets that kill",
        ),
        sa.Column("failed", sa.LargeBinary(), nullable=True, comment="batchline.batch.rows_to_bits"),
        sa.Column(
            "staged",
            sa.String(),
            nullable=True,
            comment="batchline.batch.Staged, JSON text; only of a slice that was finished",
        ),
        sa.Column("published", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("slices_batch", "slices", ["batch_id", "number"], unique=True)
    op.create_index("slices_faulty", "slices", ["batch_id"], unique=False, postgresql_where=sa.text("rows_failed > 0"))
    op.create_index("slices_first_row", "slices", ["batch_id", "first_row"], unique=False)
    op.create_index(
        "slices_unpublished",
        "slices",
        ["batch_id"],
        unique=False,
        postgresql_where=sa.text("staged IS NOT NULL AND NOT published"),
    )
    op.create_table(
        "batch_lines",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_row", sa.BigInteger(), nullable=False, comment="of the batch"),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("lines", sa.LargeBinary(), nullable=False, comment="JSON texts with a newline behind each"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "first_row"),
    )


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("blob", sa.String(), nullable=False, comment="key in the blob store"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "files_created", "files", ["created_at"], unique=False, postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.create_index(
        "files_deleted", "files", ["deleted_at"], unique=False, postgresql_where=sa.text("deleted_at IS NOT NULL")
    )
    op.create_index(
        "files_expires",
        "files",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL AND expires_at IS NOT NULL"),
    )
    op.create_index(
        "files_tenant", "files", ["tenant_id", "id"], unique=False, postgresql_where=sa.text("deleted_at IS NULL")
    )


def _schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("cron", sa.String(), nullable=False),
        sa.Column("timezone", sa.String(), nullable=False),
        sa.Column("batch", sa.String(), nullable=False, comment="body of POST /v1/batches, JSON text"),
        sa.Column("catch_up", sa.String(), nullable=False),
        sa.Column("overlap", sa.String(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("next_fire_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    op.create_index(
        "schedules_due",
        "schedules",
        ["next_fire_at"],
        unique=False,
        postgresql_where=sa.text("enabled AND next_fire_at IS NOT NULL"),
    )
    op.create_index("schedules_tenant", "schedules", ["tenant_id", "id"], unique=False)
    op.create_table(
        "schedule_runs",
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("fire_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False, comment="submitted, skipped, queued or failed"),
        sa.Column("detail", sa.String(), nullable=True, comment="why"),
        sa.Column("batch_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", "fire_at"),
    )
    op.create_index("schedule_runs_old", "schedule_runs", ["created_at"], unique=False)
    op.create_index(
        "schedule_runs_queued",
        "schedule_runs",
        ["schedule_id", "fire_at"],
        unique=False,
        postgresql_where=sa.text("outcome = 'queued'"),
    )
