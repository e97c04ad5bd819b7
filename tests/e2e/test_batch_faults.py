"""Batches whose servers restart in the middle of a slice, whose disk is full, and whose time is up."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet
import pytest
from system import System, running_system, until

ENDED = {"completed", "failed", "expired", "cancelled"}
ROWS, SLICE = 6000, 1000


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, digits_model: Path) -> Iterator[System]:
    """Slices that take a while, and data to score."""
    env = {"BATCHLINE_SLICE_ROWS": str(SLICE), "BATCHLINE_FAILPOINTS": "worker.before_finish=sleep:0.3"}
    with running_system(tmp_path_factory.mktemp("system"), {"digits": digits_model}, env=env) as system:
        columns = {f"p{i}": pa.array([float(n % 17) for n in range(ROWS)], pa.float32()) for i in range(64)}
        table = pa.table({"id": list(range(ROWS)), **columns})
        pyarrow.parquet.write_table(table, system.folder / "data" / "rows.parquet", row_group_size=SLICE)
        yield system


class Client:
    """Calls that outlive a database that is away."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._http = httpx.Client(
            base_url=system.urls[0], headers={"Authorization": f"Bearer {system.key}"}, timeout=30
        )

    def submit(self, output: dict[str, Any] | None = None, **fields: Any) -> str:
        source = {"uri": f"file://{self.system.folder}/data/rows.parquet", "key": "id"}
        body = {"model": "digits", "input": source, **fields} | ({"output": output} if output else {})
        response = self._http.post("/v1/batches", json=body)
        assert response.status_code == 200, response.text
        return response.json()["id"]

    def read(self, batch: str) -> Any:
        found = self._http.get(f"/v1/batches/{batch}").json()
        return found if "rows" in found else {"status": "away", "rows": {"running": 0, "succeeded": 0}}

    def act(self, batch: str, what: str) -> Any:
        response = self._http.post(f"/v1/batches/{batch}/{what}")
        assert response.status_code == 200, response.text
        return response.json()

    def lines(self, batch: str) -> list[Any]:
        text = self._http.get(f"/v1/batches/{batch}/results?limit=100000").text
        return [json.loads(line) for line in text.splitlines()]

    def until(self, batch: str, statuses: set[str]) -> Any:
        until(lambda: self.read(batch)["status"] in statuses, within_s=90, what=str(statuses), logs=self.system.logs)
        return self.read(batch)


@pytest.fixture
def client(system: System) -> Client:
    return Client(system)


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_a_server_that_restarts_in_the_middle_of_a_slice_costs_no_row(
    system: System, client: Client, server: str
) -> None:
    """As after a crash: every row is there once, in order, and the counts are exact."""
    batch = client.submit()
    until(lambda: client.read(batch)["rows"]["succeeded"] > 0, within_s=60, what="a slice is done", logs=system.logs)
    getattr(system, server).stop("immediate")
    getattr(system, server).start()
    found = client.until(batch, ENDED)
    assert found["status"] == "completed", found
    assert (found["rows"]["total"], found["rows"]["succeeded"], found["rows"]["failed"]) == (ROWS, ROWS, 0)
    assert [(line["row"], line["id"]) for line in client.lines(batch)] == [(n, n) for n in range(ROWS)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_fails_the_batch_and_a_retry_ends_it_when_there_is_room(system: System, client: Client) -> None:
    """The folder and its trouble are named, nothing half-written is seen, and what was scored is not scored again."""
    small = system.folder / "data" / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        batch = client.submit({"uri": f"file://{small}/", "format": "jsonl"})
        found = client.until(batch, ENDED)
        assert found["status"] == "failed", found
        assert "small" in str(found["errors"]), found["errors"]
        assert "disk is full" in str(found["errors"]), found["errors"]
        seen = {n for path in small.glob("part-*") for n in ids(path)}
        assert 0 < len(seen) == found["rows"]["succeeded"] < ROWS
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        child = client.until(client.act(batch, "retry")["id"], ENDED)
        assert (child["status"], child["rows"]["succeeded"]) == ("completed", ROWS - len(seen)), child
        assert sorted(n for path in small.glob("part-*") for n in ids(path)) == list(range(ROWS))
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def ids(part: Path) -> list[int]:
    """The keys of a part's rows."""
    return [json.loads(line)["id"] for line in part.read_text(encoding="utf-8").splitlines()]


def test_a_batch_whose_time_is_up_expires_with_what_it_has(client: Client) -> None:
    """What waits is not begun any more; what was done stays and is read, and every row is counted."""
    batch = client.submit(ttl_s=4)
    client.until(batch, {"in_progress"})
    client.act(batch, "pause")
    found = client.until(batch, ENDED)
    rows = found["rows"]
    assert (found["status"], rows["queued"], rows["running"]) == ("expired", 0, 0), found
    assert rows["expired"] > 0
    assert rows["succeeded"] + rows["expired"] == ROWS == rows["total"]
    assert len(client.lines(batch)) == rows["succeeded"]
