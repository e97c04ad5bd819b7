"""Slices in a worker process that is killed, or kills itself at a row."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batch_rig
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_models
from worker_process import DYING, PRODUCT, Worker, a_worker, until
from worker_rig import Rig

from batchline.batch import Input, Output
from batchline.data import open_sink, places_of
from batchline.data.contract import SinkContext
from batchline.store import Store

DEADLY = 666.0
ROWS = 600


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    (tmp_path / "data").mkdir()
    return Rig(store, redis_url, tmp_path / "models", **batch_rig.settings_of(tmp_path))


@pytest.fixture
def worker(rig: Rig, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Worker]:
    places = {"BATCHLINE_DATA_ROOTS": rig.settings.data_roots, "BATCHLINE_BLOBS": rig.settings.blobs}
    with a_worker(database_url, redis_url, rig.repository, tmp_path / "worker.log", **places) as worker:
        yield worker


def plan(rig: Rig, tmp_path: Path, deadly: tuple[int, ...] = (), slice_rows: int = 200) -> Any:
    """A batch of 600 rows in three slices."""
    model = rig.add("double", small_models.double(tmp_path / "source.onnx"))
    at = np.arange(ROWS)
    path = tmp_path / "data" / "in.parquet"
    source = pa.table({"id": at, "a": np.where(np.isin(at, deadly), DEADLY, -at).astype(np.float32), "b": at / 7})
    pq.write_table(source, path, row_group_size=slice_rows)
    given = Input(uri=f"file://{path}", key="id")
    output = Output(uri=f"file://{tmp_path / 'data' / 'out'}/", format="parquet")
    return batch_rig.data_set(
        rig.store, model, "double@1", rig.settings, given=given, output=output, slice_rows=slice_rows
    )


def keys(tmp_path: Path, kind: str = "part") -> list[int]:
    files = sorted((tmp_path / "data" / "out").glob(f"{kind}-*.parquet"))
    return [key for path in files for key in pq.read_table(path)["id"].to_pylist()]


def statuses(rig: Rig, batch: Any) -> set[str]:
    return {s.status for s in batch_rig.slices(rig.store, batch)}


def chores(rig: Rig) -> None:
    rig.store.chores.rescue(max_failures=2)
    rig.store.chores.release()


@pytest.mark.parametrize("where", ["worker.before_finish", "worker.before_publish"])
def test_a_worker_killed_in_a_slice_costs_time_and_no_row(rig: Rig, worker: Worker, tmp_path: Path, where: str) -> None:
    """kill -9 with the part staged, or finished and unpublished: every row is there once when all has ended."""
    batch = plan(rig, tmp_path)
    worker.start(PRODUCT, BATCHLINE_FAILPOINTS=f"{where}=kill:2")
    until(lambda: not worker.alive, worker)
    worker.start()

    def ended() -> bool:
        chores(rig)
        return statuses(rig, batch) == {"succeeded"}

    until(ended, worker)
    worker.end(signal.SIGTERM)
    publish_rest(rig, batch, tmp_path)
    assert keys(tmp_path) == list(range(ROWS))


def publish_rest(rig: Rig, batch: Any, tmp_path: Path) -> None:
    """Publish what workers finished and did not live to publish, as a scheduler does."""
    output = Output(uri=f"file://{tmp_path / 'data' / 'out'}/", format="parquet")
    sink = open_sink(output, places_of(rig.settings), SinkContext(batch, "id"))
    for job, _, number, staged in rig.store.slices.unpublished(limit=10):
        sink.publish(number, staged)
        rig.store.slices.published([job])


def test_rows_that_kill_the_process_are_poison_and_all_others_succeed(rig: Rig, worker: Worker, tmp_path: Path) -> None:
    """Two deadly rows in one slice of 200: each is narrowed down alone, fails by itself, and costs no neighbour."""
    deadly = (250, 380)
    batch = plan(rig, tmp_path, deadly)
    lives = 0

    def ended() -> bool:
        nonlocal lives
        if not worker.alive:
            worker.start(DYING)
            lives += 1
        chores(rig)
        return not {"queued", "running"} & statuses(rig, batch)

    until(ended, worker, 120)
    worker.end(signal.SIGTERM)
    publish_rest(rig, batch, tmp_path)
    assert statuses(rig, batch) == {"succeeded"}
    assert keys(tmp_path) == [n for n in range(ROWS) if n not in deadly]
    errors = pq.read_table(next((tmp_path / "data" / "out").glob("errors-*.parquet"))).to_pylist()
    assert [(e["row"], e["id"], e["code"]) for e in errors] == [(n, n, "poison") for n in deadly]
    assert lives == 6, "one dies in company, two for each row, and one succeeds"
