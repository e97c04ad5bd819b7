"""Which version of a model takes its traffic, and the copies of jobs that its shadow version got."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "traffic",
        sa.Column("model", sa.String(), nullable=False, comment="its name"),
        sa.Column("production", sa.Integer(), nullable=False, comment="this and below: versions"),
        sa.Column("canary", sa.Integer(), nullable=True),
        sa.Column("canary_percent", sa.Float(), nullable=True),
        sa.Column("shadow", sa.Integer(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("model"),
    )
    op.create_table(
        "shadows",
        sa.Column("id", sa.Uuid(), nullable=False, comment="the copy, a job of tenant -1"),
        sa.Column("of", sa.Uuid(), nullable=False, comment="the client's job"),
        sa.Column("model_id", sa.Integer(), nullable=False, comment="the copy's"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("shadows_model", "shadows", ["model_id", "id"])
    # Copies are nobody's: a tenant of their own keeps them out of lists, limits and the bills of others.
    op.execute("INSERT INTO tenants (id, name) VALUES (-1, '(shadow)') ON CONFLICT DO NOTHING")


def downgrade() -> None:
    op.drop_table("shadows")
    op.drop_table("traffic")
    op.execute("DELETE FROM tenants WHERE id = -1 AND NOT EXISTS (SELECT FROM api_keys WHERE tenant_id = -1)")
