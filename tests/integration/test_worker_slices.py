"""Slices on real Postgres, real files and a real model: exact rows out, whatever happens on the way."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import batch_rig
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_models
from worker_rig import Rig

from batchline.batch import Input, Output
from batchline.job import Lane
from batchline.store import Store

WIDTH = 3


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    (tmp_path / "data").mkdir()
    return Rig(store, redis_url, tmp_path / "models", **batch_rig.settings_of(tmp_path))


@pytest.fixture
def model(rig: Rig, tmp_path: Path) -> int:
    return rig.add("double", small_models.double(tmp_path / "source.onnx", WIDTH))


def table(rows: int) -> pa.Table:
    """Keys from 1000 and three float columns that tell their row."""
    at = np.arange(rows)
    columns = {f"f{i}": (at * 10 + i).astype(np.float32) for i in range(WIDTH)}
    return pa.table({"id": at + 1000, **columns})


def scored(folder: Path, kind: str = "part") -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(f"{kind}-*.parquet"))])


class Batch:
    """A Parquet file to Parquet parts."""

    def __init__(self, rig: Rig, tmp_path: Path, model: int, ref: str = "double@1") -> None:
        self.rig, self.tmp, self.model, self.ref = rig, tmp_path, model, ref
        self.out = tmp_path / "data" / "out"

    def plan(self, rows: int, slice_rows: int, source: pa.Table | None = None, output: Output | None = None) -> Any:
        path = self.tmp / "data" / "in.parquet"
        pq.write_table(table(rows) if source is None else source, path, row_group_size=max(1, slice_rows))
        given = Input(uri=f"file://{path}", key="id")
        output = output or Output(uri=f"file://{self.out}/", format="parquet")
        self.id = batch_rig.data_set(
            self.rig.store,
            self.model,
            self.ref,
            self.rig.settings,
            given=given,
            output=output,
            slice_rows=slice_rows,
        )
        return self.id

    def counts(self) -> Any:
        view = self.rig.store.batches.read(self.id)
        assert view
        return view.counts

    def slices(self) -> Any:
        return batch_rig.slices(self.rig.store, self.id)


@pytest.fixture
def batch(rig: Rig, tmp_path: Path, model: int) -> Batch:
    return Batch(rig, tmp_path, model)


def run_all(rig: Rig, limit: int = 100) -> list[dict[str, Any]]:
    """Bulk claims until there is nothing."""
    done: list[dict[str, Any]] = []
    for _ in range(limit):
        summary = rig.engine.run(Lane.BULK)
        if not summary["jobs"]:
            break
        done.append(summary)
    return done


def test_every_row_is_scored_once_and_keeps_its_key(rig: Rig, batch: Batch) -> None:
    """Slices of 400 rows: parts hold each row once, in order, beside its key; the counts are exact."""
    batch.plan(1000, 400)
    summaries = run_all(rig)
    assert [s["rows"] for s in summaries] == [400, 400, 200]
    assert all(s["model"] == "double@1" and s["rows_per_s"] > 0 and s["rows_failed"] == 0 for s in summaries)
    got = scored(batch.out)
    assert got.column_names == ["id", "y"]
    assert got["id"].to_pylist() == list(range(1000, 2000))
    assert np.array(got["y"].to_pylist())[:, 2].tolist() == [2 * (10 * n + 2) for n in range(1000)]
    counts = batch.counts()
    assert (counts.total, counts.succeeded, counts.running, counts.queued) == (1000, 1000, 0, 0)
    assert {s.status for s in batch.slices()} == {"succeeded"}
    assert all(s.published for s in batch.slices())
    timings = json.loads(rig.store.jobs.read([batch.slices()[0].job_id])[batch.slices()[0].job_id].timings or "")
    assert timings["rows"] == 400
    assert {"read", "predict", "write"} <= timings.keys()


def test_the_default_sink_has_lines_in_the_order_of_rows(rig: Rig, batch: Batch) -> None:
    """Number, key and outputs a line; faults stand in their places."""
    source = table(50).to_pydict()
    source["f1"][7] = None
    batch.plan(50, 20, pa.table(source), Output())
    run_all(rig)
    lines = [
        json.loads(line)
        for chunk in rig.store.results.read(batch.id, after=-1, limit=100)
        for line in chunk.splitlines()
    ]
    assert [line["row"] for line in lines] == list(range(50))
    assert lines[3] == {"row": 3, "id": 1003, "y": [60.0, 62.0, 64.0]}
    assert lines[7]["error"]["code"] == "invalid_row"
    assert "f1" in lines[7]["error"]["message"]
    assert batch.counts().failed == 1


def test_words_among_the_numbers_of_csv_files_fail_their_rows_only(rig: Rig, model: int, tmp_path: Path) -> None:
    """In the first file, where they make the column text, in a later one, and in the key; told by row and column."""
    for name, rows in (("a", ["1,1,1,1", "2,1,one,1"]), ("b", ["3,1,1,1", "x,1,1,1", "5,1,1,two", "6,2,2,2"])):
        (tmp_path / "data" / f"{name}.csv").write_text("\n".join(["id,f0,f1,f2", *rows]), encoding="utf-8")
    given = Input(uri=f"file://{tmp_path}/data/*.csv", key="id")
    id_ = batch_rig.data_set(rig.store, model, "double@1", rig.settings, given=given, output=Output(), slice_rows=3)
    run_all(rig)
    text = b"".join(rig.store.results.read(id_, after=-1, limit=100))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["row"], line["id"]) for line in lines] == [(0, 1), (1, 2), (2, 3), (3, None), (4, 5), (5, 6)]
    assert [line["error"]["message"] for line in lines if "error" in line] == [
        "column f1: 'one' is no number",
        "column id: 'x' is no int64, as the first rows are: make all of one kind",
        "column f2: 'two' is no number",
    ]
    assert lines[5]["y"] == [4, 4, 4]


def test_bad_rows_among_good_ones_fail_alone(rig: Rig, tmp_path: Path) -> None:
    """Rows that the model refuses: found by halving, named with number and key; all others succeed."""
    model = rig.add("pick", small_models.pick(tmp_path / "pick.onnx"))
    batch = Batch(rig, tmp_path, model, "pick@1")
    values = [n % 10 for n in range(300)]
    values[17], values[200], values[299] = 99, -50, 1000
    batch.plan(300, 150, pa.table({"id": range(300), "i": pa.array(values, pa.int64())}))
    assert [s["rows_failed"] for s in run_all(rig)] == [1, 2]
    got = scored(batch.out)
    assert dict(zip(got["id"].to_pylist(), got["y"].to_pylist(), strict=True)) == {
        n: 10.0 * v for n, v in enumerate(values) if 0 <= v < 10
    }
    errors = scored(batch.out, "errors").to_pylist()
    assert [(e["row"], e["id"], e["code"]) for e in errors] == [(n, n, "predict_failed") for n in (17, 200, 299)]
    assert [s.rows_failed for s in batch.slices()] == [1, 2]


def test_a_retry_does_only_the_rows_that_failed(rig: Rig, tmp_path: Path) -> None:
    """Slices with `only`: row numbers are the parent's, the count is of the rows done."""
    from batchline.batch import NewBatch
    from batchline.job import new_job_id
    from scheduler.slicing import Pace, slices_again

    model = rig.add("pick", small_models.pick(tmp_path / "pick.onnx"))
    batch = Batch(rig, tmp_path, model, "pick@1")
    batch.plan(
        100, 50, pa.table({"id": range(100), "i": pa.array([99 if n in (3, 49, 60) else 1 for n in range(100)])})
    )
    run_all(rig)
    parent = rig.store.batches.read(batch.id)
    assert parent
    child = new_job_id()
    slices = list(slices_again(child, batch.slices(), Pace(time.time(), 1e-5)))
    batch.id = batch_rig.plan(
        rig.store, model, NewBatch(child, batch_rig.TENANT, "data_set", parent.body, model, parent_id=parent.id), slices
    )
    assert [s["rows"] for s in run_all(rig)] == [2, 1]
    assert [s.rows_failed for s in batch.slices()] == [2, 1]
    assert batch.counts().failed == 3


