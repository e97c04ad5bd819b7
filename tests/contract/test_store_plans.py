"""No statement's cost grows with the queue or the history: each goes by an index and touches few pages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stack
from explaining import Explaining, nodes

from batchline.job import Lane
from batchline.store import Store, catalogue, chores, store_on
from batchline.store.contract import Failure
from batchline.store.postgres import Database

QUEUED, ENDED = 50_000, 50_000
LARGE = {"jobs", "job_inputs", "job_results", "idempotency_keys"}

FILL = """
INSERT INTO workers (id, host, pid, pool, device, lease_until)
  SELECT gen_random_uuid(), 'here', n, 'cpu', 'cpu', now() + CASE WHEN n > 3 THEN interval '1 day' ELSE '-1 second' END
  FROM generate_series(1, 20) n;
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, created_at, deadline_at, run_at, suspect)
  SELECT uuidv7(-n * interval '1 second'), 1 + n %% 7, 1 + n %% 5, 'online', 'queued', 5, 1000000000 - n, 1,
    now() - n * interval '1 second', CASE WHEN n %% 100 = 0 THEN now() - interval '1 second' END,
    CASE WHEN n %% 50 = 1 THEN now() - interval '1 second' END, n %% 1000 = 7
  FROM generate_series(1, %(queued)s) n;
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, attempt, worker_id)
  SELECT uuidv7(), 1, 1, 'online', 'running', 5, n, 1, 1, w.id FROM workers w, generate_series(1, 100) n;
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, finished_at, result_pruned)
  SELECT uuidv7(-n * interval '60 seconds'), 1 + n %% 7, 1, 'online', 'succeeded', 5, n, 1,
    now() - n * interval '60 seconds', n > 15000 FROM generate_series(1, %(ended)s) n;
