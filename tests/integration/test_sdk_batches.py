"""Batches through the SDK and the command line, against a whole system: files, tables, SQL, results as Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cli_runner
import pandas as pd
import pyarrow as pa
import pytest
import small_models
import stack
from cli_runner import Run
from system import System, running_system

from batchline.batch import BatchStatus
from batchline.client import Client, RowError
from batchline.errors import InvalidRequestError, NotFoundError
from batchline.local.servers import PostgresServer

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def shop(postgres: PostgresServer, template: str) -> Iterator[str]:
    """The operator's database: 1,000 people with two numbers each."""
    with stack.database_from(postgres.url, template) as url:
        stack.query(
            url,
            "CREATE TABLE people (id text PRIMARY KEY, a float8, b float4, city text);"
            "INSERT INTO people SELECT 'p' || g, g, g / 2.0, 'Graz' FROM generate_series(1, 1000) g;"
            "CREATE TABLE broken (id int PRIMARY KEY, a float8, b float8);"
            "INSERT INTO broken VALUES (1, 1, 1), (2, NULL, 2)",
        )
        yield url


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, shop: str) -> Iterator[System]:
    """API, worker, scheduler; `double` doubles its two numbers."""
    folder = tmp_path_factory.mktemp("system")
    env = {"BATCHLINE_DATABASES": f"shop={shop}", "BATCHLINE_BLOBS": f"file://{folder}/blobs"}
    env |= {"BATCHLINE_SLICE_ROWS": "300"}
    models = {"double": small_models.double(folder / "double.onnx")}
    with running_system(folder, models, durable=False, env=env) as system:
        yield system


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with Client(",".join(system.urls), system.key) as client:
        yield client


def test_a_frame_goes_in_and_a_table_comes_back(client: Client) -> None:
    """Uploaded as Parquet, scored, read as Arrow: each row under its key, kept columns beside the outputs."""
    ids = [f"u{i}" for i in range(5000)]
    frame = pd.DataFrame({"id": ids, "a": range(5000), "b": [0.5] * 5000, "city": ["Graz"] * 5000})
    batch = client.batch("double", frame, key="id", columns=["a", "b"], keep=["city"])
    told: list[int] = []
    done = batch.wait(WITHIN_S, progress=lambda info: told.append(info.rows.total))
    assert (done.status, done.rows.succeeded, done.rows.total) == (BatchStatus.COMPLETED, 5000, 5000)
    assert told[-1] == 5000
    table = batch.to_arrow()
    assert table["row"].to_pylist() == list(range(5000))
    assert table["y"].to_pylist() == [[2.0 * i, 1.0] for i in range(5000)]
    assert table["id"].to_pylist() == ids
    assert set(table["city"].to_pylist()) == {"Graz"}


def test_results_are_followed_while_it_runs(client: Client) -> None:
    """Rows come in their order and the iterator ends with the batch; the id is all one needs."""
    batch = client.batch("double", [[float(i), 1.0] for i in range(3000)])
    again = client.get_batch(batch.id)
    rows = list(again.results())
    assert [r["row"] for r in rows if isinstance(r, dict)] == list(range(3000))
    assert [r["y"] for r in rows if isinstance(r, dict)] == [[2.0 * i, 2.0] for i in range(3000)]
    assert again.wait(WITHIN_S).is_finished


@pytest.mark.parametrize("mode", ["upsert", "append", "replace"])
def test_a_table_is_scored_into_a_table(client: Client, shop: str, mode: str) -> None:
    """Cut, read, scored, written: 900 rows by their keys, in a table that was made for them."""
    batch = client.batch(
        "double", {"table": "people"}, key="id", columns=["a", "b"], where=[["a", ">", 100]], keep=["city"],
        output={"table": f"scores_{mode}", "mode": mode},
    )  # fmt: skip
    done = batch.wait(WITHIN_S)
    assert (done.status, done.rows.succeeded, done.slices.total) == (BatchStatus.COMPLETED, 900, 3), done.faults
    found = stack.query(shop, f"SELECT id, city, y FROM scores_{mode} ORDER BY y[1]")
    assert found == [(f"p{g}", "Graz", [2.0 * g, float(g)]) for g in range(101, 1001)]
    with pytest.raises(InvalidRequestError, match="where it was told to put them"):
        batch.to_arrow()
    assert not stack.query(shop, "SELECT relname FROM pg_class WHERE relname LIKE '_batchline_batch%'")


