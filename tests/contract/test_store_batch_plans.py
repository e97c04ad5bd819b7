"""No statement about batches costs more than what it is about: each goes by an index and touches few pages."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import batch_stack
import pytest
import stack
from explaining import Explaining

from batchline.batch import BatchStatus, Chunk
from batchline.store import Store, schedules, store_on
from batchline.store.postgres import Database

SLICES = 10_000
"""Of the large batch: half of them finished, one in ten with failed rows."""

FILL = f"""
INSERT INTO workers (id, host, pid, pool, device, lease_until)
  VALUES ('00000000-0000-0000-0000-00000000000a', 'here', 1, 'cpu', 'cpu', now() + interval '1 day');
INSERT INTO batches (id, tenant_id, kind, status, body, model_id, priority, in_progress_at, slices, rows_total,
    schedule_id, ended_at, created_at, results_pruned, paused_at, held, input_file_id)
  SELECT uuidv7(-n * interval '10 minutes'), 1 + n %% 3, 'data_set',
    (CASE WHEN n > 300 THEN 'completed' WHEN n %% 50 = 1 THEN 'validating' ELSE 'in_progress' END)::batch_status,
    '{{}}', 1, 5, now() - interval '1 hour', CASE WHEN n = 2 THEN {SLICES} ELSE 2 END,
    CASE WHEN n = 2 THEN {SLICES} ELSE 2 END, gen_random_uuid(),
    CASE WHEN n > 300 THEN now() - n * interval '10 minutes' END, now() - n * interval '10 minutes', n > 1000,
    CASE WHEN n BETWEEN 100 AND 300 THEN now() END, n BETWEEN 102 AND 300, gen_random_uuid()
  FROM generate_series(1, 4000) n;
INSERT INTO slices (job_id, batch_id, number, first_row, rows, rows_failed, staged, published)
  SELECT uuidv7(n * interval '1 millisecond'), b.id, n, n, 1, (n < b.slices / 2 AND n %% 10 = 0)::int,
    CASE WHEN n < b.slices / 2 OR b.ended_at IS NOT NULL THEN '{{}}' END, n < b.slices / 2 OR b.ended_at IS NOT NULL
  FROM batches b, generate_series(0, b.slices - 1) n WHERE b.status <> 'validating';
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, rows_failed, started_at, finished_at,
    attempt, worker_id, result_pruned, run_at)
  SELECT s.job_id, b.tenant_id, 1, 'bulk', (CASE WHEN b.slices > 2 AND s.number = {SLICES} / 2 THEN 'running'
      WHEN s.staged IS NULL THEN 'queued' ELSE 'succeeded' END)::job_status, 5, 0, 1, s.rows_failed,
    now() - interval '2 hours', CASE WHEN s.staged IS NOT NULL THEN now() - interval '1 hour' END, 1,
    '00000000-0000-0000-0000-00000000000a', b.results_pruned, CASE WHEN b.held THEN 'infinity'::timestamptz END
  FROM slices s JOIN batches b ON b.id = s.batch_id;
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows)
  SELECT uuidv7(-n * interval '1 second'), 1, 1, 'online', 'succeeded', 5, n, 1 FROM generate_series(1, 20000) n;
INSERT INTO job_inputs SELECT id, '\\x00' FROM jobs WHERE NOT result_pruned;
INSERT INTO batch_lines SELECT job_id, 1, first_row, 1, '{{"row":0}}\n' FROM slices WHERE staged IS NOT NULL;
INSERT INTO files (id, tenant_id, purpose, filename, bytes, blob, created_at, expires_at, deleted_at)
  SELECT uuidv7(-n * interval '1 minute'), 1 + n %% 3, 'batch', 'x', 1, 'x', now() - n * interval '1 minute',
    now() + interval '1 day', CASE WHEN n %% 1000 = 0 THEN now() END FROM generate_series(1, 20000) n;
