"""A worker without the runtime of a model: it leaves its jobs alone, does the others, and other workers do those."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import small_models
import stack
from worker_rig import Rig

from batchline.job import Lane
from batchline.store import Store
from workers.runtimes.choice import Runtimes


class Doubling:
    """Stands in for PyTorch: y = 2 x."""

    def run(self, inputs: Any) -> dict[str, Any]:
        return {"y": inputs["x"] * 2}


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    rig = Rig(store, redis_url, tmp_path / "models")
    rig.models._check = Runtimes("cpu", 1, lambda package: package != "torch").check
    return rig


def a_program(rig: Rig, onnx_file: Path) -> int:
    """A model in the catalogue that needs PyTorch; what it takes is what `double` takes."""
    model = rig.add("program", small_models.double(onnx_file))
    spec = next(r.spec for r in rig.store.catalogue.models() if r.id == model)
    folder = rig.repository / "program" / "1"
    (folder / "model.onnx").rename(folder / "model.pt2")
    rig.store.catalogue.register_model(msgspec.structs.replace(spec, file="model.pt2"))
    return model


@pytest.mark.parametrize("lane", list(Lane))
def test_jobs_of_models_that_need_pytorch_wait_for_workers_that_have_it(  # noqa: PLR0917
    rig: Rig, database_url: str, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, lane: Lane
) -> None:
    """They are not claimed, do not fail and count as no failure; it is said once, and other work goes on."""
    caplog.set_level(logging.WARNING, "workers")
    program = a_program(rig, tmp_path / "a.onnx")
    plain = rig.add("plain", small_models.double(tmp_path / "b.onnx"))
    waiting = [rig.pixels(program, [i, i], lane=lane) for i in range(3)]
    rig.models.preload("cpu")
    done = [rig.pixels(plain, [i, i]) for i in range(3)]
    rig.work()
    rig.engine.run(lane)
    for _ in range(20):
        assert rig.engine.run(lane)["jobs"] == 0
    assert set(rig.statuses(done)) == {"succeeded"}
    assert set(rig.statuses(waiting)) == {"queued"}
    counted = "SELECT max(failures), max(attempt) FROM jobs WHERE model_id = %s"
    assert stack.query(database_url, counted, [program]) == [(0, 0)]
    said = [r for r in caplog.records if r.message == "model passed over"]
    assert len(said) == 1
    assert "batchline[torch]" in said[0].error
    if lane is Lane.ONLINE:
        other = Rig(rig.store, redis_url, rig.repository, open_runtime=lambda spec, data: Doubling())
        other.work()
        assert [other.outputs(j) for j in waiting] == [[{"y": [2.0 * i, 2.0 * i]}] for i in range(3)]
