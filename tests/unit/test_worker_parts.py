"""Choosing a model, encoding results, whose turn it is, and the rate at which a worker works."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchline.data.model_blobs import ModelBlobs
from batchline.job import ClaimedJob, Lane, Status
from batchline.store.contract import Catalogue, Head
from workers.claiming import preferred
from workers.finishing import encode
from workers.heartbeat import Rate, Speeds
from workers.idle import Newcomers
from workers.predict import Predicted
from workers.turns import Turns

SECOND = 1_000_000


def a_job(rows: int = 1) -> ClaimedJob:
    return ClaimedJob(uuid.uuid4(), 1, 1, 1, 0, rows, False, 1.0, b"")


@pytest.mark.parametrize(
    ("loaded", "may_load", "chosen"),
    [({1}, True, 1), ({2}, True, 2), ({3}, True, 1), (set(), True, 1), ({3}, False, 3), (set(), False, None)],
)
def test_a_loaded_model_goes_first_within_a_second_of_rank(
    loaded: set[int], may_load: bool, chosen: int | None
) -> None:
    """Ranks 0, 0.9 s and 1.1 s: the third waits its turn even if loaded, unless nothing may be loaded now."""
    heads = [Head(1, 0, False), Head(2, 9 * SECOND // 10, False), Head(3, 11 * SECOND // 10, False)]
    head = preferred(heads, loaded.__contains__, may_load=may_load)
    assert (head.model_id if head else None) == chosen


@given(hnp.arrays(np.float32, st.integers(1, 8), elements=st.floats(width=32)))
def test_float32_outputs_come_back_bit_for_bit(values: np.ndarray) -> None:
    """The shortest form read as a double and narrowed is the same float32; what is not finite is a word."""
    (done,) = encode([a_job(len(values))], Predicted(passes=[(range(len(values)), {"y": values})]), lambda _: "{}")
    back = np.array([float(row["y"]) for row in json.loads(done.outputs or "")], dtype=np.float32)
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1, 2], np.int64), [1, 2]),
        (np.array([[True], [False]]), [[True], [False]]),
        (np.array(["a", "\x00ü"], object), ["a", "\x00ü"]),
        (np.array([[0.5, 1], [2, np.nan]], np.float16), [[0.5, 1.0], [2.0, "NaN"]]),
        (np.array([0.1, -np.inf]), [0.1, "-Infinity"]),
        (np.array([2**64 - 1, 0], np.uint64), [2**64 - 1, 0]),
    ],
)
def test_every_type_of_output_is_json(values: np.ndarray, expected: list[object]) -> None:
    """Integers, booleans, texts, halves and doubles."""
    (done,) = encode([a_job(2)], Predicted(passes=[(range(2), {"y": values})]), lambda _: "{}")
    assert [row["y"] for row in json.loads(done.outputs or "")] == expected
    assert (done.status, done.rows_failed, done.errors) == (Status.SUCCEEDED, 0, None)


def test_rows_go_to_their_jobs_and_errors_count_from_the_jobs_first_row() -> None:
    """Three jobs of 2, 1, 2 rows over two passes and two faults."""
    jobs = [a_job(2), a_job(1), a_job(2)]
    done = Predicted(
        passes=[([3, 0], {"y": np.array([30, 0])}), ([1], {"y": np.array([10])})], faults={2: "no", 4: "nor this"}
    )
    finished = encode(jobs, done, lambda _: "{}")
    assert [json.loads(f.outputs or "") for f in finished] == [[{"y": 0}, {"y": 10}], [None], [{"y": 30}, None]]
    assert [f.status for f in finished] == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED]
    assert [e["row"] for e in json.loads(finished[2].errors or "")] == [1]


def test_a_text_that_json_cannot_hold_fails_its_job_and_no_other() -> None:
    """A lone surrogate out of a model must not make its claim run for ever."""
    done = Predicted(passes=[(range(2), {"y": np.array(["\ud800", "fine"], object)})])
    first, second = encode([a_job(), a_job()], done, lambda _: "{}")
    assert (first.status, first.rows_failed, first.outputs) == (Status.FAILED, 1, None)
    assert second.status is Status.SUCCEEDED


def test_hands_are_empty_when_nobody_holds_jobs_or_is_about_to() -> None:
    """Jobs in another thread's hands are waited for, and a claim that is under way."""
    turns, held, go_on = Turns(), threading.Event(), threading.Event()

    def other() -> None:
        with turns.slot() as slot, turns.hold([a_job()]):
            slot.release()
            held.set()
            assert go_on.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(10)
    assert not turns.wait_empty(0.05)
    go_on.set()
    assert turns.wait_empty(10)
    with turns.slot():
        assert not turns.wait_empty(0.05)
    thread.join(10)
    assert turns.done(Lane.ONLINE)[1] > 0


def test_the_rate_is_rows_per_busy_second_and_outlives_idleness() -> None:
    """100 rows in half a busy second is 200 rows/s, also ten idle minutes or days later; newer work counts for more."""
    rate = Rate()
    assert rate.add(0, 0.0, 10.0) == 0.0
    assert rate.add(100, 0.5, 10.0) == pytest.approx(200)
    assert rate.add(0, 0.0, 600.0) == pytest.approx(200)
    assert [rate.add(0, 0.0, 3600.0) for _ in range(48)] == pytest.approx([200] * 48)
    assert rate.add(1000, 1.0, 10.0) == pytest.approx(1000, rel=0.01)


def test_rows_and_busy_time_are_told_by_lane():
    """A slice that is in hand makes online work neither busier nor faster."""
    turns = Turns()
    with turns.hold([a_job()], Lane.BULK):
        turns.count(1000, 1, Lane.BULK)
    assert turns.done(Lane.ONLINE) == (0, 0.0)
    rows, busy_s = turns.done(Lane.BULK)
    assert rows == 1000
    assert busy_s > 0


def test_models_have_rates_of_their_own_and_those_not_served_for_longest_go_first():
    """Of one that fades the last rate stays until 64 others have been served since; who did no row has none."""
    speeds = Speeds()
    assert speeds.add({(Lane.ONLINE, 1): (1000, 1.0), (Lane.BULK, 2): (10, 1.0), (Lane.ONLINE, 3): (0, 1.0)}, 1.0) == {
        1: (1000.0, 0.0),
        2: (0.0, 10.0),
    }
    assert speeds.add({(Lane.ONLINE, 2): (30, 1.0)}, 1e6) == {1: (1000.0, 0.0), 2: (30.0, 10.0)}
    many = {(Lane.ONLINE, n): (n, 1.0) for n in range(100, 163)}
    assert set(speeds.add(many, 1.0)) == {2, *range(100, 163)}


def test_a_look_for_new_models_that_fails_is_not_the_last(tmp_path: Path) -> None:
    """Whatever the reason, a database that is being restored for one: models that come later are found."""
    looks: list[None] = []
    stop = threading.Event()

    def models() -> list[Any]:
        looks.append(None)
        if len(looks) == 3:
            stop.set()
        raise LookupError("no such table")

    (tmp_path / "m" / "1").mkdir(parents=True)
    newcomers = Newcomers(tmp_path, cast("Catalogue", SimpleNamespace(models=models)), cast("ModelBlobs", None))
    newcomers.watch(stop, every_s=0.001)
    assert len(looks) == 3
