"""What the processes tell Prometheus where an alarm hangs on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from api.backlog import Backlog
from batchline.errors import StoreUnavailableError
from batchline.job import Lane
from batchline.local.server import free_port
from batchline.metrics import REGISTRY
from batchline.store.contract import Backlog as Queued
from batchline.store.contract import Chores, Workers
from batchline.store.postgres import Database
from batchline.traffic import SHADOW_TENANT


class Counted:
    """A store whose counts the test says."""

    def __init__(self) -> None:
        self.queued: Sequence[Queued] = ()

    def count_backlog(self, *, every_s: float) -> None: ...

    def backlog(self) -> list[Queued]:
        return list(self.queued)

    def drain_rates(self, _: Lane) -> dict[str, float]:
        return {}


def queue(pool: str, lane: Lane) -> list[float | None]:
    labels = {"pool": pool, "lane": lane.value}
    return [REGISTRY.get_sample_value(f"batchline_queue_{name}", labels) for name in ("jobs", "rows", "oldest_seconds")]


def test_the_queue_is_told_by_pool_and_lane() -> None:
    """Summed over tenants and models, without copies for shadows; an empty queue is zero, not gone."""
    store = Counted()
    backlog = Backlog(cast("Chores", store), cast("Workers", store), max_rows_tenant=10, max_rows=10)
    store.queued = [
        Queued(1, 1, "told", Lane.ONLINE, 2, 20, 3.0),
        Queued(2, 2, "told", Lane.ONLINE, 1, 5, 7.0),
        Queued(1, 1, "told", Lane.BULK, 4, 400, 90.0),
        Queued(SHADOW_TENANT, 2, "told", Lane.ONLINE, 50, 50, 999.0),
    ]
    backlog.refresh()
    assert queue("told", Lane.ONLINE) == [3, 25, 7.0]
    assert queue("told", Lane.BULK) == [4, 400, 90.0]
    store.queued = [Queued(1, 1, "told", Lane.BULK, 4, 400, 91.0)]
    backlog.refresh()
    assert queue("told", Lane.ONLINE) == [0, 0, 0]
    assert queue("told", Lane.BULK) == [4, 400, 91.0]


def test_a_postgres_that_does_not_answer_is_counted() -> None:
    """Once for each call that was given up; such series begin at zero, not with their first event."""

    def unanswered() -> float:
        value = REGISTRY.get_sample_value("batchline_postgres_errors_total", {"why": "unanswered"})
        assert value is not None
        return value

    before = unanswered()
    database = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", connections=1)
    with pytest.raises(StoreUnavailableError):
        database.ping()
    database.close()
    assert unanswered() == before + 1
    for why in ("disk_full", "schema"):
        assert REGISTRY.get_sample_value("batchline_postgres_errors_total", {"why": why}) is not None
