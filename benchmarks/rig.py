"""The store without processes around it: a durable Postgres, one model, one live worker, jobs of one digit each."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import psycopg2

from batchline.job import ClaimedJob, FinishedJob, Lane, NewJob, Status, new_job_id, rank_us
from batchline.registry import import_model
from batchline.rows import RowBlock, pack
from batchline.store import Store, open_store
from batchline.store.migrations.__main__ import prepare
from batchline.testing import ephemeral_postgres
from benchmarks.harness import Bench
from benchmarks.processes import BenchmarkError
from workers.claiming import Claimer
from workers.model_files import ModelFiles
from workers.models import LoadedModel, Models
from workers.runtimes.onnx_runtime import opener

POOL = "cpu"
GROUP = 64
TIMINGS = '{"queued":1.00,"batch_wait":0.10,"load":0.00,"predict":0.30,"write":0.05}'
_LEASE_S = 86_400.0

# Queued jobs in order of rank, all of them older than any that `submit` adds later.
_FILL = """
WITH made AS (
  INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows)
  SELECT uuidv7(), 1, %(model)s, 'online', 'queued', 5, %(rank)s + n, 1 FROM generate_series(1, %(jobs)s) n
  RETURNING id)
INSERT INTO job_inputs (job_id, payload) SELECT id, %(payload)s FROM made
"""


@dataclass
class Rig:
    """One database and the worker that serves it.

    Attributes:
        url: the database.
        payload: one packed digit.
        outputs: the JSON of its result.
    """

    url: str
    store: Store
    model: LoadedModel
    payload: bytes
    outputs: str
    worker_id: uuid.UUID = field(default_factory=uuid.uuid4)

    def claimer(self) -> Claimer:
        """A worker's own way to claim, heads and floors included; it never has anything else in hand."""
        return Claimer(self.store.claims, POOL, list)

    def fill(self, jobs: int) -> None:
        """Queue jobs by SQL, without waiting for the disk, and bring the statistics up to date."""
        params = {"model": self.model.id, "rank": rank_us(time.time(), 5), "payload": self.payload}
        with sql(self.url) as cursor:
            cursor.execute("SET synchronous_commit = off")
            for start in range(0, jobs, 100_000):
                params["rank"] += 100_000
                cursor.execute(_FILL, params | {"jobs": min(100_000, jobs - start)})
            cursor.execute("VACUUM (ANALYZE) jobs, job_inputs, job_results")

    def empty(self) -> None:
        with sql(self.url) as cursor:
            cursor.execute("TRUNCATE jobs, job_inputs, job_results")

    def submit(self, jobs: int) -> None:
        """Queue one group as the API does: one durable commit."""
        now = time.time()
        new = [
            NewJob(new_job_id(), 1, self.model.id, Lane.ONLINE, 5, rank_us(now, 5) + n, 1, self.payload)
            for n in range(jobs)
        ]
        self.store.jobs.submit(new)

    def finish(self, jobs: Sequence[ClaimedJob]) -> None:
        """Write a result for each, durably."""
        done = [FinishedJob(j.id, j.attempt, Status.SUCCEEDED, self.outputs, None, TIMINGS, 0) for j in jobs]
        if len(self.store.claims.finish(self.worker_id, done)) != len(jobs):
            raise BenchmarkError("the store did not finish what it had given out")


@contextlib.contextmanager
def sql(url: str) -> Generator[Any]:
    """A cursor on a connection of its own, every statement by itself."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


@contextlib.contextmanager
def rig(bench: Bench, *databases: str) -> Generator[list[Rig]]:
    """A durable Postgres with a Rig for each of the databases named; they share the server and nothing else."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ephemeral_postgres(durable=True))
        made: list[Rig] = []
        for name in databases:
            with sql(server.url) as cursor:
                cursor.execute(f'CREATE DATABASE "{name}"')
            made.append(_one(server.url.rpartition("/")[0] + f"/{name}", bench, name))
            stack.callback(made[-1].store.close)
        yield made


def _one(url: str, bench: Bench, name: str) -> Rig:
    prepare(url, "")
    store = open_store(url, connections=2)
    folder = bench.folder / f"models-{name}-{uuid.uuid4().hex[:6]}"
    import_model(folder, "digits", bench.digits.model, store.catalogue.register_model)
    models = Models(ModelFiles(folder), store.catalogue, opener("cpu", 1), limit_bytes=2**30)
    record = store.catalogue.models()[0]
    data = orjson.loads(bench.digits.rows.read_bytes())
    row = np.array([data["rows"][0]], np.float32)
    payload = pack(RowBlock(1, {record.spec.inputs[0].name: row}))
    outputs = orjson.dumps([{"label": data["labels"][0], "probabilities": data["probabilities"][0]}]).decode()
    one = Rig(url, store, models.load(record.id), payload, outputs)
    store.workers.register(one.worker_id, host="bench", pid=1, pool=POOL, device="cpu", lease_s=_LEASE_S)
    return one
