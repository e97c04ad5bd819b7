"""Speeds by model: what each worker has measured, and what is kept of those that are gone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "workers",
        sa.Column(
            "speeds",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="{model_id: [online, bulk]}, rows/s; 0: never",
        ),
    )
    op.create_table(
        "model_speeds",
        sa.Column("model_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("online", sa.Float(), nullable=True, comment="rows/s of the last one pruned that had measured"),
        sa.Column("bulk", sa.Float(), nullable=True, comment="likewise"),
        sa.PrimaryKeyConstraint("model_id"),
    )


def downgrade() -> None:
    op.drop_table("model_speeds")
    op.drop_column("workers", "speeds")