def test_texts_and_rows_of_free_shape_work_in_slices(rig: Rig, tmp_path: Path) -> None:
    """A text front and padding: results come back to their rows in order."""
    source = tmp_path / "words"
    small_models.token_sum(source)
    (source / "model.toml").write_text("[text]\nmax_length = 8\n[policy.padding]\nmode = 'pad'\n")
    model = rig.add("words", source)
    words = [" ".join("abc"[(n + i) % 3] for i in range(n % 5 + 1)) for n in range(2500)]
    batch = Batch(rig, tmp_path, model, "words@1")
    batch.plan(2500, 2000, pa.table({"id": range(2500), "text": words}))
    run_all(rig)
    got = scored(batch.out)
    assert got["id"].to_pylist() == list(range(2500))
    assert got["y"].to_pylist() == [sum("abc".index(w) + 1 for w in text.split()) for text in words]


def test_a_source_that_changed_fails_the_slice_at_once_and_names_the_file(rig: Rig, batch: Batch) -> None:
    """No retry mends it; nothing of the slice is to be seen."""
    batch.plan(100, 100)
    pq.write_table(table(100).slice(1), rig.settings.data_roots + "/data/in.parquet")
    assert [s.get("error") for s in run_all(rig)] == ["source_error"]
    (view,) = batch.slices()
    assert (view.status, view.code) == ("failed", "source_error")
    assert "in.parquet" in view.message
    assert not batch.out.exists() or not list(batch.out.iterdir())


