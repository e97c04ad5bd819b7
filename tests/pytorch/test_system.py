"""PyTorch models through all processes: jobs, the v2 protocol, batches, rows that are refused, a worker that dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch_nets as nets
from system import System, running_system, until

ENDED = {"completed", "failed", "expired", "cancelled"}
MODULES: dict[str, torch.nn.Module] = {}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("pytorch")
    slow = folder / "slow"
    files = {"slow": slow}
    for name, net, example in (
        ("digits", nets.Digits(), torch.zeros(2, 64)),
        ("table", nets.Table(), torch.zeros(2, dtype=torch.int64)),
        ("slow", nets.Slow(), torch.zeros(2, 2)),
    ):
        MODULES[name] = net
        path = slow / "model.pt2" if name == "slow" else folder / f"{name}.pt2"
        nets.save(path, net, (example,), ({0: nets.ROWS},))
        files.setdefault(name, path)
    (slow / "model.toml").write_text("[policy]\nmax_batch_size = 4\n")
    MODULES["picture"] = nets.Picture()
    files["picture"] = nets.save(folder / "picture.pt2", MODULES["picture"], (torch.zeros(1, 3, 8, 8),))
    env = {"BATCHLINE_SLICE_ROWS": "200"}
    with running_system(folder / "system", files, durable=False, env=env) as system:
        yield system


@pytest.fixture
def http(system: System) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {system.key}"}
    with httpx.Client(base_url=system.urls[0], headers=headers, timeout=60) as client:
        yield client


def job(http: httpx.Client, model: str, inputs: Any) -> dict[str, Any]:
    return http.post("/v1/jobs", json={"model": model, "inputs": inputs}, headers={"Prefer": "wait=60"}).json()


def test_a_job_gives_what_eager_pytorch_gives(http: httpx.Client, system: System) -> None:
    """And NaN is a value like any other; a row of another shape is refused when it is submitted."""
    rows = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    done = job(http, "digits", rows.tolist())
    assert done["status"] == "succeeded", (done, system.logs())
    eager = MODULES["digits"](torch.from_numpy(rows))
    np.testing.assert_allclose([o["logits"] for o in done["outputs"]], eager["logits"].detach().numpy(), atol=1e-5)
    assert [o["label"] for o in done["outputs"]] == eager["label"].tolist()
    wrong = http.post("/v1/jobs", json={"model": "digits", "inputs": [[0.0] * 63]})
    assert wrong.status_code == 422
    picture = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    done = job(http, "picture", picture.tolist())
    np.testing.assert_allclose(
        [o["output_0"] for o in done["outputs"]],
        MODULES["picture"].eval()(torch.from_numpy(picture)).numpy(),
        atol=1e-5,
    )


def test_v2_infer(http: httpx.Client) -> None:
    """The Open Inference Protocol serves the same model, and tells its platform."""
    assert http.get("/v2/models/digits").json()["platform"] == "pytorch_pt2"
    data = [0.5] * 64
    body = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": data}]}
    outputs = {o["name"]: o for o in http.post("/v2/models/digits/infer", json=body).json()["outputs"]}
    eager = MODULES["digits"](torch.tensor([data]))
    np.testing.assert_allclose(outputs["logits"]["data"], eager["logits"][0].detach().numpy(), atol=1e-5)
    assert outputs["label"]["data"] == eager["label"].tolist()


def test_only_guilty_rows_fail(http: httpx.Client, system: System) -> None:
    """An index outside of an Embedding makes PyTorch refuse the pass; the other rows have their values."""
    done = job(http, "table", [1, 99, 2, -1, 3])
    assert done["status"] == "failed" or done["errors"], (done, system.logs())
    assert {e["row"] for e in done["errors"]} == {1, 3}
    eager = MODULES["table"](torch.tensor([1, 2, 3])).tolist()
    have = [done["outputs"][n]["output_0"] for n in (0, 2, 4)]
    np.testing.assert_allclose(have, eager, atol=1e-6)


def test_a_table_is_scored_into_a_table(http: httpx.Client, system: System) -> None:
    """Parquet in, Parquet out, a thousand rows in five slices; each has what eager PyTorch gives, NaN among them."""
    rows = np.random.default_rng(2).normal(size=(1000, 64)).astype(np.float32)
    rows[7, 3] = np.nan
    folder = system.folder / "data"
    pq.write_table(pa.table({"id": range(1000), "x": pa.array(list(rows))}), folder / "in.parquet")
    body = {
        "model": "digits",
        "input": {"uri": f"file://{folder}/in.parquet", "key": "id"},
        "output": {"uri": f"file://{folder}/out/", "format": "parquet"},
    }
    batch = http.post("/v1/batches", json=body).json()
    assert "id" in batch, batch
    until(
        lambda: http.get(f"/v1/batches/{batch['id']}").json()["status"] in ENDED,
        within_s=60,
        what="the batch ends",
        logs=system.logs,
    )
    assert http.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed"
    scored = {
        row["id"]: row for row in pa.concat_tables(map(pq.read_table, (folder / "out").glob("*.parquet"))).to_pylist()
    }
    eager = MODULES["digits"](torch.from_numpy(rows))
    assert scored.keys() == set(range(1000))
    np.testing.assert_allclose(
        [scored[n]["logits"] for n in range(1000)], eager["logits"].detach().numpy(), atol=1e-5, equal_nan=True
    )


def test_a_worker_that_is_killed_loses_nothing(http: httpx.Client, system: System) -> None:
    """kill -9 in the middle of a hundred jobs: all of them end, each with its own rows."""
    ids = [http.post("/v1/jobs", json={"model": "slow", "inputs": [[n, -n]]}).json()["id"] for n in range(100)]

    def ended() -> int:
        return sum(http.get(f"/v1/jobs/{i}").json()["status"] == "succeeded" for i in ids)

    until(lambda: ended() > 5, within_s=60, what="some jobs end", logs=system.logs)
    worker = system.parts["worker0"]
    worker.kill()
    assert ended() < 100, "the model is too quick for this test"
    worker.start()
    until(lambda: ended() == 100, within_s=90, what="all jobs end", logs=system.logs)
    for n, i in enumerate(ids):
        done = http.get(f"/v1/jobs/{i}").json()
        assert json.dumps(done["outputs"]) == json.dumps([{"output_0": [float(n), float(-n)]}])


def test_a_worker_with_an_empty_disk_fetches_the_program(http: httpx.Client, system: System) -> None:
    """Programs go by digest through the blob store, as ONNX files do."""
    system.parts["worker0"].stop()
    empty = system.folder / "empty"
    system.add("workers", BATCHLINE_MODELS=str(empty), BATCHLINE_LOG_LEVEL="INFO")
    rows = [[0.25] * 64]
    done = job(http, "digits", rows)
    assert done["status"] == "succeeded", (done, system.logs())
    eager = MODULES["digits"](torch.tensor(rows))["logits"].detach().numpy()
    np.testing.assert_allclose([done["outputs"][0]["logits"]], eager, atol=1e-5)
    assert (empty / ".cache").is_dir()
    system.parts["worker0"].start()
