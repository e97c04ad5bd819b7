"""The predictor: halving to the guilty row, sizes that fit, a watchdog that bites."""

from __future__ import annotations

import threading
import time
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.errors import OutOfMemoryError
from batchline.job import Lane
from batchline.model import BatchPolicy, ModelSpec
from workers.collate import MicroBatch
from workers.models import LoadedModel
from workers.predict import Device, Predicted, Predictor, Sizes


class Fake:
    """Doubles x; refuses bad rows, runs out of memory above `room`, or gives fewer rows than it got."""

    def __init__(self, bad: set[int] = frozenset(), room: int = 10**6, short: bool = False) -> None:
        self.bad, self.room, self.short = bad, room, short
        self.sizes: list[int] = []

    def run(self, inputs: Any) -> dict[str, Any]:
        x = inputs["x"]
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise OutOfMemoryError("no room")
        if self.bad & set(x.tolist()):
            raise ValueError("secret text of the runtime")
        return {"y": (x * 2)[: len(x) - self.short]}


def model(runtime: Fake, **policy: Any) -> LoadedModel:
    return LoadedModel(1, ModelSpec("m", "1", "d", 1, (), (), BatchPolicy(**policy)), runtime, None, 0.0)


def predict(loaded: LoadedModel, count: int, sizes: Sizes | None = None) -> Predicted:
    batch = MicroBatch({"x": np.arange(count)}, range(count))
    return Predictor(Device(), sizes or Sizes()).run(loaded, [batch], lambda _: None)


@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=5), st.integers(1, 40))
def test_every_row_ends_once_and_only_the_guilty_are_faults(count: int, bad: set[int], room: int) -> None:
    """Whatever is bad and however little memory there is: each good row has its output."""
    done = predict(model(Fake(bad, room)), count)
    outputs = {row: int(y) for rows, out in done.passes for row, y in zip(rows, out["y"], strict=True)}
    assert outputs == {n: 2 * n for n in range(count) if n not in bad}
    assert set(done.faults) == {n for n in range(count) if n in bad}
    assert not done.no_room


def test_one_bad_row_in_64_costs_two_passes_a_halving() -> None:
    """Halving, not trying each row: 1 + 2 * 6 passes."""
    runtime = Fake({17})
    predict(model(runtime), 64)
    assert len(runtime.sizes) == 13


def test_a_fault_does_not_tell_the_runtimes_text() -> None:
    """Foreign text goes to the log."""
    assert "secret" not in predict(model(Fake({0})), 1).faults[0]


def test_an_output_of_another_length_than_the_input_is_a_fault() -> None:
    """Rows are never matched to outputs by luck."""
    done = predict(model(Fake(short=True)), 2)
    assert set(done.faults) == {0, 1}
    assert "gave 0 rows of y for 1" in done.faults[0]


def test_the_size_that_fits_is_remembered_for_ten_minutes() -> None:
    """Then the model's own limit is tried again."""
    now = [0.0]
    sizes = Sizes(lambda: now[0])
    loaded = model(Fake(room=3), max_batch_size=16)
    predict(loaded, 16, sizes)
    assert sizes.limit(loaded) == 2
    now[0] = 601.0
    assert sizes.limit(loaded) == 16


def test_waiting_online_work_has_the_device_before_the_next_bulk_pass() -> None:
    """Bulk that came first stands back for online work that waits when the device becomes free."""
    device = Device()
    order: list[Lane] = []
    waiting = threading.Semaphore(0)

    def one(lane: Lane) -> None:
        waiting.release()
        with device.occupy(lane):
            order.append(lane)

    threads = [threading.Thread(target=one, args=(lane,)) for lane in (Lane.BULK, Lane.ONLINE, Lane.ONLINE)]
    with device.occupy(Lane.BULK):
        assert not device.online_waits()
        for thread in threads:
            thread.start()
            waiting.acquire()
        deadline = time.monotonic() + 10
        while device._waiting < 2:
            assert time.monotonic() < deadline
        assert device.online_waits()
    for thread in threads:
        thread.join(10)
    assert order == [Lane.ONLINE, Lane.ONLINE, Lane.BULK]
    assert device.online_waits(), "within the last second"


def test_bulk_has_a_turn_a_second_under_endless_online_work() -> None:
    """Online work that always waits does not starve a slice until its rows are nobody's any more."""
    device, done = Device(), threading.Event()

    def online() -> None:
        while not done.is_set():
            with device.occupy():
                pass

    threads = [threading.Thread(target=online) for _ in range(3)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    with device.occupy(Lane.BULK):
        took = time.monotonic() - began
    done.set()
    for thread in threads:
        thread.join(10)
    assert took < 5


def test_bulk_micro_batches_are_cut_to_the_pace_when_the_device_is_theirs() -> None:
    """Every pass asks anew; every row is predicted once, in order."""
    runtime = Fake()
    wanted = iter([4, 1, 3, 100])

    class Pace:
        noted: ClassVar[list[int]] = []

        def rows(self, model: LoadedModel, *, online: bool = False) -> int:
            return next(wanted)

        def note(self, model: LoadedModel, rows: int, seconds: float, size_bytes: int) -> None:
            self.noted.append(rows)

    batch = MicroBatch({"x": np.arange(20)}, range(20))
    done = Predictor(Device(), Sizes()).run(model(runtime), [batch], lambda _: None, pace=Pace())
    assert runtime.sizes == [4, 1, 3, 12] == Pace.noted
    assert [row for rows, _ in done.passes for row in rows] == list(range(20))


def test_a_size_that_is_refused_though_no_row_is_guilty_is_remembered() -> None:
    """A graph may be made for so many rows and no more: beyond max_batch_size that is not the rows' fault."""

    class Narrow(Fake):
        def run(self, inputs: Any) -> dict[str, Any]:
            if len(inputs["x"]) > 16:
                raise ValueError("Reshape")
            return super().run(inputs)

    sizes, loaded = Sizes(), model(Narrow(), max_batch_size=16)
    done = predict(loaded, 64, sizes)
    assert not done.faults
    assert sizes.limit(loaded, most=65_536) == 32
    assert sizes.limit(loaded) == 16


def test_a_forward_pass_beyond_its_time_ends_the_process() -> None:
    """The watchdog sees a pass that takes longer than predict_timeout_s, and only such a one."""
    bitten, go_on = threading.Event(), threading.Event()
    device = Device(hung=lambda: (bitten.set(), go_on.set()))
    device.watch(every_s=0.01)
    with device.forward(model(Fake(), predict_timeout_s=60.0)):
        assert not bitten.wait(0.1)
    with device.forward(model(Fake(), predict_timeout_s=0.05)):
        assert go_on.wait(10)
    device.close()
    assert bitten.is_set()


def test_what_begin_raises_comes_out_and_the_device_is_free_again() -> None:
    """A drain between claim and device leaves the device to others."""
    predictor = Predictor(Device(), Sizes())
    batch = MicroBatch({"x": np.arange(1)}, range(1))

    def refuse(passes: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        predictor.run(model(Fake()), [batch], refuse)
    assert predictor.run(model(Fake()), [batch], lambda _: None).passes
