"""Costs: whose time workers spent, by the hour; price, budget and standing of each pool."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_AT = sa.DateTime(timezone=True)
_ZERO = sa.text("0")


def upgrade() -> None:
    op.create_table(
        "worker_hours",
        sa.Column("hour", _AT, nullable=False, comment="of UTC, by the worker's clock"),
        sa.Column("machine", sa.String(), nullable=False, comment="the instance; of a worker without one, its own id"),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False, comment="0: nobody's, idle"),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False, comment="all zeros: of no batch"),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("price_per_hour", sa.Float(), nullable=False, comment="of the pool, when this was reported"),
        sa.PrimaryKeyConstraint("hour", "machine", "worker_id", "tenant_id", "model_id", "batch_id"),
    )
    where = sa.text("batch_id <> '00000000-0000-0000-0000-000000000000'")
    op.create_index("worker_hours_batch", "worker_hours", ["batch_id", "hour"], postgresql_where=where)
    op.create_index("worker_hours_worker", "worker_hours", ["worker_id", "hour"])
    op.create_table(
        "pool_money",
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("price_per_hour", sa.Float(), server_default=_ZERO, nullable=False, comment="as configured"),
        sa.Column("budget_per_day", sa.Float(), nullable=True),
        sa.Column("spent_today", sa.Float(), server_default=_ZERO, nullable=False),
        sa.Column("standing", sa.String(), nullable=False, comment="well, warned or spent"),
        sa.Column("bulk_held_until", _AT, nullable=True, comment="no slice of the pool is claimed before"),
        sa.Column("updated_at", _AT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("pool"),
    )
    # Sums grow every few seconds for an hour: leave room on the page.
    op.execute("ALTER TABLE worker_hours SET (fillfactor = 70)")


def downgrade() -> None:
    op.drop_table("pool_money")
    op.drop_table("worker_hours")
