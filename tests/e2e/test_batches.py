"""Batches from the first call to the last byte, through all four processes, by the `openai` client and by HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pyarrow.csv
import pyarrow.parquet
import pytest
import stack
from chaos_monkey import ROWS
from openai.types import Batch
from system import System, running_system, until

from batchline.batch import parse_batch_id

ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, digits_model: Path) -> Iterator[System]:
    env = {"BATCHLINE_SLICE_ROWS": "64"}
    with running_system(tmp_path_factory.mktemp("system"), {"digits": digits_model}, durable=False, env=env) as system:
        yield system


@pytest.fixture
def http(system: System) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {system.key}"}
    with httpx.Client(base_url=system.urls[0], headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def client(system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{system.urls[0]}/v1", api_key=system.key) as client:
        yield client


def request(custom_id: str, rows: Any, **changes: Any) -> bytes:
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/jobs", "body": {"model": "digits", "inputs": rows}}
    return json.dumps(line | changes).encode() + b"\n"


def ended(client: openai.OpenAI, system: System, lines: bytes, endpoint: Any = "/v1/jobs") -> Batch:
    """A batch of these lines, once it has ended."""
    file = client.files.create(file=("requests.jsonl", lines), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    until(
        lambda: client.batches.retrieve(batch.id).status in ENDED, within_s=60, what="the batch ends", logs=system.logs
    )
    return client.batches.retrieve(batch.id)


def lines_of(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """Lines of an output file by custom_id."""
    assert file_id is not None
    lines = [json.loads(line) for line in client.files.content(file_id).read().splitlines()]
    return {line["custom_id"]: line for line in lines}


def expected(http: httpx.Client, rows: list[Any]) -> list[Any]:
    """What a single job answers."""
    job = http.post("/v1/jobs", json={"model": "digits", "inputs": rows}, headers={"Prefer": "wait=30"}).json()
    assert job["status"] == "succeeded", job
    return job["outputs"]


def test_openais_batch(client: openai.OpenAI, http: httpx.Client, system: System) -> None:
    """Good lines are in the output file, in OpenAI's shape; one that does not fit the model is in the error file.

    A byte order mark before the first line is no part of it.
    """
    lines = b"\xef\xbb\xbf" + b"".join(request(f"r{n}", ROWS[n : n + 2]) for n in range(20)) + request("bad", [[1.0]])
    batch = ended(client, system, lines)
    assert batch.status == "completed", batch
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (21, 20, 1)
    output = lines_of(client, batch.output_file_id)
    assert output.keys() == {f"r{n}" for n in range(20)}
    for n in range(20):
        response = output[f"r{n}"]["response"]
        assert response["status_code"] == 200
        assert response["body"]["outputs"] == expected(http, ROWS[n : n + 2])
        assert output[f"r{n}"]["error"] is None
    errors = lines_of(client, batch.error_file_id)
    assert errors.keys() == {"bad"}
    assert client.files.retrieve(batch.output_file_id or "").purpose == "batch_output"


def test_a_batch_that_exceeds_its_window_expires(client: openai.OpenAI, http: httpx.Client, system: System) -> None:
    """What was finished is in the output file; each request that was not has `batch_expired` in the error file."""
    url = system.postgres.url
    lines = b"".join(request(f"r{n}", [ROWS[n]]) for n in range(130))
    file = client.files.create(file=("requests.jsonl", lines), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/jobs", completion_window="24h")
    assert http.post(f"/v1/batches/{batch.id}/pause").status_code == 200
    wanted = {"id": parse_batch_id(batch.id)}
    slices = "SELECT job_id FROM slices WHERE batch_id = %(id)s"
    until(
        lambda: stack.query(url, "SELECT 1 FROM batches WHERE id = %(id)s AND held AND slices = 3", wanted),
        within_s=30, what="three slices are held", logs=system.logs,
    )  # fmt: skip
    stack.query(url, f"UPDATE jobs SET run_at = NULL WHERE id IN ({slices} AND number = 0)", wanted)
    until(
        lambda: (counts := client.batches.retrieve(batch.id).request_counts) and counts.completed,
        within_s=30, what="the first slice is finished", logs=system.logs,
    )  # fmt: skip
    over = "deadline_at = now() - interval '1 second'"
    stack.query(url, f"UPDATE batches SET {over} WHERE id = %(id)s", wanted)
    stack.query(url, f"UPDATE jobs SET {over} WHERE id IN ({slices})", wanted)
    until(lambda: client.batches.retrieve(batch.id).status in ENDED, within_s=30, what="it ends", logs=system.logs)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.errors, batch.completed_at) == ("expired", None, None)
    assert batch.expired_at is not None
    counts = batch.request_counts
    assert counts is not None
    output, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert (counts.total, counts.completed, len(output)) == (130, len(output), counts.completed)
    assert 0 < len(output) < 130
    assert output.keys() | errors.keys() == {f"r{n}" for n in range(130)}
    assert not output.keys() & errors.keys()
    for line in errors.values():
        assert line["response"] is None
        assert line["error"] == {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        }
    child = http.post(f"/v1/batches/{batch.id}/retry").json()
    until(lambda: client.batches.retrieve(child["id"]).status in ENDED, within_s=30, what="the rest", logs=system.logs)
    assert lines_of(client, client.batches.retrieve(child["id"]).output_file_id).keys() == errors.keys()


def test_a_batch_of_tensors(client: openai.OpenAI, http: httpx.Client, system: System) -> None:
    """The endpoint may be that of the inference protocol."""
    url = "/v2/models/digits/infer"
    body = {"inputs": [{"name": "pixels", "shape": [2, 64], "datatype": "FP32", "data": ROWS[:2]}]}
    batch = ended(client, system, request("t", None, url=url, body=body), url)
    assert batch.status == "completed", batch
    assert batch.error_file_id is None, client.files.content(batch.error_file_id).text
    answer = lines_of(client, batch.output_file_id)["t"]["response"]["body"]
    assert answer["model_name"] == "digits"
    label = next(output for output in answer["outputs"] if output["name"] == "label")
    assert label["data"] == [o["label"] for o in expected(http, ROWS[:2])]


def test_lines_that_cannot_be_read_fail_the_batch(client: openai.OpenAI, system: System) -> None:
    """errors.data names each by its line."""
    batch = ended(client, system, request("a", [ROWS[0]]) + b"{half\n" + request("c", [ROWS[0]], url="/v1/nix"))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert {error.line for error in batch.errors.data or []} == {2, 3}


def finished(http: httpx.Client, system: System, body: dict[str, Any]) -> Any:
    """A data set's batch, once it has ended."""
    response = http.post("/v1/batches", json=body)
    assert response.status_code == 200, response.text
    path = f"/v1/batches/{response.json()['id']}"
    until(lambda: http.get(path).json()["status"] in ENDED, within_s=60, what="the batch ends", logs=system.logs)
    return http.get(path).json()


