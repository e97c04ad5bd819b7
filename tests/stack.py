"""Databases and records for tests: a migrated template copied per test, and builders of what the store takes."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg2
from sqlalchemy.engine import make_url

from batchline.job import FinishedJob, Lane, NewJob, Status, new_job_id, rank_us
from batchline.model import BatchPolicy, ModelSpec, TensorSpec
from batchline.store import Store

TENANT = 1
"""The tenant of `new_job`; jobs do not ask that its row exists."""

_numbers = itertools.count()


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A plain autocommit connection, for what the store has no business doing."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


def query(url: str, sql: str, params: object = None) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own."""
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def database_from(admin_url: str, template: str) -> Iterator[str]:
    """The URL of a fresh copy of a template database, dropped at the end with whoever is still connected."""
    name = f"test_{next(_numbers)}"
    query(admin_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield url_of(admin_url, name)
    finally:
        query(admin_url, f"DROP DATABASE {name} WITH (FORCE)")


def url_of(admin_url: str, name: str) -> str:
    return make_url(admin_url).set(database=name).render_as_string(hide_password=False)


def a_spec(name: str = "digits", version: str = "1", *, pool: str = "cpu", digest: str = "d" * 64) -> ModelSpec:
    """A model of 64 floats in, one label out."""
    return ModelSpec(
        name=name,
        version=version,
        digest=digest,
        size_bytes=1000,
        inputs=(TensorSpec("x", "FP32", (64,)),),
        outputs=(TensorSpec("label", "INT64", ()),),
        policy=BatchPolicy(pool=pool),
    )


def new_job(model_id: int = 1, **changes: Any) -> NewJob:
    """A job as admission hands it over: one row, priority 5, ranked now; `changes` are fields of NewJob."""
    fields: dict[str, Any] = {
        "id": new_job_id(),
        "tenant_id": TENANT,
        "model_id": model_id,
        "lane": Lane.ONLINE,
        "priority": 5,
        "rank": rank_us(time.time(), 5),
        "rows": 1,
        "payload": b"rows",
    }
    return NewJob(**fields | changes)


class Held(NamedTuple):
    """What the fence is made of, for a job that was not claimed here."""

    id: uuid.UUID
    attempt: int


def done(job: Any, status: Status = Status.SUCCEEDED, **changes: Any) -> FinishedJob:
    """How a claimed job ends well, or as `status` says."""
    fields: dict[str, Any] = {
        "id": job.id,
        "attempt": job.attempt,
        "status": status,
        "outputs": '[{"label": 7}]',
        "errors": None,
        "timings": "{}",
        "rows_failed": 0,
    }
    return FinishedJob(**fields | changes)


def a_worker(store: Store, *, pool: str = "cpu", lease_s: float = 30.0, instance: str = "") -> uuid.UUID:
    """The id of a registered, live worker."""
    worker_id = uuid.uuid4()
    store.workers.register(worker_id, host="here", pid=1, pool=pool, device="cpu", lease_s=lease_s, instance=instance)
    return worker_id
