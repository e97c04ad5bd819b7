"""The tables, as SQLAlchemy Core sees them; a test holds them equal to what the migrations make.

`jobs` is narrow and updated three times a job; what is large is inserted once beside it (`job_inputs`, `job_results`).
A slice of a batch is a job of lane `bulk` and a row of `slices` beside it. An instance is a machine or process that the
autoscaler has launched; its workers name it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB

from batchline.store import schema_scaling, schema_webhooks
from batchline.store.schema_parts import AT, BATCH_STATUS, EMPTY, FALSE, LANE, NOW, STATUS, ZERO, metadata

__all__ = ["metadata", "schema_scaling", "schema_webhooks"]

tenants = Table(
    "tenants",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", AT, nullable=False, server_default=NOW),
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
    Column("created_at", AT, nullable=False, server_default=NOW),
    Column("revoked_at", AT),
)

models = Table(
    "models",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("pool", String, nullable=False, comment="from the spec's policy"),
    Column("spec", JSON, nullable=False),
    Column("created_at", AT, nullable=False, server_default=NOW),
    UniqueConstraint("name", "version"),
)

traffic = Table(
    "traffic",
    metadata,
    Column("model", String, primary_key=True, comment="its name"),
    Column("production", Integer, nullable=False, comment="this and below: versions"),
    Column("canary", Integer),
    Column("canary_percent", Float),
    Column("shadow", Integer),
    Column("updated_at", AT, nullable=False, server_default=NOW),
)

shadows = Table(
    "shadows",
    metadata,
    Column("id", Uuid, primary_key=True, comment="the copy, a job of tenant -1"),
    Column("of", Uuid, nullable=False, comment="the client's job"),
    Column("model_id", Integer, nullable=False, comment="the copy's"),
    Index("shadows_model", "model_id", "id"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True, comment="one per process incarnation"),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pool", String, nullable=False),
    Column("device", String, nullable=False),
    Column("started_at", AT, nullable=False, server_default=NOW),
    Column("heartbeat_at", AT, nullable=False, server_default=NOW),
    Column("lease_until", AT, nullable=False),
    Column("draining", Boolean, nullable=False, server_default=FALSE),
    Column("models", String, nullable=False, server_default="", comment="loaded model refs, space-separated"),
    Column("rows_per_s", Float, nullable=False, server_default=ZERO),
    Column("instance", String, nullable=False, server_default=EMPTY),
    Column("rows_done", BigInteger, nullable=False, server_default=ZERO),
    Column("bulk_rows_per_s", Float, nullable=False, server_default=ZERO),
    Column(
        "speeds",
        JSONB,
        nullable=False,
        server_default=text("'{}'"),
        comment="{model_id: [online, bulk]}, rows/s; 0: never",
    ),
    Index("workers_instance", "instance", postgresql_where=text("instance <> ''")),
)

pools = Table(
    "pools",
    metadata,
    Column("name", String, primary_key=True),
    Column("rows_done", BigInteger, nullable=False, server_default=ZERO, comment="by pruned workers"),
    Column("rows_per_s", Float, nullable=False, server_default=ZERO, comment="of the last one pruned"),
    Column("bulk_rows_per_s", Float, nullable=False, server_default=ZERO, comment="likewise"),
)

model_speeds = Table(
    "model_speeds",
    metadata,
    Column("model_id", Integer, primary_key=True, autoincrement=False),
    Column("online", Float, comment="rows/s of the last one pruned that had measured"),
    Column("bulk", Float, comment="likewise"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("model_id", Integer, nullable=False),
    Column("lane", LANE, nullable=False),
    Column("status", STATUS, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("rank", BigInteger, nullable=False, comment="place in the queue, microseconds; smaller first"),
    Column("rows", Integer, nullable=False),
    Column("rows_failed", Integer, nullable=False, server_default=ZERO),
    Column("attempt", Integer, nullable=False, server_default=ZERO, comment="the fence: grows at every claim"),
    Column("failures", SmallInteger, nullable=False, server_default=ZERO, comment="the budget: crashes alone, errors"),
    Column("suspect", Boolean, nullable=False, server_default=FALSE, comment="crashed in company: runs alone"),
    Column("exposed", Boolean, nullable=False, server_default=FALSE, comment="alone in a forward pass right now"),
    Column("worker_id", Uuid),
    Column("created_at", AT, nullable=False, server_default=NOW),
    Column("run_at", AT, comment="not claimable before; the dispatch chore clears it"),
    Column("started_at", AT),
    Column("finished_at", AT),
    Column("deadline_at", AT),
    Column("code", String, comment="why it failed"),
    Column("metadata", String, comment="the client's, JSON text"),
    Column("result_pruned", Boolean, nullable=False, server_default=FALSE),
    Column("webhook", Boolean, nullable=False, server_default=FALSE, comment="webhook_subscriptions has its row"),
    Index(
        "jobs_claim",
        "model_id",
        "lane",
        "rank",
        postgresql_where=text("status = 'queued' AND run_at IS NULL AND NOT suspect"),
    ),
    Index(
        "jobs_suspect",
        "model_id",
        "lane",
        "rank",
        postgresql_where=text("status = 'queued' AND run_at IS NULL AND suspect"),
    ),
    Index("jobs_running", "worker_id", postgresql_where=text("status = 'running'")),
    Index("jobs_run_at", "run_at", postgresql_where=text("status = 'queued' AND run_at IS NOT NULL")),
    Index("jobs_deadline", "deadline_at", postgresql_where=text("status = 'queued' AND deadline_at IS NOT NULL")),
    Index("jobs_online", "tenant_id", "id", postgresql_where=text("lane = 'online'")),
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
    Column("created_at", AT, nullable=False, server_default=NOW),
    Index("idempotency_keys_created_at", "created_at"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String, primary_key=True),
    Column("holder", Uuid, nullable=False),
    Column("lease_until", AT, nullable=False),
    Column("since", AT, nullable=False, server_default=NOW, comment="when this holder took it"),
)

backlog = Table(
    "backlog",
    metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("model_id", Integer, primary_key=True),
    Column("lane", LANE, primary_key=True),
    Column("jobs", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("oldest_at", AT, nullable=False),
)

chore_marks = Table(
    "chore_marks",
    metadata,
    Column("name", String, primary_key=True),
    Column("at", AT, nullable=False, comment="when it last ran whole"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("kind", String, nullable=False, comment="data_set or requests"),
    Column("status", BATCH_STATUS, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="batchline.batch.DataSet or Requests, JSON"),
    Column("model_id", Integer),
    Column("priority", SmallInteger, nullable=False),
    Column("error_threshold", Float),
    Column("metadata", String, comment="the client's, JSON text"),
    Column("parent_id", Uuid, comment="of a retry: the batch whose failed rows it does"),
    Column("schedule_id", Uuid),
    Column("fire_at", AT),
    Column("input_file_id", Uuid),
    Column("output_file_id", Uuid),
    Column("error_file_id", Uuid),
    Column("errors", String, comment="[batchline.batch.BatchFault], JSON text"),
    Column("note", String, comment="the planner's, JSON text"),
    Column("created_at", AT, nullable=False, server_default=NOW),
    Column("deadline_at", AT),
    Column("in_progress_at", AT),
    Column("finalizing_at", AT),
    Column("completed_at", AT),
    Column("failed_at", AT),
    Column("expired_at", AT),
    Column("cancelling_at", AT),
    Column("cancelled_at", AT),
    Column("ended_at", AT, comment="whichever of the four it was"),
    Column("paused_at", AT),
    Column("held", Boolean, nullable=False, server_default=FALSE, comment="paused, and no slice can come back"),
    Column("holder", Uuid, comment="who plans or ends it, or did so last"),
    Column("lease_until", AT, comment="nobody else takes it before"),
    Column("rows_total", BigInteger, nullable=False, server_default=ZERO, comment="as planned; frozen at the end"),
    Column("rows_succeeded", BigInteger, nullable=False, server_default=ZERO, comment="this and below: at the end"),
    Column("rows_failed", BigInteger, nullable=False, server_default=ZERO),
    Column("rows_cancelled", BigInteger, nullable=False, server_default=ZERO),
    Column("rows_expired", BigInteger, nullable=False, server_default=ZERO),
    Column("slices", Integer, nullable=False, server_default=ZERO),
    Column("results_pruned", Boolean, nullable=False, server_default=FALSE),
    Column("webhook", Boolean, nullable=False, server_default=FALSE, comment="webhook_subscriptions has its row"),
    Index("batches_tenant", "tenant_id", "id"),
    Index("batches_open", "status", "id", postgresql_where=text("ended_at IS NULL")),
    Index("batches_paused", "id", postgresql_where=text("ended_at IS NULL AND paused_at IS NOT NULL AND NOT held")),
    Index("batches_schedule", "schedule_id", postgresql_where=text("ended_at IS NULL AND schedule_id IS NOT NULL")),
    Index("batches_file", "input_file_id", postgresql_where=text("ended_at IS NULL AND input_file_id IS NOT NULL")),
    Index("batches_results", "ended_at", postgresql_where=text("ended_at IS NOT NULL AND NOT results_pruned")),
    Index("batches_old", "ended_at", postgresql_where=text("ended_at IS NOT NULL AND results_pruned")),
)

slices = Table(
    "slices",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("batch_id", Uuid, nullable=False),
    Column("number", Integer, nullable=False),
    Column("first_row", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False, comment="as planned; as found, once it is finished"),
    Column("attempt", Integer, nullable=False, server_default=ZERO, comment="whose progress rows_done is"),
    Column("rows_done", Integer, nullable=False, server_default=ZERO),
    Column("rows_failed", Integer, nullable=False, server_default=ZERO, comment="of a slice that has ended"),
    Column("crashes", Integer, nullable=False, server_default=ZERO, comment="of its process, while it ran alone"),
    Column("exposed_from", Integer, comment="row offsets that were last alone in a forward pass"),
    Column("exposed_upto", Integer),
    Column("died", Boolean, nullable=False, server_default=FALSE, comment="the process, with these rows exposed"),
    Column("poison", ARRAY(Integer), nullable=False, server_default=text("'{}'"), comment="row offsets that kill"),
    Column("failed", LargeBinary, comment="batchline.batch.rows_to_bits"),
    Column("staged", String, comment="batchline.batch.Staged, JSON text; only of a slice that was finished"),
    Column("published", Boolean, nullable=False, server_default=FALSE),
    Index("slices_batch", "batch_id", "number", unique=True),
    Index("slices_first_row", "batch_id", "first_row"),
    Index("slices_faulty", "batch_id", postgresql_where=text("rows_failed > 0")),
    Index("slices_unpublished", "batch_id", postgresql_where=text("staged IS NOT NULL AND NOT published")),
)

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("first_row", BigInteger, primary_key=True, comment="of the batch"),
    Column("rows", Integer, nullable=False),
    Column("lines", LargeBinary, nullable=False, comment="JSON texts with a newline behind each"),
)

files = Table(
    "files",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("purpose", String, nullable=False),
    Column("filename", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("blob", String, nullable=False, comment="key in the blob store"),
    Column("created_at", AT, nullable=False, server_default=NOW),
    Column("expires_at", AT),
    Column("deleted_at", AT),
    Index("files_tenant", "tenant_id", "id", postgresql_where=text("deleted_at IS NULL")),
    Index("files_created", "created_at", postgresql_where=text("deleted_at IS NULL")),
    Index("files_expires", "expires_at", postgresql_where=text("deleted_at IS NULL AND expires_at IS NOT NULL")),
    Index("files_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
)

schedules = Table(
    "schedules",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    Column("name", String, nullable=False),
    Column("cron", String, nullable=False),
    Column("timezone", String, nullable=False),
    Column("batch", String, nullable=False, comment="body of POST /v1/batches, JSON text"),
    Column("catch_up", String, nullable=False),
    Column("overlap", String, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", AT, nullable=False, server_default=NOW),
    Column("next_fire_at", AT),
    UniqueConstraint("tenant_id", "name"),
    Index("schedules_tenant", "tenant_id", "id"),
    Index("schedules_due", "next_fire_at", postgresql_where=text("enabled AND next_fire_at IS NOT NULL")),
)

schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column("schedule_id", Uuid, primary_key=True),
    Column("fire_at", AT, primary_key=True),
    Column("outcome", String, nullable=False, comment="submitted, skipped, queued or failed"),
    Column("detail", String, comment="why"),
    Column("batch_id", Uuid),
    Column("created_at", AT, nullable=False, server_default=NOW),
    Index("schedule_runs_old", "created_at"),
    Index("schedule_runs_queued", "schedule_id", "fire_at", postgresql_where=text("outcome = 'queued'")),
)
