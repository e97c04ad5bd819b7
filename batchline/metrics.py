"""Every metric of every process: name, kind and meaning in one place."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

REQUESTS = Counter(
    "batchline_http_requests_total", "Answers, by route and status", ["route", "status"], registry=REGISTRY
)
SUBMITTED = Counter("batchline_jobs_submitted_total", "Jobs answered with 202 or 200", ["model"], registry=REGISTRY)
SHADOWS = Counter(
    "batchline_shadows_total",
    "Copies of jobs for a shadow version, by outcome: sent, or dropped for backlog, full (this process), trouble",
    ["model", "outcome"],
    registry=REGISTRY,
)
REFUSED = Counter("batchline_jobs_refused_total", "Submits refused, by error code", ["code"], registry=REGISTRY)
GROUP_SIZE = Histogram("batchline_commit_group_jobs", "Jobs per group commit", registry=REGISTRY, buckets=_ROWS)
COMMIT_SECONDS = Histogram("batchline_commit_seconds", "Time of one group commit", registry=REGISTRY, buckets=_SECONDS)
NUDGES = Counter(
    "batchline_nudges_total",
    "Nudges, by outcome: sent, marked (one is out already), enough (nobody takes them), failed",
    ["outcome"],
    registry=REGISTRY,
)

POSTGRES_ERRORS = Counter(
    "batchline_postgres_errors_total",
    "Calls that Postgres did not do, repeats included, by why: unanswered, disk_full, schema (run `batchline migrate`)",
    ["why"],
    registry=REGISTRY,
)
CLOCK_OFF = Gauge(
    "batchline_clock_off_seconds",
    "This machine's clock less Postgres', asked once a minute by API and autoscaler",
    registry=REGISTRY,
)
QUEUE_JOBS = Gauge(
    "batchline_queue_jobs", "Jobs and slices that wait, as each API last counted", ["pool", "lane"], registry=REGISTRY
)
QUEUE_ROWS = Gauge("batchline_queue_rows", "Rows that wait, likewise", ["pool", "lane"], registry=REGISTRY)
QUEUE_OLDEST = Gauge(
    "batchline_queue_oldest_seconds", "Age of what waits longest, likewise", ["pool", "lane"], registry=REGISTRY
)

CLAIMED = Counter("batchline_jobs_claimed_total", "Jobs claimed", ["model"], registry=REGISTRY)
FINISHED = Counter("batchline_jobs_finished_total", "Jobs finished, by status", ["model", "status"], registry=REGISTRY)
STALE = Counter(
    "batchline_stale_finishes_total", "Results dropped since the attempt was no longer ours", registry=REGISTRY
)
MICRO_BATCH_ROWS = Histogram(
    "batchline_micro_batch_rows", "Rows per forward pass", ["model"], registry=REGISTRY, buckets=_ROWS
)
STAGE_SECONDS = Histogram(
    "batchline_stage_seconds",
    "Time by stage: claim, collate, device_wait, predict, write",
    ["stage"],
    registry=REGISTRY,
    buckets=_SECONDS,
)
ROW_ERRORS = Counter(
    "batchline_row_errors_total", "Rows that ended with an error of their own", ["model", "code"], registry=REGISTRY
)
LEASES_LOST = Counter(
    "batchline_worker_leases_lost_total", "Times that a worker's lease ran out while it lived", registry=REGISTRY
)
MODELS_LOADED = Gauge("batchline_models_loaded_bytes", "Bytes of loaded models", registry=REGISTRY)

CHORE_RUNS = Counter(
    "batchline_chore_runs_total", "Runs of each chore, by outcome", ["chore", "outcome"], registry=REGISTRY
)
RESCUED = Counter("batchline_jobs_rescued_total", "Jobs taken back from workers whose lease expired", registry=REGISTRY)
EXPEDITED = Counter(
    "batchline_slices_expedited_total", "Slices put first since their deadline is near", ["pool"], registry=REGISTRY
)
POISONED = Counter(
    "batchline_jobs_poisoned_total", "Jobs failed since they end the worker's process", registry=REGISTRY
)
BATCHES_ENDED = Counter("batchline_batches_ended_total", "Batches ended, by status", ["status"], registry=REGISTRY)
BATCHES_PUT_OFF = Counter(
    "batchline_batches_put_off_total",
    "Times that a batch is tried again later, by step: plan, end",
    ["step"],
    registry=REGISTRY,
)
SCHEDULE_RUNS = Counter(
    "batchline_schedule_runs_total",
    "Fire times dealt with, by outcome: submitted, queued (counts again when its turn comes), skipped, failed",
    ["outcome"],
    registry=REGISTRY,
)
LEADER = Gauge("batchline_scheduler_leader", "1 while this process is the leader", registry=REGISTRY)

WEBHOOK_ATTEMPTS = Counter(
    "batchline_webhook_attempts_total",
    "Attempts to deliver a webhook, by outcome: delivered, again (tried later), given_up, gone (410: disabled)",
    ["outcome"],
    registry=REGISTRY,
)
WEBHOOKS_OVERDUE = Gauge(
    "batchline_webhooks_overdue_seconds",
    "For how long the message that waits longest has been due, as every scheduler sees it",
    registry=REGISTRY,
)
WEBHOOKS_IN_FLIGHT = Gauge(
    "batchline_webhooks_in_flight", "Webhooks that this process is sending now", registry=REGISTRY
)

BUDGET = Gauge(
    "batchline_budget_per_day", "Budget of a day (UTC) of the pool; infinite without one", ["pool"], registry=REGISTRY
)
BUDGET_SPENT = Gauge(
    "batchline_budget_spent_today", "Cost of the pool's workers since midnight UTC", ["pool"], registry=REGISTRY
)

AUTOSCALER_LEADER = Gauge("batchline_autoscaler_leader", "1 while this process is the leader", registry=REGISTRY)
WORKERS_DESIRED = Gauge(
    "batchline_autoscaler_desired_workers", "Workers wanted, limits included", ["pool"], registry=REGISTRY
)
WORKERS_LIVE = Gauge(
    "batchline_autoscaler_live_workers", "Workers by heartbeat that take work", ["pool"], registry=REGISTRY
)
WORKERS_PENDING = Gauge(
    "batchline_autoscaler_pending_workers", "Workers launched and not yet registered", ["pool"], registry=REGISTRY
)
WORKERS_DRAINING = Gauge(
    "batchline_autoscaler_draining_workers", "Live workers that take nothing new", ["pool"], registry=REGISTRY
)
QUEUED_ROWS = Gauge("batchline_autoscaler_queued_rows", "Rows waiting, both lanes", ["pool"], registry=REGISTRY)
RUNNING_ROWS = Gauge("batchline_autoscaler_running_rows", "Rows claimed and not finished", ["pool"], registry=REGISTRY)
OLDEST_AGE = Gauge(
    "batchline_autoscaler_oldest_age_seconds", "Age of the first queued online job", ["pool"], registry=REGISTRY
)
DECISIONS = Counter(
    "batchline_autoscaler_decisions_total",
    "Decisions of the leader, one a tick, by what they change: up, down, same",
    ["pool", "change"],
    registry=REGISTRY,
)
LAUNCHED = Counter(
    "batchline_autoscaler_launched_total", "Instances brought by launches", ["pool", "provider"], registry=REGISTRY
)
PROVIDER_ERRORS = Counter(
    "batchline_autoscaler_provider_errors_total",
    "Calls that a provider did not do, by call (launch, list, end) and why: capacity, throttled, refused, unknown",
    ["pool", "provider", "call", "trouble"],
    registry=REGISTRY,
)


# A series that begins with its first event shows no increase for it, and these events are rare.
for _counter, _values in (
    (POSTGRES_ERRORS, ("unanswered", "disk_full", "schema")),
    (BATCHES_ENDED, ("completed", "failed", "cancelled", "expired")),
    (BATCHES_PUT_OFF, ("plan", "end")),
    (SCHEDULE_RUNS, ("submitted", "queued", "skipped", "failed")),
):
    for _value in _values:
        _counter.labels(_value)


def serve(port: int, host: str = "127.0.0.1") -> None:
    """Answer GET /metrics on a thread of its own; port 0 switches it off."""
    if port:
        start_http_server(port, host, registry=REGISTRY)
