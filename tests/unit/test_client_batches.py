"""Batches by the SDK against a scripted server: what is sent of which data, what is told, what comes back."""

from __future__ import annotations

import asyncio
import email
import gzip
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchline import errors
from batchline.batch import BatchStatus
from batchline.client import AsyncClient, Client, RowError
from batchline.clock import FakeClock


def batch(status: str = "in_progress", done: int = 0, **more: Any) -> dict[str, Any]:
    """A batch as the API shows it."""
    rows = {"total": 4, "succeeded": done, "failed": 0, "cancelled": 0, "expired": 0, "running": 4 - done, "queued": 0}
    base = {"id": "batch_1", "object": "batch", "status": status, "model": "churn", "version": "1", "rows": rows}
    return base | {"created_at": 1, "endpoint": "/v1/jobs", "usage": None, "errors": None} | more


class World:
    """A server of batches that keeps what it was sent."""

    def __init__(self, *answers: dict[str, Any] | httpx.Response | type[Exception]) -> None:
        self.requests: list[httpx.Request] = []
        self.clock = FakeClock()
        self.answers = list(answers)
        self.slept: list[float] = []
        self.outputs: list[dict[str, Any]] = []
        """What the model declares to give."""
        transport = httpx.MockTransport(self.handle)
        self.client = Client("http://a", "k", transport=transport, clock=self.clock, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)

    def handle(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        if request.url.path == "/v1/files" and not (self.answers and isinstance(self.answers[0], type)):
            return httpx.Response(200, json={"id": "file-1", "bytes": 3, "object": "file"})
        if request.url.path.startswith("/v1/models/"):
            return httpx.Response(200, json={"id": "churn", "versions": [{"version": "1", "outputs": self.outputs}]})
        answer = self.answers.pop(0)
        if isinstance(answer, type):
            raise answer("cut")
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    @property
    def body(self) -> dict[str, Any]:
        """Of the last request."""
        return json.loads(self.requests[-1].content)

    @property
    def upload(self) -> tuple[str | None, bytes]:
        """Name and bytes of the file that was sent first."""
        request = self.requests[0]
        assert (request.method, request.url.path) == ("POST", "/v1/files")
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        form: Message = email.message_from_bytes(head + request.content)
        parts = {p.get_param("name", header="content-disposition"): p for p in form.get_payload()}  # type: ignore[union-attr]
        assert parts["purpose"].get_payload() == "batch"
        return parts["file"].get_filename(), parts["file"].get_payload(decode=True)  # type: ignore[return-value]


def lines(*rows: dict[str, Any], complete: bool = True) -> httpx.Response:
    text = b"".join(json.dumps(r).encode() + b"\n" for r in rows)
    return httpx.Response(200, content=text, headers={"Batchline-Complete": str(complete).lower()})


def test_a_uri_is_left_to_the_server() -> None:
    """Nothing is uploaded; every option goes where the API wants it, and nothing that was not given."""
    world = World(batch("validating"))
    got = world.client.batch(
        "churn", "s3://b/users/*.parquet", key="id", columns=["a", "b"], output="s3://b/out/", output_format="csv",
        keep=["name"], version=3, priority=2, deadline=datetime(2026, 11, 2, tzinfo=UTC), error_threshold=0.1,
        metadata={"k": "v"},
    )  # fmt: skip
    assert (world.requests[0].method, world.requests[0].url.path) == ("POST", "/v1/batches")
    assert len(world.requests[0].headers["idempotency-key"]) == 32
    assert world.body == {
        "model": "churn", "version": 3, "priority": 2, "deadline": "2026-11-02T00:00:00Z", "error_threshold": 0.1,
        "input": {"uri": "s3://b/users/*.parquet", "key": "id", "columns": ["a", "b"]}, "metadata": {"k": "v"},
        "output": {"uri": "s3://b/out/", "format": "csv", "keep": ["name"]},
    }  # fmt: skip
    assert got.id == "batch_1"
    assert got.info.status is BatchStatus.VALIDATING
    world = World(batch())
    world.client.batch("churn", "file:///data/x.jsonl")
    assert world.body == {"model": "churn", "input": {"uri": "file:///data/x.jsonl"}}


def test_a_table_of_the_server_is_named() -> None:
    """An input as the API takes it goes through as it is."""
    world = World(batch())
    where, output = [["age", ">", 3]], {"table": "scores", "mode": "upsert"}
    world.client.batch("churn", {"table": "users", "database": "shop"}, key="id", where=where, output=output)
    assert world.body["input"] == {"table": "users", "database": "shop", "key": "id", "where": [["age", ">", 3]]}
    assert world.body["output"] == {"table": "scores", "mode": "upsert"}


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_here_is_uploaded_under_its_name(tmp_path: Path, kind: Callable[[str], object]) -> None:
    """Byte for byte; the batch names the file that came of it."""
    path = tmp_path / "users.csv"
    path.write_bytes(bytes(range(256)) * 1000)
    world = World(batch())
    world.client.batch("churn", kind(str(path)), key="id")
    assert world.upload == ("users.csv", path.read_bytes())
    assert world.body["input"] == {"key": "id", "file_id": "file-1"}


def test_a_compressed_file_is_unpacked_on_the_way(tmp_path: Path) -> None:
    """What is inside is sent, under the name of what is inside; a damaged one is said to be."""
    path = tmp_path / "users.csv.gz"
    path.write_bytes(gzip.compress(b"id,a\n1,2\n" * 100_000))
    world = World(batch())
    world.client.batch("churn", path)
    assert world.upload == ("users.csv", b"id,a\n1,2\n" * 100_000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(errors.InvalidRequestError, match=r"users.csv.gz cannot be read"):
        World(batch()).client.batch("churn", path)


def test_an_upload_is_repeated_from_its_beginning(tmp_path: Path) -> None:
    """A connection lost in the middle of a file costs nothing but time."""
    path = tmp_path / "users.csv"
    path.write_text("id,a\n1,2\n")
    world = World(httpx.WriteError, httpx.ReadError, batch())
    world.client.batch("churn", path)
    assert [r.url.path for r in world.requests] == ["/v1/files"] * 3 + ["/v1/batches"]
    assert b"id,a\n1,2\n" in world.requests[2].content


def test_no_such_file_is_said_before_anything_is_sent() -> None:
    """And how a path of the server is written."""
    world = World()
    with pytest.raises(errors.InvalidRequestError, match=r"no file 'users.csv' here.*file://"):
        world.client.batch("churn", "users.csv")
    assert not world.requests


FRAME = {"id": [1, 2], "a": [0.5, None], "name": ["x", ""]}


@pytest.mark.parametrize(
    "data",
    [pa.table(FRAME), pd.DataFrame(FRAME), pl.DataFrame(FRAME), pa.table(FRAME).to_batches()[0],
     pd.DataFrame(FRAME).set_index("id")],
    ids=["pyarrow", "pandas", "polars", "record batch", "pandas index"],
)  # fmt: skip
def test_tables_go_as_parquet(data: object) -> None:
    """Whatever made the table: the same columns, nulls as nulls, an index that is the key among them."""
    world = World(batch())
    world.client.batch("churn", data, key="id")
    name, content = world.upload
    assert name == "table.parquet"
    assert world.body["input"] == {"format": "parquet", "key": "id", "file_id": "file-1"}
    sent = pq.read_table(io.BytesIO(content))
    rows = [{k: row[k] for k in FRAME} for row in sent.to_pylist()]
    assert rows == [{"id": 1, "a": 0.5, "name": "x"}, {"id": 2, "a": None, "name": ""}]
    assert sent.schema.metadata is None


@pytest.mark.parametrize("category", [pl.Categorical, pl.Enum(["x", "y"])])
def test_categories_of_polars_go_as_texts(category: Any) -> None:
    """Arrow's writer knows no dictionaries of views."""
    world = World(batch())
    world.client.batch("churn", pl.DataFrame({"id": pl.Series(["x", None, "x"], dtype=category), "a": [1, 2, 3]}))
    assert pq.read_table(io.BytesIO(world.upload[1])).column("id").to_pylist() == ["x", None, "x"]


def test_a_level_of_an_index_may_be_the_key() -> None:
    """The other levels are not sent."""
    index = pd.MultiIndex.from_tuples([(1, "p"), (2, "q")], names=["id", "day"])
    world = World(batch())
    world.client.batch("churn", pd.DataFrame({"a": [1.0, 2.0]}, index=index), key="id")
    sent = pq.read_table(io.BytesIO(world.upload[1])).to_pylist()
    assert sent == [{"id": 1, "a": 1.0}, {"id": 2, "a": 2.0}]


def test_an_index_that_is_no_key_is_not_sent() -> None:
    """A column that nobody named would be read as a feature."""
    world = World(batch())
    world.client.batch("churn", pd.DataFrame({"a": [1.0]}, index=["x"]))
    assert pq.read_table(io.BytesIO(world.upload[1])).column_names == ["a"]


def test_few_rows_go_along_many_are_uploaded() -> None:
    """Up to 1,000 rows and a MiB travel in the body; more as JSON lines."""
    world = World(batch())
    world.client.batch("churn", np.ones((3, 2)))
    assert world.body["input"] == {"rows": [[1.0, 1.0]] * 3}
    world = World(batch())
    world.client.batch("churn", [{"a": i} for i in range(1001)])
    name, content = world.upload
    assert name == "rows.jsonl"
    assert [json.loads(line) for line in content.splitlines()] == [{"a": i} for i in range(1001)]
    assert world.body["input"] == {"format": "jsonl", "file_id": "file-1"}
    world = World(batch())
    world.client.batch("minilm", ["x" * 2000] * 600)
    assert world.upload[0] == "rows.jsonl"


@pytest.mark.parametrize(
    "data",
    [[], 3, None, b"abc", object(), pd.Series([1]), pl.Series("a", [1]),
     pa.table({"id": pa.array([pa.MonthDayNano([1, 2, 3])])})],
    ids=lambda data: type(data).__module__.partition(".")[0],
)  # fmt: skip
def test_what_is_no_data_set_is_refused(data: object) -> None:
    """Before anything is sent."""
    world = World(batch())
    with pytest.raises(errors.InvalidRequestError):
        world.client.batch("churn", data)
    assert not world.requests


def test_waiting_outlives_the_server_and_tells_of_progress() -> None:
    """Lost connections and refusals are waited out; each news is told; the last is kept."""
    world = World(
        batch("validating"), httpx.ConnectError, batch(done=2), httpx.Response(503), batch("completed", done=4)
    )
    told: list[int] = []
    held = world.client.get_batch("batch_1")
    done = held.wait(progress=lambda info: told.append(info.rows.succeeded))
    assert done.status is BatchStatus.COMPLETED
    assert held.info is done
    assert told == [2, 4]
    assert repr(held) == "<Batch batch_1 completed: 4 of 4 rows>"


def test_waiting_ends_in_time() -> None:
    """A batch that is still running may be waited for again."""
    world = World(*[batch() for _ in range(100)])
    held = world.client.get_batch("batch_1")
    with pytest.raises(errors.TimedOutError, match="still in_progress after 10 s"):
        held.wait(10)
    assert world.clock.monotonic() <= 11
    assert max(world.slept) <= 1.0


def test_results_follow_a_running_batch() -> None:
    """Rows come in order, each once, errors among them, until the batch has ended."""
    world = World(
        batch(),
        lines({"row": 0, "y": 1.5}, complete=False),
        lines(complete=False),
        lines({"row": 1, "error": {"code": "row_error", "message": "no"}}, {"row": 2, "y": "NaN"}),
    )
    got = list(world.client.get_batch("batch_1").results())
    assert got == [{"row": 0, "y": 1.5}, RowError(1, "row_error", "no"), {"row": 2, "y": "NaN"}]
    assert [r.url.params.get("after") for r in world.requests[1:]] == [None, "0", "0"]


def test_results_come_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full page of a finished batch is not its end."""
    monkeypatch.setattr("batchline.client.batches.LINES", 2)
    world = World(batch("completed"), lines({"row": 0}, {"row": 1}), lines({"row": 2}, {"row": 5}), lines())
    assert [r["row"] for r in world.client.get_batch("batch_1").results()] == [0, 1, 2, 5]  # type: ignore[index]
    assert not world.slept


def test_results_as_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types of the first page serve the others; non-finite numbers are numbers; dates stay the texts they were."""
    monkeypatch.setattr("batchline.client.batches.LINES", 2)
    world = World(
        batch("completed"),
        lines({"row": 0, "day": "2026-11-01", "p": [0.5, 1.0], "n": 1},
              {"row": 1, "day": "2026-11-02", "p": [0.1, 2], "n": 2}),
        lines({"row": 2, "day": "2026-11-03", "p": [0.25, 4], "n": 3},
              {"row": 3, "day": None, "p": ["NaN", "-Infinity"], "n": 4}),
        lines({"row": 4, "day": "x", "p": [0, 0], "n": 0.5},
              {"row": 5, "day": "y", "error": {"code": "poison", "message": "m"}}),
        lines(),
    )  # fmt: skip
    table = world.client.get_batch("batch_1").to_arrow()
    assert table.column_names == ["row", "day", "p", "n", "error"]
    assert table["row"].to_pylist() == list(range(6))
    assert table["day"].to_pylist() == ["2026-11-01", "2026-11-02", "2026-11-03", None, "x", "y"]
    assert table["p"].type == pa.list_(pa.float64())
    assert math.isnan(table["p"][3].as_py()[0])
    assert table["p"][3].as_py()[1] == -math.inf
    assert table["n"].to_pylist() == [1, 2, 3, 4, 0.5, None]
    assert table["error"].to_pylist() == [None] * 5 + [{"code": "poison", "message": "m"}]


def test_a_batch_without_rows_is_an_empty_table() -> None:
    """Of the columns that are known."""
    world = World(batch("completed"), lines())
    world.outputs = [{"name": "label", "dtype": "INT64", "shape": []}, {"name": "p", "dtype": "FP32", "shape": [2]}]
    table = world.client.get_batch("batch_1").to_arrow()
    assert (table.num_rows, table.column_names) == (0, ["row", "label", "p", "error"])
    assert table.schema.types[:3] == [pa.int64(), pa.int64(), pa.list_(pa.float32())]


def test_its_life_is_in_ones_hands() -> None:
    """Cancel, pause, resume; retry gives another batch; the list is read page by page."""
    page = {"data": [batch(), batch(id="batch_0")], "has_more": True, "last_id": "batch_0"}
    world = World(
        *(batch(), batch(paused_at=5), batch(), batch("cancelling"), batch(id="batch_2", parent_id="batch_1")),
        *(page, {"data": [batch(id="batch_z")], "has_more": False, "last_id": "batch_z"}),
    )
    held = world.client.get_batch("batch_1")
    assert held.pause().paused_at == 5
    assert held.resume().paused_at is None
    assert held.cancel().status is BatchStatus.CANCELLING
    child = held.retry()
    assert (child.id, child.info.parent_id, held.id) == ("batch_2", "batch_1", "batch_1")
    assert [b.id for b in world.client.batches()] == ["batch_1", "batch_0", "batch_z"]
    paths = [f"{r.method} {r.url.path}" for r in world.requests]
    assert paths[1:5] == [f"POST /v1/batches/batch_1/{w}" for w in ("pause", "resume", "cancel", "retry")]
    assert world.requests[-1].url.params["after"] == "batch_0"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_value", errors.InvalidRequestError),
        (400, "unknown_parameter", errors.InvalidRequestError),
        (404, None, errors.NotFoundError),
        (404, "model_not_found", errors.NotFoundError),
        (401, "invalid_api_key", errors.UnauthorizedError),
        (413, "too_large", errors.TooLargeError),
        (409, None, errors.AlreadyEndedError),
        (422, "idempotency_key_reused", errors.KeyReusedError),
        (422, "source_error", errors.SourceError),
    ],
)
def test_refusals_in_openais_words_are_our_errors(status: int, code: str | None, kind: type[Exception]) -> None:
    """The error's class, its sentence, and where in the body."""
    said = {"message": "It is so.", "type": "invalid_request_error", "param": "input", "code": code}
    answer = httpx.Response(status, json={"error": said | {"errors": [{"pointer": "/input", "detail": "no"}]}})
    with pytest.raises(kind, match="It is so") as e:
        World(answer).client.get_batch("batch_1")
    assert e.value.faults[0].pointer == "/input"  # type: ignore[attr-defined]