def test_a_row_that_cannot_be_scored_is_told(client: Client, shop: str) -> None:
    """A null is its row's own fault; the others have their results; retry does that row alone."""
    batch = client.batch("double", {"table": "broken"}, key="id", output={"table": "broken_scores", "mode": "upsert"})
    done = batch.wait(WITHIN_S)
    assert (done.status, done.rows.succeeded, done.rows.failed) == (BatchStatus.COMPLETED, 1, 1), done.faults
    assert stack.query(shop, "SELECT id, y FROM broken_scores") == [(1, [2.0, 2.0])]
    ((told, row, key),) = stack.query(shop, "SELECT batch, row, key FROM broken_scores_errors")
    assert (told, row, key) == (batch.id, 1, "2")
    stack.query(shop, "UPDATE broken SET a = 5 WHERE id = 2")
    child = batch.retry()
    again = child.wait(WITHIN_S)
    assert (again.rows.total, again.rows.succeeded, again.parent_id) == (1, 1, batch.id)
    assert stack.query(shop, "SELECT id, y FROM broken_scores ORDER BY 1") == [(1, [2.0, 2.0]), (2, [10.0, 4.0])]


def test_errors_stand_among_the_results(client: Client) -> None:
    """A line of a file that is no row has its place, as an error."""
    batch = client.batch("double", pa.table({"a": [1.0, None, 3.0], "b": [1.0, 1.0, 1.0]}))
    rows = list(batch.results())
    assert isinstance(rows[1], RowError)
    assert [r["y"] for r in rows if isinstance(r, dict)] == [[2.0, 2.0], [6.0, 2.0]]
    table = batch.to_arrow()
    assert table["error"][1].as_py()["code"] == rows[1].code


def test_a_table_that_is_not_there_fails_the_batch(client: Client) -> None:
    """With a sentence that names it; an unknown id is no batch."""
    batch = client.batch("double", {"table": "nothing"}, key="id")
    done = batch.wait(WITHIN_S)
    assert done.status is BatchStatus.FAILED
    assert "Table nothing: there is no such table" in done.faults[0].message
    with pytest.raises(NotFoundError):
        client.get_batch("batch_nonsense")


def test_the_command_line_does_all_of_it(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file is uploaded, waited for and read; a table is scored; the list tells of both."""
    run: Run = cli_runner.runner(tmp_path, monkeypatch, capfd)
    monkeypatch.setenv("BATCHLINE_URL", ",".join(system.urls))
    monkeypatch.setenv("BATCHLINE_API_KEY", system.key)
    (tmp_path / "users.csv").write_text("id,a,b\nx,1,2\ny,3,4\n")
    code, out, err = run("batch", "create", "double", "--input", "users.csv", "--key", "id", "--wait")
    assert code == 0, err
    batch_id = err.strip().splitlines()[0]
    assert "rows: 2 (2 succeeded)" in out
    code, out, _ = run("batch", "results", batch_id)
    assert [json.loads(line)["y"] for line in out.splitlines()] == [[2.0, 4.0], [6.0, 8.0]]
    code, out, err = run(
        "batch", "create", "double", "--input", "table:people", "--key", "id", "--columns", "a,b", "--where", "a <= 10",
        "--output", "table:few", "--mode", "upsert", "--wait", "--json",
    )  # fmt: skip
    assert (code, json.loads(out)["rows"]["succeeded"]) == (0, 10), err
    code, out, _ = run("batch", "list", "--limit", "2")
    assert [line.split("\t")[3] for line in out.splitlines()[1:]] == ["10", "2"]
    assert run("batch", "cancel", batch_id)[0] == 1
