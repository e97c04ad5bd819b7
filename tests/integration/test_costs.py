"""Costs through the API: by all that they may be told by, of batches, of a job; the budget beside the decisions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import api_server
import batch_stack
import pytest
import stack
from api_server import ALICE, BOB, READER, Running

from batchline.batch import show_batch_id
from batchline.job import new_job_id, show_id
from batchline.store.cost_contract import PoolMoney, Standing, Used


@pytest.fixture
def api(database_url: str, redis_url: str) -> Iterator[Running]:
    with api_server.running_api(database_url, redis_url) as running:
        yield running


def test_costs_by_all_that_they_may_be_told_by(api: Running) -> None:
    """For admins; a pool's price makes them, and the lines add up."""
    api.store.costs.keep(PoolMoney("cpu", price_per_hour=7.2))
    worker = stack.a_worker(api.store)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    alice = api.store.catalogue.find_key(ALICE).tenant_id
    batch = batch_stack.planned(api.store, 1, [5], tenant_id=alice)
    priceless = batch_stack.planned(api.store, 1, [5], tenant_id=alice)
    api.store.costs.report(
        worker, [Used(hour, alice, 1, batch, 500.0), Used(hour, alice, 1, None, 1000.0), Used(hour, 0, 0, None, 100.0)]
    )
    query = {"from": hour.isoformat(), "to": (hour + timedelta(hours=1)).isoformat()}
    for by, keys in (
        ("tenant", {"alice", None}),
        ("model", {"digits@1", None}),
        ("batch", {show_batch_id(batch), None}),
        ("pool", {"cpu"}),
        ("day", {f"{hour:%Y-%m-%d}"}),
    ):
        told = api.call("GET", "/v1/costs", params=query | {"by": by}).json()
        assert {line["key"] for line in told["data"]} == keys
        assert sum(line["cost"] for line in told["data"]) == pytest.approx(told["total"]["cost"]) == pytest.approx(3.2)
    assert api.call("GET", "/v1/costs", READER).status_code == 403
    assert api.call("GET", f"/v1/batches/{show_batch_id(batch)}").json()["cost"] == pytest.approx(1.0)
    assert api.call("GET", f"/v1/batches/{show_batch_id(priceless)}").json()["cost"] is None
    listed = {b["id"]: b["cost"] for b in api.call("GET", "/v1/batches").json()["data"]}
    assert listed == {show_batch_id(batch): pytest.approx(1.0), show_batch_id(priceless): None}


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"by": "moon"}, "/by"),
        ({"from": "yesterday"}, "/from"),
        ({"from": "2026-01-01T00:00:00"}, "/from"),
        ({"to": "9999-12-31T23:59:59Z"}, "/to"),
        ({"from": "2026-02-01", "to": "2026-01-01"}, "/from"),
        ({"from": "2026-01-01", "to": "2026-12-01"}, "/from"),
        ({"until": "2026-01-01"}, "/until"),
    ],
)
def test_a_query_that_does_not_fit_is_told_where(api: Running, query: dict[str, str], pointer: str) -> None:
    """Ranges are bounded, times have a zone."""
    response = api.call("GET", "/v1/costs", params=query)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, pointer)


def test_a_jobs_cost_is_for_its_own_tenant(api: Running) -> None:
    """Null before it has ended; another tenant's job is unknown."""
    job_id = api.submit().json()["id"]
    told = api.call("GET", f"/v1/jobs/{job_id}/cost", READER).json()
    assert told == {
        "object": "job_cost", "id": job_id, "machine": None, "worker_s": None, "cost": None, "on_demand": None,
    }  # fmt: skip
    for key, wanted in ((BOB, job_id), (ALICE, show_id(new_job_id())), (ALICE, "job_x")):
        assert api.call("GET", f"/v1/jobs/{wanted}/cost", key).status_code == 404


def test_the_autoscaler_tells_how_the_budget_stands(api: Running) -> None:
    """Beside its decisions; null for a pool without one."""
    stack.query(
        api.database_url,
        "INSERT INTO scalings (pool, at, desired, reason, signals) VALUES ('cpu', now(), 1, 'r', '{}'),"
        " ('gpu', now(), 1, 'r', '{}')",
    )
    midnight = datetime.now(UTC) + timedelta(hours=3)
    api.store.costs.keep(PoolMoney("cpu", 1.0, 5.0, 6.0, Standing.SPENT, midnight))
    api.store.costs.keep(PoolMoney("gpu", 1.0))
    pools = api.call("GET", "/v1/autoscaler").json()["pools"]
    budget = pools["cpu"]["budget"]
    assert (budget["per_day"], budget["spent_today"], budget["standing"]) == (5.0, 6.0, "spent")
    assert datetime.fromisoformat(budget["bulk_held_until"]) == midnight
    assert pools["gpu"]["budget"] is None