def test_a_cancel_stops_a_slice_between_micro_batches(rig: Rig, tmp_path: Path) -> None:
    """Within about a second, by the progress that is no longer taken; nothing is left behind."""
    going, stop = threading.Event(), threading.Event()
    batch = slow_batch(rig, tmp_path, going, stop)
    thread = threading.Thread(target=run_all, args=(rig,))
    thread.start()
    assert going.wait(20)
    assert rig.store.batches.cancel(batch_rig.TENANT, batch.id)
    began = time.monotonic()
    thread.join(30)
    assert time.monotonic() - began < 10
    assert {s.status for s in batch.slices()} == {"cancelled"}
    assert not list(batch.out.glob("*")), "hidden ones included"
    assert batch.counts().cancelled == 5000


def test_a_drain_gives_the_slice_back_uncharged(rig: Rig, tmp_path: Path) -> None:
    """At the next micro-batch; whoever claims it next does all of it."""
    going, stop = threading.Event(), threading.Event()
    batch = slow_batch(rig, tmp_path, going, stop)
    thread = threading.Thread(target=run_all, args=(rig,))
    thread.start()
    assert going.wait(20)
    began = time.monotonic()
    rig.leave.begin("test")
    thread.join(30)
    assert time.monotonic() - began < 5
    (view,) = batch.slices()
    assert (view.status, view.attempt) == ("queued", 1)
    assert not list(batch.out.glob("*"))
    assert rig.turns.held() == []
    rig.leave.closing.clear()
    rig.leave.draining.clear()
    stop.set()
    run_all(rig)
    assert batch.counts().succeeded == 5000


