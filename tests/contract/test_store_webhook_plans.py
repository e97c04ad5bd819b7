"""What webhooks cost: a dead endpoint with a long queue slows no other and no list, and jobs without pay nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import stack
from explaining import Explaining, nodes

from batchline.job import Lane
from batchline.store import Store, store_on
from batchline.store.webhook_contract import MessageStatus

DEAD, OTHERS = uuid.UUID(int=5), 1000
LARGE = {"webhook_messages", "webhook_subscriptions", "webhook_endpoints", "webhook_attempts", "jobs"}

# The dead endpoint's messages are all due, and as many as may be are under way; the other endpoints have failed once
# and wait, but for the last. 5,000 more have been delivered.
FILL = """
INSERT INTO models (name, version, pool, spec) VALUES ('digits', 1, 'cpu', '{}');
INSERT INTO webhook_secrets VALUES (1, 'whsec_');
INSERT INTO webhook_endpoints (id, tenant_id, url)
  SELECT lpad(to_hex(n), 32, '0')::uuid, 1, 'https://example.com/' || n FROM generate_series(5, 5 + %(others)s) n;
CREATE TEMP TABLE made AS SELECT uuidv7() AS id, n,
    lpad(to_hex(CASE WHEN n <= 35000 THEN 5 ELSE n - 35000 + 5 END), 32, '0')::uuid AS endpoint_id
  FROM generate_series(1, 35000 + %(others)s) n;
INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, finished_at, webhook)
  SELECT id, 1, 1, 'online', 'succeeded', 5, n, 1, now(), true FROM made WHERE n < 1000 OR n > 35000;
INSERT INTO webhook_subscriptions SELECT m.id, 1, m.endpoint_id, 'https://example.com', '' FROM made m;
INSERT INTO webhook_messages (id, tenant_id, endpoint_id, subject_id, event, status, attempts, taken, due_at)
  SELECT uuidv7(), 1, endpoint_id, id, 'job.succeeded',
    CASE WHEN n BETWEEN 30001 AND 35000 THEN 'delivered' ELSE 'pending' END, 1, n <= 8,
    now() + CASE WHEN n <= 8 OR n > 35000 AND n < 35000 + %(others)s THEN interval '1 h' ELSE '-1 s' END FROM made;
"""


@pytest.fixture(scope="module", params=["analyzed", "never analyzed"])
def full(request: Any, postgres: Any, template: str) -> Iterator[tuple[Store, Explaining]]:
    """A dead endpoint with a long queue, a thousand that wait, one with a message, with and without statistics."""
    with stack.database_from(postgres.url, template) as url:
        for table in ("webhook_messages", "webhook_subscriptions", "jobs"):
            stack.query(url, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        stack.query(url, FILL, {"others": OTHERS})
        if request.param == "analyzed":
            stack.query(url, "VACUUM ANALYZE")
        db = Explaining(url)
        yield store_on(db), db


def test_a_dead_endpoint_slows_no_other(full):
    """One probe an endpoint: the message of another is taken past 30,000 that are due."""
    store, db = full
    db.plans.clear()
    (due,) = store.webhooks.take_due(limit=32, per_endpoint=8, lease_s=30.0)
    assert due.endpoint_id == uuid.UUID(int=5 + OTHERS)
    assert not db.scanned() & LARGE
    assert max(node["Actual Rows"] * node["Actual Loops"] for plan in db.plans for node in nodes(plan)) <= 2 * OTHERS
    assert db.pages() <= 6 * OTHERS


STATEMENTS: dict[str, tuple[Any, int]] = {
    "take 32": (lambda s: s.webhooks.take_due(limit=32, per_endpoint=40, lease_s=30.0), 2000),
    "list": (lambda s: s.webhooks.list(1, limit=100), 1500),
    "list what is not there": (lambda s: s.webhooks.list(1, status=MessageStatus.FAILED, limit=100), 50),
    "list an event": (lambda s: s.webhooks.list(1, event="job.expired", limit=100), 50),
    "endpoints": (lambda s: s.webhooks.endpoints(1, limit=100), 300),
    "prune nothing": (lambda s: s.webhooks.prune(kept_s=1e6), 100),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_go_by_an_index(full, name):
    """They touch few pages, however much there is."""
    store, db = full
    call, pages = STATEMENTS[name]
    db.plans.clear()
    call(store)
    assert not db.scanned() & LARGE
    assert db.pages() <= pages


def test_jobs_without_a_webhook_touch_nothing_of_webhooks(full):
    """To submit, read, claim, finish and cancel them knows no table of webhooks, and calls no trigger."""
    store, db = full
    worker = uuid.uuid4()
    db.plans.clear()
    jobs = [stack.new_job() for _ in range(8)]
    store.jobs.submit(jobs)
    store.claims.claim(worker, 1, Lane.ONLINE, rows=8)
    store.claims.finish(worker, [stack.done(stack.Held(job.id, 1)) for job in jobs])
    store.jobs.cancel(stack.TENANT, [job.id for job in jobs])
    store.jobs.read([job.id for job in jobs])
    run = (n for plan in db.plans for n in nodes(plan) if n["Actual Loops"])
    assert not any(n.get("Relation Name", "").startswith("webhook") for n in run)
