"""The ledger of instances: launches, what they brought, what was decided; workers name theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

STATUS = postgresql.ENUM(
    "starting", "serving", "draining", "stopping", "gone", name="instance_status", create_type=False
)
_AT = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_ZERO = sa.text("0")
_EMPTY = sa.text("''")


def upgrade() -> None:
    STATUS.create(op.get_bind())
    _workers()
    _launches()
    _instances()
    _scalings()


def downgrade() -> None:
    for table in ("scalings", "instances", "launches", "pools"):
        op.drop_table(table)
    STATUS.drop(op.get_bind())
    op.drop_index("workers_instance", "workers")
    op.drop_column("workers", "bulk_rows_per_s")
    op.drop_column("workers", "rows_done")
    op.drop_column("workers", "instance")


def _workers() -> None:
    op.add_column("workers", sa.Column("instance", sa.String(), server_default=_EMPTY, nullable=False))
    op.add_column("workers", sa.Column("rows_done", sa.BigInteger(), server_default=_ZERO, nullable=False))
    op.add_column("workers", sa.Column("bulk_rows_per_s", sa.Float(), server_default=_ZERO, nullable=False))
    op.create_index("workers_instance", "workers", ["instance"], postgresql_where=sa.text("instance <> ''"))
    op.create_table(
        "pools",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("rows_done", sa.BigInteger(), server_default=_ZERO, nullable=False, comment="by pruned workers"),
        sa.Column("rows_per_s", sa.Float(), server_default=_ZERO, nullable=False, comment="of the last one pruned"),
        sa.Column("bulk_rows_per_s", sa.Float(), server_default=_ZERO, nullable=False, comment="likewise"),
        sa.PrimaryKeyConstraint("name"),
    )


def _launches() -> None:
    op.create_table(
        "launches",
        sa.Column("id", sa.Uuid(), nullable=False, comment="the token of the provider's call, and its tag"),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False, comment="instances wanted"),
        sa.Column("total", sa.Integer(), nullable=False, comment="of the pool, these included"),
        sa.Column("created_at", _AT, server_default=_NOW, nullable=False),
        sa.Column("tries", sa.Integer(), server_default=_ZERO, nullable=False, comment="calls that failed"),
        sa.Column("error", sa.String(), server_default=_EMPTY, nullable=False, comment="why, the last time"),
        sa.Column("settled_at", _AT, nullable=True, comment="the outcome is known"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("launches_open", "launches", ["created_at"], postgresql_where=sa.text("settled_at IS NULL"))
    op.create_index("launches_pool", "launches", ["pool", "created_at"])


def _instances() -> None:
    op.create_table(
        "instances",
        sa.Column("id", sa.String(), nullable=False, comment="the provider's name of it"),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("launch_id", sa.Uuid(), nullable=True),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("kind", sa.String(), nullable=False, comment="what is paid for"),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("market", sa.String(), nullable=False, comment="spot or on_demand"),
        sa.Column("price_per_hour", sa.Float(), nullable=False),
        sa.Column("on_demand_per_hour", sa.Float(), nullable=False),
        sa.Column("launched_at", _AT, server_default=_NOW, nullable=False),
        sa.Column("registered_at", _AT, nullable=True, comment="its first worker did"),
        sa.Column("draining_at", _AT, nullable=True),
        sa.Column("gone_at", _AT, nullable=True),
        sa.Column("reason", sa.String(), server_default=_EMPTY, nullable=False, comment="why it was given up"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("instances_open", "instances", ["pool", "status"], postgresql_where=sa.text("status <> 'gone'"))
    op.create_index("instances_gone", "instances", ["gone_at"], postgresql_where=sa.text("status = 'gone'"))
    op.create_index("instances_launch", "instances", ["launch_id"])


def _scalings() -> None:
    op.create_table(
        "scalings",
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("at", _AT, nullable=False),
        sa.Column("desired", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("signals", postgresql.JSON(), nullable=False, comment="{name: number}"),
        sa.PrimaryKeyConstraint("pool", "at"),
    )
    op.create_index("scalings_at", "scalings", ["at"])