INSERT INTO files (id, tenant_id, purpose, filename, bytes, blob)
  SELECT input_file_id, 1, 'batch', 'x', 1, 'x' FROM batches WHERE ended_at IS NULL;
INSERT INTO schedules (id, tenant_id, name, cron, timezone, batch, catch_up, overlap, enabled, next_fire_at)
  SELECT schedule_id, 1, id::text, '', '', '', '', '', true, now() + random() * interval '1 hour'
  FROM batches ORDER BY id DESC LIMIT 1000;
INSERT INTO schedule_runs (schedule_id, fire_at, outcome, created_at)
  SELECT s.id, now() - n * interval '1 hour',
    CASE WHEN n <= 20 AND right(s.name, 1) = '0' THEN 'queued' ELSE 'skipped' END,
    now() - n * interval '1 hour' FROM schedules s, generate_series(1, 50) n;
"""


class Found:
    """What the calls below are about."""

    def __init__(self, url: str) -> None:
        self.worker = uuid.UUID(int=10)
        ((self.large,),) = stack.query(url, "SELECT id FROM batches WHERE slices > 2")
        self.running, self.model = stack.query(url, "SELECT id, model_id FROM jobs WHERE status = 'running'")[0]
        self.jobs = [row[0] for row in stack.query(url, "SELECT job_id FROM slices WHERE staged IS NOT NULL LIMIT 100")]
        self.schedule, self.seen = stack.query(url, "SELECT id, next_fire_at FROM schedules LIMIT 1")[0]
        self.job = stack.Held(self.running, 1)


@pytest.fixture(scope="module", params=["analyzed", "never analyzed"])
def full(request: Any, postgres: Any, template: str) -> Iterator[tuple[Store, Explaining, Found]]:
    """One batch of 10,000 slices among thousands of batches, files and runs; with and without statistics."""
    with stack.database_from(postgres.url, template) as url:
        for table in ("jobs", "slices", "batches", "batch_lines", "files", "schedules", "schedule_runs"):
            stack.query(url, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        real = Database(url)
        store_on(real).catalogue.register_model(stack.a_spec())
        real.close()
        stack.query(url, FILL, {})
        if request.param == "analyzed":
            stack.query(url, "VACUUM ANALYZE")
        db = Explaining(url)
        yield store_on(db), db, Found(url)


H = batch_stack.HOLDER
ALL = 4 * SLICES
"""Pages of a statement about every slice of the large batch: its entry, its row, its job's entry, its job's row."""

STATEMENTS: dict[str, tuple[Any, int]] = {
    "submit": (lambda s, f: s.batches.submit(batch_stack.new_batch(idempotency_key="k", body_hash=b"h")), 100),
    "submit with a limit": (lambda s, f: s.batches.submit(batch_stack.new_batch(), most=1000), 1000),
    "submit without room": (lambda s, f: s.batches.submit(batch_stack.new_batch(), most=10), 1000),
    "read": (lambda s, f: s.batches.read(f.large), 2 * ALL),
    "list": (lambda s, f: s.batches.list(1, after=f.large, limit=100), 5000),
    "sharing": (lambda s, f: s.batches.sharing(1, most=100), 200),
    "cancel": (lambda s, f: s.batches.cancel(3, f.large), 20 * ALL),
    "pause": (lambda s, f: s.batches.pause(3, f.large), 20 * ALL),
    "resume": (lambda s, f: s.batches.resume(3, f.large), 2 * ALL),
    "slices": (lambda s, f: s.batches.slices(f.large, after=5000, limit=100), 2000),
    "take to plan": (lambda s, f: s.batches.take_to_plan(H, lease_s=9.0), 200),
    "take to end": (lambda s, f: s.batches.take_to_end(H, lease_s=9.0), 12_000),
    "note": (lambda s, f: s.batches.note(f.large), 10),
    "renew": (lambda s, f: s.batches.renew(H, f.large, lease_s=9.0), 10),
    "over threshold": (lambda s, f: s.batches.over_threshold(), 5000),
    "stop": (lambda s, f: s.batches.stop(f.large, batch_stack.FAULT), 20 * ALL),
    "hold paused": (lambda s, f: s.batches.hold_paused(), 500),
    "prune": (lambda s, f: s.batches.prune(results_kept_s=9e6, batches_kept_s=9e6), 100),
    "prune some": (lambda s, f: s.batches.prune(results_kept_s=0.0, batches_kept_s=0.0), 400_000),
    "end": (lambda s, f: s.batches.end(H, f.large, BatchStatus.FAILED), 2 * ALL),
    "jobs of the batch": (
        lambda s, f: s.jobs.list(3, status=None, model=None, after=None, limit=100, batch=f.large),
        2 * ALL + 30_000,
    ),
    "jobs of no batch": (lambda s, f: s.jobs.list(1, status=None, model=None, after=None, limit=100), 1000),
    "work": (lambda s, f: s.slices.work(f.job), 20),
    "progress": (lambda s, f: s.slices.progress(f.worker, f.job, 1), 50),
    "expose": (lambda s, f: s.slices.expose(f.worker, f.job, (0, 1)), 50),
    "condemn": (lambda s, f: s.slices.condemn(f.worker, f.job, 1), 50),
    "finish": (lambda s, f: s.slices.finish(f.worker, batch_stack.finished(f.job, rows=1)), 100),
    "unpublished": (lambda s, f: s.slices.unpublished(limit=10), 1500),
    "published": (lambda s, f: s.slices.published(f.jobs), 5000),
    "results of all": (lambda s, f: list(s.results.read(f.large, after=-1, limit=50)), ALL),
    "results of the last": (lambda s, f: list(s.results.read(f.large, after=SLICES // 2 - 9, limit=50)), ALL),
    "results written again": (lambda s, f: s.db.run(*_again(f)), 100),
    "sweep": (lambda s, f: s.results.sweep(f.large), 3 * ALL),
    "complete": (lambda s, f: s.results.complete(f.large), 10),
    "file": (lambda s, f: s.files.read(uuid.uuid4()), 10),
    "files": (lambda s, f: s.files.list(1, purpose=None, after=None, limit=100), 1000),
    "garbage": (lambda s, f: s.files.take_garbage(kept_s=19_990 * 60, limit=100), 5000),
    "schedules": (lambda s, f: s.schedules.list(1, after=None, limit=100), 500),
    "due": (lambda s, f: s.schedules.due(limit=100), 100),
    "fire": (lambda s, f: s.schedules.fire(f.schedule, f.seen, [], [], None), 100),
    "unfinished": (lambda s, f: s.schedules.unfinished(f.schedule), 20),
    "queued": (lambda s, f: s.schedules.queued(limit=100), 5000),
    "run of a key": (lambda s, f: s.db.run(schedules._RUN_OF_BATCH, {"id": f.schedule, "batch": f.large}), 20),
    "runs": (lambda s, f: s.schedules.runs(f.schedule, after=None, limit=20), 500),
    "rescue": (lambda s, f: s.chores.rescue(max_failures=3), 300),
    "prune jobs": (lambda s, f: s.chores.prune(results_kept_s=9e6, jobs_kept_s=9e6, keys_kept_s=9e6), 300),
}


def _again(found: Found) -> tuple[str, dict[str, object]]:
    """The insert for chunks that may be there already."""
    from batchline.store import batch_results

    return batch_results._INSERT, batch_results._columns_of(found.running, 1, [Chunk(0, 1, b"{}")])


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_go_by_an_index(full, name):
    store, db, found = full
    call, pages = STATEMENTS[name]
    db.plans.clear()
    call(store, found)
    assert db.plans
    assert not db.scanned() - {"models", "workers"}
    assert db.pages() <= pages
