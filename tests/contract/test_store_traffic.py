"""`traffic_contract.Traffic`: rules are replaced whole, and copies of jobs are nobody's."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import Any

import pytest
import stack
from explaining import Explaining

from batchline.job import Lane, NewJob, Status, new_job_id
from batchline.store import Store, store_on
from batchline.store.cost_contract import By, Used
from batchline.store.traffic_contract import MOST_PAIRS, Ended, Pair
from batchline.traffic import SHADOW_TENANT, Canary, Rule


@pytest.fixture
def models(store: Store) -> list[int]:
    return [store.catalogue.register_model(stack.a_spec(version=str(n + 1))) for n in range(3)]


def a_copy(model: int, **changes: Any) -> NewJob:
    return stack.new_job(model, tenant_id=SHADOW_TENANT, **changes)


def run(store: Store, model: int, **ends: Any) -> None:
    """Finish what waits of a model."""
    worker = stack.a_worker(store)
    jobs = store.claims.claim(worker, model, Lane.ONLINE, rows=10_000).jobs
    store.claims.finish(worker, [stack.done(job, **ends) for job in jobs])


def test_a_rule_is_replaced_whole_and_removed(store: Store) -> None:
    """What is not named is switched off; each model has its own; removing is told once."""
    set_ = store.traffic.put("digits", Rule(1, Canary(2, 0.25), 3))
    store.traffic.put("words", Rule(7))
    assert store.traffic.rules()["digits"] == set_
    assert set_.canary == Canary(2, 0.25)
    again = store.traffic.put("digits", Rule(2))
    found = store.traffic.rules()
    assert (found["digits"], found["words"].production) == (again, 7)
    assert again == Rule(2, None, None, again.updated_at)
    assert again.updated_at is not None
    assert set_.updated_at is not None
    assert again.updated_at > set_.updated_at
    assert [store.traffic.delete("digits"), store.traffic.delete("digits")] == [True, False]
    assert store.traffic.rules().keys() == {"words"}


def test_copies_are_jobs_that_no_tenant_sees(store: Store, models: list[int], database_url: str) -> None:
    """Written once however often they are sent; claimed like any other; in no list, and in no tenant's backlog."""
    mine = stack.new_job(models[0])
    store.jobs.submit([mine])
    copies = [(a_copy(models[2], payload=b"the rows"), mine.id) for _ in range(3)]
    store.traffic.copy(copies)
    store.traffic.copy(copies)
    assert stack.query(database_url, "SELECT count(*), count(DISTINCT of) FROM shadows") == [(3, 1)]
    listed = store.jobs.list(stack.TENANT, status=None, model=None, after=None, limit=100)
    assert [view.id for view in listed] == [mine.id]
    store.chores.count_backlog(every_s=0)
    assert {(b.tenant_id, b.model_id): b.jobs for b in store.chores.backlog()} == {
        (stack.TENANT, models[0]): 1,
        (SHADOW_TENANT, models[2]): 3,
    }
    claimed = store.claims.claim(stack.a_worker(store), models[2], Lane.ONLINE, rows=64).jobs
    assert [job.payload for job in claimed] == [b"the rows"] * 3


def test_copies_have_a_line_of_their_own_among_the_costs(store: Store, models: list[int]) -> None:
    """Whoever set the shadow sees what it costs; no tenant pays for it."""
    now = store.schedules.now()
    hour = now.replace(minute=0, second=0, microsecond=0)
    store.costs.report(stack.a_worker(store), [Used(hour, SHADOW_TENANT, models[2], None, 12.0)])
    lines = store.costs.read(By.TENANT, hour, now + timedelta(hours=1)).lines
    assert [(line.key, line.worker_s) for line in lines if line.worker_s] == [("(shadow)", 12.0)]