class Doubled:
    """A runtime that doubles x after what the test wants."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.sizes: list[int] = []

    def __call__(self, spec: Any, data: bytes) -> Doubled:
        return self

    def run(self, inputs: Any) -> dict[str, Any]:
        (x,) = inputs.values()
        self.sizes.append(len(x))
        self.before(x)
        return {"y": x * 2}


def slow_batch(rig: Rig, tmp_path: Path, going: threading.Event, stop: threading.Event) -> Batch:
    """One slice of 5,000 rows, four of them in 20 ms until `stop`; `going` once the first have been on the device."""

    def slow(x: Any) -> None:
        if x.any():  # no warm-up
            going.set()
            stop.wait(0.02)

    rig.models._open = Doubled(slow)
    model = rig.add("slow", small_models.double(tmp_path / "slow.onnx", WIDTH), max_batch_size=4, max_bulk_batch_size=4)
    batch = Batch(rig, tmp_path, model, "slow@1")
    batch.plan(5000, 5000)
    return batch


def test_online_work_goes_on_while_a_slice_runs(rig: Rig, tmp_path: Path) -> None:
    """A slice holds neither the slot nor the device: online jobs come between its micro-batches."""
    going, stop = threading.Event(), threading.Event()
    batch = slow_batch(rig, tmp_path, going, stop)
    thread = threading.Thread(target=run_all, args=(rig,))
    thread.start()
    assert going.wait(20)
    assert rig.engine.run(Lane.BULK)["jobs"] == 0, "one slice at a time"
    jobs = [rig.pixels(batch.model, [i + 1] * WIDTH) for i in range(20)]
    rig.work()
    assert set(rig.statuses(jobs)) == {"succeeded"}
    assert batch.counts().running == 5000
    assert len(rig.turns.held()) == 1
    stop.set()
    thread.join(60)
    assert batch.counts().succeeded == 5000
    assert ("cpu", Lane.BULK) in rig.nudges.sent


def test_the_next_slice_begins_while_the_last_is_finished(rig: Rig, batch: Batch, monkeypatch: Any) -> None:
    """Whoever predicts the last row gives up the bulk turn and nudges; the finish needs no device."""
    batch.plan(800, 400)
    inside, go_on = threading.Event(), threading.Event()
    finish = rig.store.slices.finish

    def slow_finish(worker_id: Any, done: Any) -> bool:
        if not inside.is_set():
            inside.set()
            assert go_on.wait(20)
        return finish(worker_id, done)

    monkeypatch.setattr(type(rig.store.slices), "finish", lambda self, *args: slow_finish(*args))
    thread = threading.Thread(target=rig.engine.run, args=(Lane.BULK,))
    thread.start()
    assert inside.wait(20)
    assert rig.nudges.sent.count(("cpu", Lane.BULK)) >= 2
    second = threading.Thread(target=rig.engine.run, args=(Lane.BULK,))
    second.start()
    deadline = time.monotonic() + 20
    while len(rig.turns.held()) < 2:
        assert time.monotonic() < deadline
    go_on.set()
    thread.join(20)
    second.join(20)
    assert batch.counts().succeeded == 800


def test_a_sink_that_does_not_answer_is_tried_again_later(rig: Rig, batch: Batch, monkeypatch: Any) -> None:
    """Charged once and queued behind a wait; the second attempt writes every row, once."""
    from batchline.data.lines import LinesPart
    from batchline.errors import SinkUnavailableError

    def away(self: Any) -> Any:
        raise SinkUnavailableError("Postgres takes no results now.")

    batch.plan(100, 100, output=Output())
    with monkeypatch.context() as patch:
        patch.setattr(LinesPart, "stage", away)
        assert [s.get("error") for s in run_all(rig)] == ["sink_unavailable"]
    assert batch.counts().queued == 100
    deadline = time.monotonic() + 20
    while not rig.store.chores.release():
        assert time.monotonic() < deadline
    run_all(rig)
    assert batch.counts().succeeded == 100
    read = b"".join(rig.store.results.read(batch.id, after=-1, limit=1000))
    assert [json.loads(line)["row"] for line in read.splitlines()] == list(range(100))


def test_a_store_that_fails_under_a_slice_is_no_fault_of_the_slice(
    store: Store, redis_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """Somebody locks a table of batches, or takes away its rights, while all else in Postgres goes on: the slice is
    queued behind a wait, though its own budget would be spent."""
    from batchline.errors import StoreUnavailableError

    def locked(*_: object) -> Any:
        raise StoreUnavailableError("Postgres did not answer; try again.")

    (tmp_path / "data").mkdir()
    rig = Rig(store, redis_url, tmp_path / "models", max_failures=1, **batch_rig.settings_of(tmp_path))
    batch = Batch(rig, tmp_path, rig.add("double", small_models.double(tmp_path / "source.onnx", WIDTH)))
    batch.plan(100, 100, output=Output())
    with monkeypatch.context() as patch:
        patch.setattr(type(store.slices), "work", locked)
        assert [s.get("error") for s in run_all(rig)] == ["store_unavailable"]
    assert batch.counts().queued == 100
