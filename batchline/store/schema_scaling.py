"""The autoscaler's tables: launches, instances, what was decided, and what it all costs."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    Index,
    Integer,
    String,
    Table,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSON

from batchline.store.schema_parts import AT, EMPTY, INSTANCE_STATUS, NOW, ZERO, metadata

launches = Table(
    "launches",
    metadata,
    Column("id", Uuid, primary_key=True, comment="the token of the provider's call, and its tag"),
    Column("pool", String, nullable=False),
    Column("provider", String, nullable=False),
    Column("count", Integer, nullable=False, comment="instances wanted"),
    Column("total", Integer, nullable=False, comment="of the pool, these included"),
    Column("created_at", AT, nullable=False, server_default=NOW),
    Column("tries", Integer, nullable=False, server_default=ZERO, comment="calls that failed"),
    Column("error", String, nullable=False, server_default=EMPTY, comment="why, the last time"),
    Column("settled_at", AT, comment="the outcome is known"),
    Index("launches_open", "created_at", postgresql_where=text("settled_at IS NULL")),
    Index("launches_pool", "pool", "created_at"),
)

instances = Table(
    "instances",
    metadata,
    Column("id", String, primary_key=True, comment="the provider's name of it"),
    Column("pool", String, nullable=False),
    Column("provider", String, nullable=False),
    Column("launch_id", Uuid),
    Column("status", INSTANCE_STATUS, nullable=False),
    Column("kind", String, nullable=False, comment="what is paid for"),
    Column("zone", String, nullable=False),
    Column("market", String, nullable=False, comment="spot or on_demand"),
    Column("price_per_hour", Float, nullable=False),
    Column("on_demand_per_hour", Float, nullable=False),
    Column("launched_at", AT, nullable=False, server_default=NOW),
    Column("registered_at", AT, comment="its first worker did"),
    Column("draining_at", AT),
    Column("gone_at", AT),
    Column("reason", String, nullable=False, server_default=EMPTY, comment="why it was given up"),
    Index("instances_open", "pool", "status", postgresql_where=text("status <> 'gone'")),
    Index("instances_gone", "gone_at", postgresql_where=text("status = 'gone'")),
    Index("instances_launch", "launch_id"),
)

scalings = Table(
    "scalings",
    metadata,
    Column("pool", String, primary_key=True),
    Column("at", AT, primary_key=True),
    Column("desired", Integer, nullable=False),
    Column("reason", String, nullable=False),
    Column("signals", JSON, nullable=False, comment="{name: number}"),
    Index("scalings_at", "at"),
)

worker_hours = Table(
    "worker_hours",
    metadata,
    Column("hour", AT, primary_key=True, comment="of UTC, by the worker's clock"),
    Column("machine", String, primary_key=True, comment="the instance; of a worker without one, its own id"),
    Column("worker_id", Uuid, primary_key=True),
    Column("tenant_id", Integer, primary_key=True, autoincrement=False, comment="0: nobody's, idle"),
    Column("model_id", Integer, primary_key=True, autoincrement=False),
    Column("batch_id", Uuid, primary_key=True, comment="all zeros: of no batch"),
    Column("pool", String, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("price_per_hour", Float, nullable=False, comment="of the pool, when this was reported"),
    Index(
        "worker_hours_batch",
        "batch_id",
        "hour",
        postgresql_where=text("batch_id <> '00000000-0000-0000-0000-000000000000'"),
    ),
    Index("worker_hours_worker", "worker_id", "hour"),
)

pool_money = Table(
    "pool_money",
    metadata,
    Column("pool", String, primary_key=True),
    Column("price_per_hour", Float, nullable=False, server_default=ZERO, comment="as configured"),
    Column("budget_per_day", Float),
    Column("spent_today", Float, nullable=False, server_default=ZERO),
    Column("standing", String, nullable=False, comment="well, warned or spent"),
    Column("bulk_held_until", AT, comment="no slice of the pool is claimed before"),
    Column("updated_at", AT, nullable=False, server_default=NOW),
)
