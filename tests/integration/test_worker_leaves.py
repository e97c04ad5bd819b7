"""A worker that is told to leave, by a notice or by signals, wherever it stands: it exits with 0 and owes nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import batch_rig
import fake_imds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_models
import stack
from fake_imds import FakeImds
from worker_process import PRODUCT, ROOT, Worker, a_worker, until
from worker_rig import Rig

from batchline.batch import Input, Output
from batchline.store import Store
from workers.spot_notice import MARGIN_S

LINGERING = (str(ROOT / "tests" / "launchers" / "worker_that_lingers.py"),)
LOADING = {"LINGER_IN": "workers.models:Models._load", "LINGER_S": "2.5"}
WRITING = {"LINGER_IN": "workers.data_set:DataSetWork._put", "LINGER_S": "2.5"}
ROWS, SLICE_ROWS = 40, 10


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    (tmp_path / "data").mkdir()
    return Rig(store, redis_url, tmp_path / "models", **batch_rig.settings_of(tmp_path))


@pytest.fixture
def imds() -> Iterator[FakeImds]:
    with fake_imds.fake_imds() as imds:
        imds.warn()  # so that a notice is seen within two seconds
        yield imds


@pytest.fixture
def worker(rig: Rig, imds: FakeImds, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Worker]:
    places = {
        "BATCHLINE_DATA_ROOTS": rig.settings.data_roots,
        "BATCHLINE_BLOBS": rig.settings.blobs,
        "BATCHLINE_SPOT_NOTICE": imds.url,
        "BATCHLINE_IDLE_POLL_S": "0.2",
        "BATCHLINE_LEASE_S": "60",
    }
    with a_worker(database_url, redis_url, rig.repository, tmp_path / "worker.log", **places) as worker:
        yield worker


@pytest.fixture
def out(rig: Rig, tmp_path: Path) -> Path:
    """Where a batch of four slices of ten rows puts its parts."""
    model = rig.add("double", small_models.double(tmp_path / "source.onnx"))
    at = np.arange(ROWS)
    path = tmp_path / "data" / "in.parquet"
    source = pa.table({"id": at, "a": at.astype(np.float32), "b": np.ones(ROWS, np.float32)})
    pq.write_table(source, path, row_group_size=SLICE_ROWS)
    given = Input(uri=f"file://{path}", key="id")
    output = Output(uri=f"file://{tmp_path / 'data' / 'out'}/", format="parquet")
    batch_rig.data_set(rig.store, model, "double@1", rig.settings, given=given, output=output, slice_rows=SLICE_ROWS)
    return tmp_path / "data" / "out"


def start_and_linger(worker: Worker, where: dict[str, str]) -> None:
    """Start it, and have it stand for a while in the middle of what is named."""
    worker.start(LINGERING, **where)
    until(lambda: "lingers" in worker.log(), worker)


def has_left(worker: Worker, database_url: str) -> float:
    """Wait for the end of the process, and see that it was a good one; returns how many seconds it took."""
    began = time.monotonic()
    until(lambda: not worker.alive, worker)
    assert worker.process
    assert worker.process.returncode == 0, worker.log()
    live = "SELECT count(*) FROM workers WHERE lease_until > now() AND pid = %s"
    assert stack.query(database_url, live, [worker.process.pid]) == [(0,)], "its lease ends with it"
    return time.monotonic() - began


def jobs(database_url: str) -> list[tuple[str, int, bool, bool]]:
    """Of each job, in order: status, failures, whether it is suspect, whether it is somebody's."""
    sql = "SELECT status::text, failures, suspect, status = 'running' FROM jobs ORDER BY rank"
    return stack.query(database_url, sql)


UNTOUCHED = ("queued", 0, False, False)
DONE = ("succeeded", 0, False, False)


@pytest.mark.parametrize("by", ["notice", "signal"])
def test_a_worker_that_loads_a_model_leaves_when_it_is_loaded_and_claims_nothing(
    worker: Worker, imds: FakeImds, database_url: str, out: Path, by: str
) -> None:
    """From its first moment: Celery, which catches the signal later on, is not up yet."""
    start_and_linger(worker, LOADING)
    assert worker.process
    imds.notice(60)
    if by == "signal":
        worker.process.send_signal(signal.SIGTERM)
    has_left(worker, database_url)
    assert jobs(database_url) == [UNTOUCHED] * 4


def test_a_slice_that_is_being_written_is_finished_where_there_is_time(
    worker: Worker, imds: FakeImds, database_url: str, out: Path
) -> None:
    """What is in hand, the next slice perhaps, is finished; nothing is begun."""
    start_and_linger(worker, WRITING)
    imds.notice(60)
    has_left(worker, database_url)
    assert jobs(database_url) in ([DONE] * n + [UNTOUCHED] * (4 - n) for n in (1, 2, 3))
    keys = [k for p in out.glob("part-*") for k in pq.read_table(p)["id"].to_pylist()]
    assert sorted(keys) == list(range(SLICE_ROWS * jobs(database_url).count(DONE)))


@pytest.mark.parametrize("by", ["short notice", "two signals", "notice, two signals"])
def test_a_slice_that_is_being_written_is_given_back_where_there_is_none(
    worker: Worker, imds: FakeImds, database_url: str, out: Path, by: str
) -> None:
    """Uncharged, no suspect, and without a trace; a second SIGTERM makes it neither worse nor slower."""
    start_and_linger(worker, WRITING)
    assert worker.process
    if "notice" in by:
        imds.notice(MARGIN_S if "short" in by else 90)
        until(lambda: '"leaving"' in worker.log(), worker)
    for _ in range(2 * by.count("two signals")):
        worker.process.send_signal(signal.SIGTERM)
    assert has_left(worker, database_url) < MARGIN_S
    assert jobs(database_url) == [UNTOUCHED] * 4
    assert [p.name for p in out.glob("*part*")] == []


def test_a_worker_with_online_jobs_answers_them_and_one_without_any_leaves_at_once(
    rig: Rig, worker: Worker, imds: FakeImds, database_url: str
) -> None:
    """A later end of the instance in a second notice changes nothing: who has begun to leave leaves."""
    model = rig.add("double", small_models.double(rig.repository / "source.onnx"))
    held = rig.pixels(model, [1, 2])
    worker.start(PRODUCT, BATCHLINE_FAILPOINTS="worker.before_finish=sleep:2.5")
    until(lambda: rig.statuses([held]) == ["running"], worker)
    imds.notice(60)
    until(lambda: '"leaving"' in worker.log(), worker)
    imds.notice(120)
    later = rig.pixels(model, [3, 4])
    has_left(worker, database_url)
    assert rig.statuses([held, later]) == ["succeeded", "queued"]
    assert jobs(database_url) == [DONE, UNTOUCHED]
    worker.start(PRODUCT)
    has_left(worker, database_url)
    assert jobs(database_url) == [DONE, UNTOUCHED]