def test_the_asynchronous_twin(tmp_path: Path) -> None:
    """The same calls, awaited: an upload, waiting, results, a table, retry."""
    path = tmp_path / "users.csv"
    path.write_text("id,a\n1,2\n")
    page = {"data": [batch()], "has_more": False}
    results = [lines({"row": 0, "y": 1}), lines({"row": 0, "y": 1})]
    world = World(batch(), batch(done=1), batch("completed"), *results, batch(), batch(id="batch_2"), page)

    async def sleep(seconds: float) -> None:
        world.sleep(seconds)

    async def run() -> None:
        transport = httpx.MockTransport(world.handle)
        async with AsyncClient("http://a", "k", transport=transport, clock=world.clock, sleep=sleep) as client:
            held = await client.batch("churn", path, key="id")
            assert (await held.wait()).status is BatchStatus.COMPLETED
            assert [r async for r in held.results()] == [{"row": 0, "y": 1}]
            assert (await held.to_arrow()).to_pylist() == [{"row": 0, "y": 1, "error": None}]
            assert (await held.cancel()).id == "batch_1"
            assert (await held.retry()).id == "batch_2"
            assert [b.id async for b in client.batches()] == ["batch_1"]

    asyncio.run(run())
    assert world.upload == ("users.csv", b"id,a\n1,2\n")


def test_the_sdk_loads_no_library_of_tables() -> None:
    """pyarrow, pandas and polars are loaded for whoever brings or asks for a table."""
    code = "import sys, batchline.client; print({'pyarrow', 'pandas', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