def test_inline_rows_are_read_from_results(http: httpx.Client, system: System) -> None:
    """In their order, under their key, with what is kept."""
    rows = [{"id": f"user-{n}", "x": row, "site": "a"} for n, row in enumerate(ROWS[:30])]
    body = {"model": "digits", "input": {"rows": rows, "key": "id"}, "output": {"keep": ["site"]}}
    batch = finished(http, system, body)
    assert (batch["status"], batch["rows"]["succeeded"]) == ("completed", 30), batch
    response = http.get(f"/v1/batches/{batch['id']}/results")
    assert response.headers["batchline-complete"] == "true"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert {line["site"] for line in lines} == {"a"}
    assert [line["label"] for line in lines] == [o["label"] for o in expected(http, ROWS[:30])]


def test_a_folder_to_a_folder(http: httpx.Client, system: System) -> None:
    """Parquet in, CSV out, a manifest with the counts."""
    data = system.folder / "data"
    columns = {f"p{i}": [row[i] for row in ROWS[:50]] for i in range(64)}
    (data / "in").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(50)), **columns}), data / "in" / "rows.parquet")
    body = {
        "model": "digits",
        "input": {"uri": f"file://{data}/in/*.parquet", "key": "id"},
        "output": {"uri": f"file://{data}/out/", "format": "csv"},
    }
    batch = finished(http, system, body)
    assert (batch["status"], batch["rows"]["succeeded"]) == ("completed", 50), batch
    parts = [path for path in (data / "out").iterdir() if path.suffix == ".csv"]
    table = pyarrow.csv.read_csv(parts[0])
    assert table["label"].to_pylist() == [o["label"] for o in expected(http, ROWS[:50])]
    assert json.loads((data / "out" / "manifest.json").read_text())["rows"] == 50