def test_what_became_of_the_jobs_of_each_role(store: Store, models: list[int]) -> None:
    """Clients' jobs by version and copies by theirs, even of one version; cancelled and queued ones do not count."""
    store.jobs.submit([stack.new_job(models[0]) for _ in range(4)])
    run(store, models[0], timings='{"predict": 2.0}')
    store.jobs.submit([stack.new_job(models[0])])
    run(store, models[0], status=Status.FAILED, outputs="[null]", timings='{"predict": 12.0}')
    store.jobs.submit([stack.new_job(models[0]), stack.new_job(models[1])])
    store.traffic.copy([(a_copy(models[0]), uuid.uuid4())])
    waiting = stack.new_job(models[1])
    store.jobs.submit([waiting])
    store.jobs.cancel(stack.TENANT, [waiting.id])
    found = store.traffic.lately({"production": models[0], "canary": models[1], "shadow": models[0]})
    assert found.pop("production") == Ended(5, 1, 2.0, pytest.approx(10.0))
    assert found == {"canary": Ended(), "shadow": Ended()}
    run(store, models[0], timings="{}")
    found = store.traffic.lately({"production": models[0], "shadow": models[0]})
    assert found == {"production": Ended(6, 1, 2.0, pytest.approx(10.0)), "shadow": Ended(1, 0, None, None)}


def test_pairs_are_small_recent_and_both_well(store: Store, models: list[int], database_url: str) -> None:
    """What has failed, waits, is large or old is left out."""
    mine = [stack.new_job(models[0]) for _ in range(4)]
    store.jobs.submit(mine[:3])
    run(store, models[0], outputs='[{"label": 1}]')
    large = stack.new_job(models[0])
    store.jobs.submit([large])
    noise = "".join(uuid.uuid4().hex for _ in range(2000))  # 64 kB that does not shrink to 16
    run(store, models[0], outputs=f'[{{"label": "{noise}"}}]')
    old = a_copy(models[2], id=new_job_id(time.time() - 4000))
    store.traffic.copy([(a_copy(models[2]), mine[0].id), (a_copy(models[2]), large.id), (old, mine[2].id)])
    run(store, models[2], outputs='[{"label": 2}]')
    store.traffic.copy([(a_copy(models[2]), mine[1].id), (a_copy(models[2]), uuid.uuid4())])
    run(store, models[2], status=Status.FAILED, outputs="[null]")
    assert store.traffic.pairs(models[2]) == [Pair('[{"label": 1}]', '[{"label": 2}]')]
    assert store.traffic.pairs(models[1]) == []


def test_copies_are_forgotten_with_the_jobs(store: Store, models: list[int], database_url: str) -> None:
    """The job of a copy goes as every job does; the row beside it when it is as old."""
    old, new = a_copy(models[0], id=new_job_id(time.time() - 1000)), a_copy(models[0])
    store.traffic.copy([(old, uuid.uuid4()), (new, uuid.uuid4())])
    assert [store.traffic.prune(kept_s=500), store.traffic.prune(kept_s=500)] == [1, 0]
    assert stack.query(database_url, "SELECT id FROM shadows") == [(new.id,)]


def test_the_questions_cost_the_same_with_a_long_history(store: Store, models: list[int], database_url: str) -> None:
    """Both go by an index from the newest end, and stop: with 60,000 jobs and copies in the window as with 20,000."""
    fill = """
    INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows)
      SELECT uuidv7(-n * interval '50 ms'), 1, 1 + n %% 2, 'online', 'succeeded', 5, n, 1
      FROM generate_series(1, %(n)s) n;
    INSERT INTO job_results (job_id, outputs, timings) SELECT id, '[{"label": 1}]', '{"predict": 1.0}' FROM jobs;
    INSERT INTO shadows (id, of, model_id) SELECT id, id, %(model)s FROM jobs;
    ANALYZE;
    """
    stack.query(database_url, fill, {"n": 60_000, "model": models[0]})
    db = Explaining(database_url)
    explained = store_on(db)
    lately = explained.traffic.lately({"production": models[0], "canary": models[1]})
    assert [e.jobs for e in lately.values()] == [10_000, 10_000]
    assert not db.scanned() & {"jobs", "job_results", "shadows"}
    assert db.pages() < 250_000
    db.plans.clear()
    assert len(explained.traffic.pairs(models[0])) == MOST_PAIRS
    assert not db.scanned() & {"jobs", "job_results", "shadows"}
    assert db.pages() < 60_000
