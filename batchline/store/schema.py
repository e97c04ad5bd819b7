"""The tables, as SQLAlchemy Core sees them; a test holds them equal to what the migrations make.

`jobs` is narrow and updated three times a job; what is large is inserted once beside it (`job_inputs`, `job_results`).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ENUM, JSON

from batchline.job import Lane, Status

metadata = MetaData()

_LANE = ENUM(*[lane.value for lane in Lane], name="job_lane")
_STATUS = ENUM(*[status.value for status in Status], name="job_status")
_AT = DateTime(timezone=True)
_NOW = text("now()")
_FALSE = text("false")
_ZERO = text("0")

tenants = Table(
    "tenants",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", _AT, nullable=False, server_default=_NOW),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("name", String, nullable=False),
    Column(
        "digest", LargeBinary, nullable=False, unique=True, comment="sha256 of the key; the key itself is never stored"
    ),
    Column("scopes", String, nullable=False, comment="space-separated: submit read admin"),
    Column("created_at", _AT, nullable=False, server_default=_NOW),
    Column("revoked_at", _AT),
)

models = Table(
    "models",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("pool", String, nullable=False, comment="from the spec's policy"),
    Column("spec", JSON, nullable=False),
    Column("created_at", _AT, nullable=False, server_default=_NOW),
    UniqueConstraint("name", "version"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True, comment="one per process incarnation"),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pool", String, nullable=False),
    Column("device", String, nullable=False),
    Column("started_at", _AT, nullable=False, server_default=_NOW),
    Column("heartbeat_at", _AT, nullable=False, server_default=_NOW),
    Column("lease_until", _AT, nullable=False),
    Column("draining", Boolean, nullable=False, server_default=_FALSE),
    Column("models", String, nullable=False, server_default="", comment="loaded model refs, space-separated"),
    Column("rows_per_s", Float, nullable=False, server_default=_ZERO),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("model_id", Integer, nullable=False),
    Column("lane", _LANE, nullable=False),
    Column("status", _STATUS, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("rank", BigInteger, nullable=False, comment="place in the queue, microseconds; smaller first"),
    Column("rows", Integer, nullable=False),
    Column("rows_failed", Integer, nullable=False, server_default=_ZERO),
    Column("attempt", Integer, nullable=False, server_default=_ZERO, comment="the fence: grows at every claim"),
    Column("failures", SmallInteger, nullable=False, server_default=_ZERO, comment="the budget: crashes alone, errors"),
    Column("suspect", Boolean, nullable=False, server_default=_FALSE, comment="crashed in company: runs alone"),
    Column("exposed", Boolean, nullable=False, server_default=_FALSE, comment="alone in a forward pass right now"),
    Column("worker_id", Uuid),
    Column("created_at", _AT, nullable=False, server_default=_NOW),
    Column("run_at", _AT, comment="not claimable before; the dispatch chore clears it"),
    Column("started_at", _AT),
    Column("finished_at", _AT),
    Column("deadline_at", _AT),
    Column("code", String, comment="why it failed"),
    Column("metadata", String, comment="the client's, JSON text"),
    Column("result_pruned", Boolean, nullable=False, server_default=_FALSE),
    Index(
        "jobs_claim",
        "model_id",
        "lane",
        "rank",
        postgresql_where=text("status = 'queued' AND run_at IS NULL AND NOT suspect"),
    ),
    Index(
        "jobs_suspect", "model_id", "rank", postgresql_where=text("status = 'queued' AND run_at IS NULL AND suspect")
    ),
    Index("jobs_running", "worker_id", postgresql_where=text("status = 'running'")),
    Index("jobs_run_at", "run_at", postgresql_where=text("status = 'queued' AND run_at IS NOT NULL")),
    Index("jobs_deadline", "deadline_at", postgresql_where=text("status = 'queued' AND deadline_at IS NOT NULL")),
    Index("jobs_tenant", "tenant_id", "id"),
)

job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("payload", LargeBinary, nullable=False, comment="rows as batchline.rows packs them"),
)

job_results = Table(
    "job_results",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("outputs", JSON, comment="one entry a row: {output: value} or null"),
    Column("errors", JSON, comment="[{row, code, message}]"),
    Column("timings", JSON),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("key", String, primary_key=True),
    Column("body_hash", LargeBinary, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("created_at", _AT, nullable=False, server_default=_NOW),
    Index("idempotency_keys_created_at", "created_at"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String, primary_key=True),
    Column("holder", Uuid, nullable=False),
    Column("lease_until", _AT, nullable=False),
    Column("since", _AT, nullable=False, server_default=_NOW, comment="when this holder took it"),
)

backlog = Table(
    "backlog",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("model_id", Integer, primary_key=True),
    Column("lane", _LANE, primary_key=True),
    Column("jobs", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("oldest_at", _AT, nullable=False),
)

chore_marks = Table(
    "chore_marks",
    metadata,
    Column("name", String, primary_key=True),
    Column("at", _AT, nullable=False, comment="when it last ran whole"),
)
