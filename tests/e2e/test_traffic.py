"""Two versions of digits under a rule: who answers is who should, and the shadow is compared without being seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from system import running_system, until

from batchline.client import Client
from batchline.registry import import_model
from batchline.store import open_store
from batchline.traffic import takes_part
from examples import digits

ROWS = digits.held_out().rows[:60]


def biased(source: Path, target: Path) -> Path:
    """The digits model with a liking for threes: the same tensors, other labels for many rows."""
    model = onnx.load(source / "model.onnx")
    bias = next(w for w in model.graph.initializer if list(w.dims) in ([10], [1, 10]))
    values = numpy_helper.to_array(bias).copy()
    values[..., 3] += 15.0
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    target.mkdir()
    onnx.save(model, target / "model.onnx")
    return target


def labels(model: Path) -> list[int]:
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["label"], {"pixels": ROWS})[0].tolist()


@pytest.mark.timeout(120)
def test_canary_and_shadow_of_sixty_jobs(tmp_path: Path, digits_model: Path) -> None:
    """Each job is answered by the version that its key says, as ONNX Runtime answers it; sixty copies are compared, and
    exactly those agree whose labels are the same; no copy is in the list of jobs."""
    other = biased(digits_model, tmp_path / "biased")
    ours, theirs = labels(digits_model), labels(other)
    differ = sum(a != b for a, b in zip(ours, theirs, strict=True))
    assert 10 < differ < 55
    with (
        running_system(tmp_path / "system", {"digits": digits_model}) as system,
        Client(system.urls[0], system.key) as client,
    ):
        store = open_store(system.postgres.url, connections=1)
        import_model(tmp_path / "system" / "models", "digits", other, store.catalogue.register_model)
        store.close()
        client.set_traffic("digits", "1", canary="2", percent=50, shadow="2")
        keys = [f"digit-{n}" for n in range(len(ROWS))]
        jobs = [
            client.submit("digits", [row], idempotency_key=key) for key, row in zip(keys, ROWS.tolist(), strict=True)
        ]
        done = [client.wait(job, timeout_s=60) for job in jobs]
        canary = [takes_part(key.encode(), 50) for key in keys]
        assert [job.version for job in done] == ["2" if mine else "1" for mine in canary]
        assert 15 < sum(canary) < 45
        expected = [b if mine else a for mine, a, b in zip(canary, ours, theirs, strict=True)]
        assert [job.outputs and job.outputs[0] and job.outputs[0]["label"] for job in done] == expected

        def compared() -> int:
            lately = client.traffic("digits").lately
            return lately.compared.pairs if lately and lately.compared else 0

        until(lambda: compared() == len(ROWS), within_s=60, what="all copies are compared", logs=system.logs)
        lately = client.traffic("digits").lately
        assert lately is not None
        assert lately.compared is not None
        assert lately.canary is not None
        assert lately.shadow is not None
        assert lately.compared.agree == np.equal(expected, theirs).sum()
        assert (lately.production.jobs, lately.canary.jobs) == (60 - sum(canary), sum(canary))
        assert (lately.shadow.jobs, lately.shadow.failed, lately.production.failed) == (60, 0, 0)
        assert lately.production.p50_ms is not None
        assert {job.id for job in client.jobs(limit=200)} == {job.id for job in jobs}
