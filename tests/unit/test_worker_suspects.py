"""Narrowing down: whatever rows kill the process, each is found alone, and its neighbours are predicted."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.job import ClaimedJob
from batchline.model import BatchPolicy, ModelSpec, TensorSpec
from workers.models import LoadedModel
from workers.predict import Device, Predictor, Sizes
from workers.stretches import Stretch, settle
from workers.suspects import Alone
from workers.turns import Turns


class DiedError(BaseException):
    """Stands for the end of the process."""


class Runtime:
    def __init__(self, deadly: set[int]) -> None:
        self.deadly = deadly

    def run(self, inputs: Any) -> dict[str, Any]:
        if self.deadly & set(inputs["x"].tolist()):
            raise DiedError
        return {"y": inputs["x"] * 2}


class Noted:
    """The store as far as exposure goes."""

    def __init__(self) -> None:
        self.exposed: tuple[int, int] = (0, 0)

    def expose(self, worker_id: uuid.UUID, job: Any, rows: tuple[int, int]) -> bool:
        self.exposed = rows
        return True


class Pace:
    def __init__(self, size: int) -> None:
        self.size = size

    def rows(self, model: Any, *, online: bool = False) -> int:
        return self.size

    def note(self, model: Any, rows: int, seconds: float, size_bytes: int) -> None:
        pass


def attempt(
    rows: list[int], runtime: Runtime, size: int, exposed: tuple[int, int] | None, noted: Noted
) -> dict[int, int]:
    """One life: outputs by offset, or DiedError."""
    spec = ModelSpec("m", "1", "d", 1, (TensorSpec("x", "INT64", ()),), (), BatchPolicy())
    alone = Alone(
        noted,  # pyright: ignore[reportArgumentType]
        Predictor(Device(), Sizes()),
        Turns(),
        worker_id=uuid.uuid4(),
        job=ClaimedJob(uuid.uuid4(), 1, 1, 1, 0, len(rows), True, 0.0, b""),
        model=LoadedModel(1, spec, runtime, None, 0.0),
        pace=Pace(size),
        exposed=exposed,
        check=lambda: None,
        stop=threading.Event(),
    )
    todo = np.array(rows, np.int64)
    stretch = Stretch(0, max(rows, default=0) + 1, None, todo, {"x": todo})
    alone.predict(stretch)
    done = settle(stretch)
    return dict(zip(done.good.tolist(), np.asarray(done.outputs.get("y", [])).tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.sets(st.integers(0, 2999), max_size=4), st.sampled_from([1, 7, 64, 4096]))
def test_every_deadly_row_is_found_alone_and_all_others_are_predicted(count: int, deadly: set[int], size: int) -> None:
    """Three deaths a row at most, for what is up to 65,536 rows: with everything, with a 256th of it, alone."""
    deadly = {n for n in deadly if n < count}
    noted, poison, deaths = Noted(), set[int](), 0
    exposed: tuple[int, int] | None = None
    while True:
        if exposed is not None and exposed[1] - exposed[0] == 1:
            poison.add(exposed[0])
            exposed = None
        try:
            got = attempt([n for n in range(count) if n not in poison], Runtime(deadly), size, exposed, noted)
        except DiedError:
            deaths += 1
            exposed = noted.exposed
            assert deaths <= 3 * len(deadly)
            continue
        break
    assert poison == deadly
    assert got == {n: 2 * n for n in range(count) if n not in deadly}
    assert noted.exposed == (0, 0) or not got, "nothing is exposed behind the last pass"