INSERT INTO job_inputs SELECT id, '\\x00' FROM jobs WHERE NOT result_pruned;
INSERT INTO job_results (job_id, outputs) SELECT id, '[]' FROM jobs WHERE NOT result_pruned AND status = 'succeeded';
INSERT INTO idempotency_keys SELECT tenant_id, id::text, '\\x00', id, created_at FROM jobs;
"""


@pytest.fixture(scope="module", params=["analyzed", "never analyzed"])
def full(request: Any, postgres: Any, template: str) -> Iterator[tuple[Store, Explaining, dict[str, Any]]]:
    """A long queue and a long history, with and without statistics."""
    with stack.database_from(postgres.url, template) as url:
        stack.query(url, "ALTER TABLE jobs SET (autovacuum_enabled = off)")
        real = Database(url)
        for name in "abcde":
            catalogue.Catalogue(real).register_model(stack.a_spec(name))
        stack.query(url, FILL, {"queued": QUEUED, "ended": ENDED})
        if request.param == "analyzed":
            stack.query(url, "VACUUM ANALYZE")
        found = {
            "url": url,
            "worker": stack.query(url, "SELECT id FROM workers WHERE lease_until > now() LIMIT 1")[0][0],
            "running": [
                r[0]
                for r in stack.query(
                    url,
                    "SELECT id FROM jobs WHERE status = 'running' AND worker_id ="
                    " (SELECT id FROM workers WHERE lease_until > now() LIMIT 1) LIMIT 64",
                )
            ],
            "any": [r[0] for r in stack.query(url, "SELECT id FROM jobs ORDER BY rank LIMIT 64")],
        }
        real.close()
        db = Explaining(url)
        store = store_on(db)
        yield store, db, found


def _held(found: dict[str, Any]) -> list[Any]:
    return [stack.Held(job_id, 1) for job_id in found["running"]]


STATEMENTS: dict[str, tuple[Any, int]] = {
    "submit 64": (
        lambda s, f: s.jobs.submit([stack.new_job(idempotency_key=str(n), body_hash=b"h") for n in range(64)]),
        3000,
    ),
    "read 64": (lambda s, f: s.jobs.read(f["any"]), 3000),
    "terminal 64": (lambda s, f: s.jobs.terminal(f["any"]), 400),
    "list 100": (lambda s, f: s.jobs.list(2, status=None, model=None, after=None, limit=100), 20_000),
    "cancel 64": (lambda s, f: s.jobs.cancel(1, f["any"]), 3000),
    "heads": (lambda s, f: s.claims.heads("cpu", Lane.ONLINE), 100),
    "claim 64": (lambda s, f: s.claims.claim(f["worker"], 1, Lane.ONLINE, rows=64), 3000),
    "claim 1000": (lambda s, f: s.claims.claim(f["worker"], 1, Lane.ONLINE, rows=1000), 40_000),
    "claim suspect": (lambda s, f: s.claims.claim_suspect(f["worker"], 3), 100),
    "expose": (lambda s, f: s.claims.expose(f["worker"], _held(f)[0]), 400),
    "finish 64": (lambda s, f: s.claims.finish(f["worker"], [stack.done(j) for j in _held(f)]), 3000),
    "retry 64": (
        lambda s, f: s.claims.retry(f["worker"], [Failure(j.id, 1, "e", "m", 1.0) for j in _held(f)], max_failures=3),
        3000,
    ),
    "give back 64": (lambda s, f: s.claims.give_back(f["worker"], _held(f)), 3000),
    "reconcile": (lambda s, f: s.claims.reconcile(f["worker"], f["running"][:32]), 3000),
    "rescue": (lambda s, f: s.chores.rescue(max_failures=3), 10_000),
    "expire": (lambda s, f: s.chores.expire(), 15_000),
    "release": (lambda s, f: s.chores.release(), 30_000),
    "waiting": (lambda s, f: s.chores.waiting(), 300),
    "instances that drained": (lambda s, f: s.instances.drained(f["worker"]), 400),
    "totals of a minute": (lambda s, f: s.instances.totals(datetime.now(UTC) - timedelta(seconds=60)), 1500),
    "prune nothing": (lambda s, f: s.chores.prune(results_kept_s=1e7, jobs_kept_s=2e7, keys_kept_s=1e7), 200),
    "prune nothing new": (
        lambda s, f: s.chores.prune(results_kept_s=15001 * 60, jobs_kept_s=2e7, keys_kept_s=1e7),
        200,
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_go_by_an_index(full, name):
    store, db, found = full
    call, pages = STATEMENTS[name]
    db.plans.clear()
    call(store, found)
    assert not db.scanned() & LARGE
    assert db.pages() <= pages


@pytest.mark.parametrize("name", ["finish 64", "retry 64", "give back 64"])
def test_dead_entries_of_what_ran_under_a_held_snapshot_are_not_read(postgres, template, name):
    """Planned while nothing runs, the index of running jobs seems the shortest way to a job. It may be the longest,
    with an entry for all that ever ran, as long as a snapshot is held.
    """
    with stack.database_from(postgres.url, template) as url:
        stack.query(url, FILL + "TRUNCATE job_results", {"queued": 100, "ended": 100})
        with stack.connected(url) as holder, holder.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
            run = "UPDATE jobs SET status = 'running', worker_id = (SELECT max(id::text)::uuid FROM workers)"
            end = "UPDATE jobs SET status = 'succeeded', worker_id = NULL"
            for _ in range(8):
                stack.query(url, f"{run}; {end}")
            stack.query(url, "VACUUM ANALYZE jobs")
            db = Explaining(url)
            stack.query(url, f"{run}, attempt = 1 WHERE id IN (SELECT id FROM jobs LIMIT 64)")
            found = {
                "worker": stack.query(url, "SELECT max(id::text)::uuid FROM workers")[0][0],
                "running": [row[0] for row in stack.query(url, "SELECT id FROM jobs WHERE status = 'running'")],
            }
            STATEMENTS[name][0](store_on(db), found)
            assert "jobs_running" not in {n.get("Index Name") for plan in db.plans for n in nodes(plan)}


def test_the_claim_reads_its_index_in_order_and_sorts_only_what_it_took(full):
    """`jobs_claim` is read for rows + 1 entries, and nothing sorts more than that."""
    store, db, found = full
    db.plans.clear()
    store.claims.claim(found["worker"], 1, Lane.ONLINE, rows=64)
    found_nodes = list(nodes(db.plans[0]))
    (read,) = [n for n in found_nodes if n.get("Index Name") == "jobs_claim"]
    assert read["Actual Rows"] == 65
    assert all(n["Actual Rows"] <= 65 for n in found_nodes if n["Node Type"] == "Sort")


def test_counting_costs_the_queue_and_not_the_history(postgres, template):
    """Whoever keeps thirty days of jobs does not read them every second."""
    with stack.database_from(postgres.url, template) as url:
        stack.query(url, FILL, {"queued": 500, "ended": ENDED})
        stack.query(url, "VACUUM ANALYZE")
        db = Explaining(url)
        chores.Chores(db).count_backlog(every_s=0.0)
        assert "jobs" not in db.scanned()
        assert db.pages() < 1000
