"""Slices of OpenAI's kind: each line gets the answer that its endpoint gives, or its error."""

from __future__ import annotations

import itertools
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import batch_rig
import pytest
import small_models
from worker_rig import Rig

from batchline.batch import Piece
from batchline.data import places_of
from batchline.data.blobs import Blobs
from batchline.job import Lane
from batchline.store import Store
from scheduler.slicing import Pace, slices_of
from workers.requests import RequestsWork


@pytest.fixture
def rig(store: Store, redis_url: str, tmp_path: Path) -> Rig:
    return Rig(store, redis_url, tmp_path / "models", **batch_rig.settings_of(tmp_path))


class Uploaded:
    """A file of requests, planned as so many slices, run, and read back."""

    def __init__(self, rig: Rig, model: int, endpoint: str) -> None:
        self.rig, self.model, self.endpoint = rig, model, endpoint
        self.blobs = Blobs(places_of(rig.settings))

    def run(self, lines: list[bytes], slices: int = 1, **changes: Any) -> None:
        self.blobs.put("in", [b"\n".join(lines)])
        with self.blobs.open("in") as blob:
            version, size = blob.version, blob.size
        share = -(-len(lines) // slices)
        cuts = [sum(len(line) + 1 for line in lines[:at]) for at in range(0, len(lines), share)] + [size]
        pieces = [
            [Piece("blob:in", version, (start, end), len(lines[n * share : (n + 1) * share]))]
            for n, (start, end) in enumerate(itertools.pairwise(cuts))
        ]
        self.id = batch_rig.requests(
            self.rig.store,
            self.model,
            "in",
            self.endpoint,
            lambda i: list(slices_of(i, pieces, Pace(time.time(), 1e-5))),
            **changes,
        )
        while self.rig.engine.run(Lane.BULK)["jobs"]:
            pass

    def lines(self, kind: str) -> list[Any]:
        found: list[Any] = []
        for view in batch_rig.slices(self.rig.store, self.id):
            assert view.staged
            for part in view.staged.parts:
                if part["kind"] == kind:
                    with self.blobs.open(part["blob"]) as blob:
                        found += [json.loads(line) for line in blob.read().splitlines()]
        return found


def line(custom_id: str, body: Any, url: str = "/v1/jobs") -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


def test_each_line_gets_a_finished_job_in_order(rig: Rig, tmp_path: Path) -> None:
    """One row or several a line; every field of a job; line numbers go on over slices."""
    model = rig.add("double", small_models.double(tmp_path / "source.onnx"))
    uploaded = Uploaded(rig, model, "/v1/jobs")
    bodies = [
        {"model": "double", "inputs": [[n, i] for i in range(n % 3 + 1)], "metadata": {"n": n}} for n in range(700)
    ]
    uploaded.run([line(f"c{n}", body) for n, body in enumerate(bodies)], slices=2)
    got = uploaded.lines("output")
    assert [answer["custom_id"] for answer in got] == [f"c{n}" for n in range(700)]
    assert uploaded.lines("error") == []
    assert len({answer["id"] for answer in got}) == 700
    body = got[5]["response"]["body"]
    assert got[5]["response"]["status_code"] == 200
    assert got[5]["error"] is None
    assert body["outputs"] == [{"y": [10.0, 0.0]}, {"y": [10.0, 2.0]}, {"y": [10.0, 4.0]}]
    assert (body["object"], body["status"], body["model"], body["version"]) == ("job", "succeeded", "double", "1")
    assert body["row_counts"] == {"total": 3, "succeeded": 3, "failed": 0}
    assert body["metadata"] == {"n": 5}
    counts = rig.store.batches.read(uploaded.id)
    assert counts
    assert (counts.counts.total, counts.counts.succeeded) == (700, 700)


def test_lines_that_do_not_fit_or_fail_are_error_lines(rig: Rig, tmp_path: Path) -> None:
    """What the endpoint would answer, with its status; their neighbours have results."""
    model = rig.add("pick", small_models.pick(tmp_path / "pick.onnx"))
    uploaded = Uploaded(rig, model, "/v1/jobs")
    uploaded.run(
        [
            line("good", {"model": "pick", "inputs": [1, 2]}),
            line("misfit", {"model": "pick", "inputs": ["x"]}),
            line("half", {"model": "pick", "inputs": [3, 99]}),
            line("bad", {"model": "pick", "inputs": [99]}),
            line("empty", {"model": "pick"}),
            line("told", {"model": "pick", "inputs": [1], "webhook": {"url": "https://example.com"}}),
            line("last", {"model": "pick", "inputs": [4]}),
        ]
    )
    good, bad = uploaded.lines("output"), uploaded.lines("error")
    assert [answer["custom_id"] for answer in good] == ["good", "half", "last"]
    assert good[1]["response"]["body"]["outputs"] == [{"y": 30.0}, None]
    assert [(answer["custom_id"], answer["response"]["status_code"]) for answer in bad] == [
        ("misfit", 422),
        ("bad", 422),
        ("empty", 422),
        ("told", 422),
    ]
    assert bad[3]["response"]["body"]["errors"][0]["pointer"] == "/webhook"
    assert bad[0]["response"]["body"]["errors"][0]["pointer"].startswith("/inputs")
    assert bad[1]["response"]["body"]["status"] == "failed"
    (view,) = batch_rig.slices(rig.store, uploaded.id)
    assert (view.rows, view.rows_failed, view.staged.rows if view.staged else 0) == (7, 4, 3)


def test_what_the_window_leaves_no_time_for_is_not_begun(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines read before the end are answered; those after it are `batch_expired`, without a response."""
    model = rig.add("double", small_models.double(tmp_path / "source.onnx"))
    lines = [line(f"c{n}", {"model": "double", "inputs": [[n, n]]}) for n in range(5)]
    with monkeypatch.context() as patched:
        looks = itertools.count()
        patched.setattr(RequestsWork, "_is_over", lambda _: next(looks) >= 3)
        uploaded = Uploaded(rig, model, "/v1/jobs")
        uploaded.run(lines)
    assert [answer["custom_id"] for answer in uploaded.lines("output")] == ["c0", "c1", "c2"]
    late = uploaded.lines("error")
    assert [(answer["custom_id"], answer["response"]) for answer in late] == [("c3", None), ("c4", None)]
    assert {answer["error"]["code"] for answer in late} == {"batch_expired"}
    (view,) = batch_rig.slices(rig.store, uploaded.id)
    assert view.staged
    assert (view.rows_failed, view.staged.errors, view.staged.expired) == (2, 2, 2)
    over = Uploaded(rig, model, "/v1/jobs")
    over.run(lines, deadline_at=datetime.now(UTC) - timedelta(seconds=1))
    assert (over.lines("output"), len(over.lines("error"))) == ([], 5)


def test_lines_may_ask_for_infer(rig: Rig, tmp_path: Path) -> None:
    """The protocol's answer, and its errors; a partly failed request has no tensors and is an error."""
    model = rig.add("pick", small_models.pick(tmp_path / "pick.onnx"))
    url = "/v2/models/pick/infer"
    uploaded = Uploaded(rig, model, url)

    def infer(custom_id: str, values: list[int], **more: Any) -> bytes:
        tensor = {"name": "i", "shape": [len(values)], "datatype": "INT64", "data": values}
        return line(custom_id, {"inputs": [tensor], **more}, url)

    uploaded.run(
        [infer("a", [1, 2], id="mine"), infer("b", [1, 99]), infer("c", [], parameters={"binary_data_output": True})]
    )
    (good,) = uploaded.lines("output")
    body = good["response"]["body"]
    assert (body["model_name"], body["id"]) == ("pick", "mine")
    assert body["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2], "data": [10.0, 20.0]}]
    bad = uploaded.lines("error")
    assert [(answer["custom_id"], answer["response"]["status_code"]) for answer in bad] == [("b", 400), ("c", 400)]
    assert "row 1" in bad[0]["response"]["body"]["error"]
