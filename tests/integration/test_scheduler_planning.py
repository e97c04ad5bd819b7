"""The planner over real files and Postgres: slices and their ranks, refusals with their faults, retries, leases."""

from __future__ import annotations

import json
import threading
import time

import msgspec
import pytest
import stack
from scheduler_rig import Rig
from system import until

from batchline.batch import DataSet, Input, Output, Requests, Slice, rows_to_bits
from batchline.errors import SourceUnavailableError
from batchline.job import Lane, new_job_id
from batchline.store.contract import Speed
from batchline.traffic import Canary, Rule, takes_part
from scheduler import planning, station
from scheduler.planning import PlanNote


@pytest.fixture
def rig(store, tmp_path):
    return Rig(store, tmp_path)


def test_a_data_set_becomes_slices_of_queued_bulk_jobs(rig):
    """Rows in order, each in one slice; the batch is in progress, its pool nudged, its schema noted."""
    rig.model()
    rig.rows("a.jsonl", 25)
    rig.rows("b.jsonl", 3, start=25)
    batch = rig.batch(f"file://{rig.folder}/*.jsonl")
    assert rig.planner.station().step()
    view = rig.read(batch)
    assert (view.status, view.counts.total, view.counts.queued) == ("in_progress", 28, 28)
    slices = rig.slices(batch)
    assert [s.first_row for s in slices] == [0, 10, 20]
    assert [sum(p.rows for p in s.pieces) for s in slices] == [10, 10, 8]
    assert rig.nudges.sent == [("cpu", Lane.BULK)]
    note = msgspec.json.decode(rig.store.batches.note(batch), type=PlanNote)
    assert (note.rows, note.slices, note.digest) == (28, 3, "d" * 64)
    assert list(note.schema) == ["row", "id", "label"]
    assert not rig.planner.station().step()


@pytest.mark.parametrize(
    ("wanted", "code", "told"),
    [
        (DataSet("digits", "1", Input(uri="file:///elsewhere/x.jsonl", format="jsonl")), "source_error", "elsewhere"),
        (DataSet("digits", "1", Input(uri="{root}/none.jsonl", format="jsonl")), "source_error", "none.jsonl"),
        (DataSet("nobody", "1", Input(uri="{root}/a.jsonl", format="jsonl")), "model_not_found", "nobody"),
        (DataSet("digits", "9", Input(uri="{root}/a.jsonl", format="jsonl")), "model_not_found", "version '9'"),
        (DataSet("digits", "1", Input(uri="{root}/a.jsonl", columns=["y"])), "invalid_columns", "'y'"),
        (DataSet("digits", "1", Input(file="files/none")), "source_error", "gone"),
        (
            DataSet("digits", "1", Input(uri="{root}/a.jsonl"), Output(uri="file:///elsewhere/", format="csv")),
            "sink_error",
            "elsewhere",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_reason(rig, wanted, code, told):
    """The batch is failed at once and says what to mend."""
    rig.model()
    rig.rows("a.jsonl", 5)
    body = msgspec.json.encode(wanted).replace(b"{root}", f"file://{rig.folder}".encode())
    batch = rig.submit("data_set", body)
    rig.planner.station().step()
    assert rig.read(batch).status == "failed"
    assert rig.faults(batch)[0]["code"] == code
    assert told in rig.faults(batch)[0]["message"]


def test_a_place_that_does_not_answer_is_asked_again_then_the_batch_is_refused(rig, monkeypatch):
    """With pauses, then for good; other batches are planned meanwhile."""
    rig.model()
    waits = []
    monkeypatch.setattr(planning, "TRIES", 3)
    rig = Rig(rig.store, rig.folder.parent)
    release = rig.store.batches.release

    def noted(self, holder, batch_id, *, retry_s):
        waits.append(retry_s)
        release(holder, batch_id, retry_s=0)

    monkeypatch.setattr(type(rig.store.batches), "release", noted)

    def away(wanted):
        raise SourceUnavailableError("S3 does not answer.")

    monkeypatch.setattr(rig.doors, "source", away)
    batch = rig.batch(rig.rows("a.jsonl", 5))
    for _ in range(3):
        assert rig.planner.station().step()
    assert rig.faults(batch) == [
        {
            "code": "source_unavailable",
            "message": "S3 does not answer. It was tried 3 times; submit the batch again when the place answers.",
            "line": None,
            "param": None,
        }
    ]
    assert len(waits) == 2
    assert waits[0] < waits[1]


def test_slices_of_a_slow_model_take_their_turns_at_its_own_pace(rig):
    """Two workers of 1 row/s: a slice of ten rows is five seconds of the pool, whatever its other models do."""
    model = rig.model()
    rig.rows("a.jsonl", 20)
    told = {"rows_per_s": 5000.0, "bulk_rows_per_s": 5000.0}
    for _ in range(2):
        rig.store.workers.heartbeat(
            stack.a_worker(rig.store), lease_s=60.0, models="", speeds={model: Speed(0.0, 1.0)}, **told
        )
    rig.batch(f"file://{rig.folder}/a.jsonl")
    assert rig.planner.station().step()
    (first,), (second,) = rig.store.db.run("SELECT rank FROM jobs ORDER BY rank")
    assert second - first == 5_000_000


def lines(*changes):
    made = []
    for n, change in enumerate(changes):
        line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/jobs", "body": {"model": "digits", "inputs": [[0]]}}
        made.append(json.dumps(line | change))
    return "\n".join(made) + "\n"


def requests(rig, text):
    (rig.blobs / "files").mkdir(exist_ok=True)
    (rig.blobs / "files" / "input").write_text(text, encoding="utf-8")
    return rig.submit("requests", msgspec.json.encode(Requests("files/input", "/v1/jobs", "24h")))


def test_a_file_of_requests_becomes_slices_of_lines(rig):
    """One line is one row; the slices point into the uploaded file."""
    rig.model()
    batch = requests(rig, lines(*({} for _ in range(25))))
    rig.planner.station().step()
    view = rig.read(batch)
    assert (view.status, view.model, view.version, view.counts.total) == ("in_progress", "digits", "1", 25)
    slices = rig.slices(batch)
    assert [p.uri for s in slices for p in s.pieces] == ["blob:files/input"] * 3
    assert [p.rows for s in slices for p in s.pieces] == [10, 10, 5]
    whole = (rig.blobs / "files" / "input").read_bytes()
    assert b"".join(whole[p.span[0] : p.span[1]] for s in slices for p in s.pieces) == whole


def test_faulty_lines_fail_the_whole_batch_and_are_named(rig):
    """As OpenAI does: errors.data by line, and nothing has run."""
    rig.model()
    batch = requests(rig, lines({}, {"method": "GET"}, {"custom_id": "r0"}, {"body": {"model": "other"}}))
    rig.planner.station().step()
    assert rig.read(batch).status == "failed"
    assert [(f["line"], f["code"]) for f in rig.faults(batch)] == [
        (2, "invalid_method"),
        (3, "duplicate_custom_id"),
        (4, "mismatched_model"),
    ]


def test_an_unknown_model_is_named_with_its_first_line(rig):
    """Lines agree on a model that is not here."""
    batch = requests(rig, lines({}, {}))
    rig.planner.station().step()
    assert [(f["line"], f["code"]) for f in rig.faults(batch)] == [(1, "model_not_found")]


def test_lines_without_a_version_follow_the_rule_as_one(rig):
    """A batch has one model: its id says whether the canary gets all of it. A version in the lines goes before."""
    for version in "123":
        rig.model(version=version)
    rig.store.traffic.put("digits", Rule(1, Canary(2, 50.0), 3))
    batches = [requests(rig, lines({}, {})) for _ in range(12)]
    for _ in batches:
        rig.planner.station().step()
    named = requests(rig, lines({"body": {"model": "digits", "version": "canary"}}))
    rig.planner.station().step()
    versions = {batch: "2" if takes_part(batch.bytes, 50.0) else "1" for batch in batches} | {named: "2"}
    assert {batch: rig.read(batch).version for batch in versions} == versions


def test_a_child_of_what_was_never_cut_has_all_rows(rig):
    """The file came late: the retry reads it; so does the retry of a retry."""
    rig.model()
    uri = f"file://{rig.folder}/late.jsonl"
    parent = rig.batch(uri)
    rig.planner.station().step()
    child = rig.batch(uri, parent_id=parent)
    rig.planner.station().step()
    assert (rig.read(parent).status, rig.read(child).status) == ("failed", "failed")
    rig.rows("late.jsonl", 25)
    grandchild = rig.batch(uri, parent_id=child)
    rig.planner.station().step()
    assert (rig.read(grandchild).status, rig.read(grandchild).counts.queued) == ("in_progress", 25)


def test_a_child_gets_what_its_parent_has_left_undone(rig):
    """Pieces and row numbers are the parent's."""
    rig.model()
    parent = rig.batch(rig.rows("a.jsonl", 30))
    rig.planner.station().step()
    jobs = [v.job_id for v in rig.store.batches.slices(parent)]
    rig.store.db.run("UPDATE jobs SET status = 'succeeded', rows_failed = 2 WHERE id = %(id)s", {"id": jobs[0]})
    rig.store.db.run(
        "UPDATE slices SET rows_failed = 2, failed = %(f)s WHERE job_id = %(id)s",
        {"id": jobs[0], "f": rows_to_bits([1, 7], 10)},
    )
    rig.store.db.run("UPDATE jobs SET status = 'succeeded' WHERE id = %(id)s", {"id": jobs[1]})
    rig.store.db.run("UPDATE jobs SET status = 'expired' WHERE id = %(id)s", {"id": jobs[2]})
    child = rig.batch(f"file://{rig.folder}/a.jsonl", parent_id=parent)
    rig.planner.station().step()
    assert [(s.first_row, s.only is not None) for s in rig.slices(child)] == [(0, True), (20, False)]
    assert rig.read(child).counts.total == 12


def test_batches_of_one_tenant_share_its_turn(rig):
    """Each of two runs ahead of the clock twice as fast as one alone would."""
    rig.model()
    uri = rig.rows("a.jsonl", 30)
    ranks = []
    for _ in range(2):
        batch = rig.batch(uri)
        rig.planner.station().step()
        found = rig.store.db.run(
            "SELECT j.rank FROM jobs j JOIN slices s ON s.job_id = j.id WHERE s.batch_id = %(id)s ORDER BY s.number",
            {"id": batch},
        )
        ranks.append([r for (r,) in found])
    first, second = (r[1] - r[0] for r in ranks)
    assert second == pytest.approx(2 * first, abs=2)


def test_two_schedulers_plan_a_batch_once(rig, tmp_path):
    """The lease keeps them apart, and the holder guards the plan."""
    rig.model()
    other = Rig(rig.store, tmp_path)
    batches = [rig.batch(rig.rows(f"{n}.jsonl", 12)) for n in range(8)]
    stations = [rig.planner.station(), other.planner.station()]
    for one in stations:
        one.start()
    until(lambda: all(rig.read(b).status != "validating" for b in batches), within_s=20, what="all are planned")
    for one in stations:
        one.close(5)
    assert {rig.read(b).status for b in batches} == {"in_progress"}
    assert [rig.read(b).slices for b in batches] == [2] * 8


def test_a_planner_that_lost_its_lease_plans_nothing(rig, monkeypatch):
    """A slow one finds the batch planned by another: its own plan changes nothing."""
    rig.model()
    batch = rig.batch(rig.rows("a.jsonl", 12))
    slow = rig.planner.station()._taken()
    rig.store.db.run("UPDATE batches SET lease_until = now() - interval '1 second'")
    assert rig.planner.station().step()
    planned = [v.job_id for v in rig.store.batches.slices(batch)]
    rig.planner.work(slow)
    assert [v.job_id for v in rig.store.batches.slices(batch)] == planned
    assert not rig.store.batches.renew(slow.holder, batch, lease_s=1.0)


def test_the_lease_is_renewed_while_planning(rig, monkeypatch):
    """However long a place takes."""
    rig.model()
    monkeypatch.setattr(station, "LEASE_S", 0.6)
    batch = rig.batch(rig.rows("a.jsonl", 12))
    source = rig.doors.source

    def slow(wanted):
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert rig.store.batches.take_to_plan(new_job_id(), lease_s=1.0) is None
            threading.Event().wait(0.05)
        return source(wanted)

    monkeypatch.setattr(rig.doors, "source", slow)
    assert rig.planner.station().step()
    assert rig.read(batch).status == "in_progress"


def test_a_cancelled_batch_is_not_planned(rig, monkeypatch):
    """Cancelling while the planner is at it: nothing is queued."""
    rig.model()
    batch = rig.batch(rig.rows("a.jsonl", 12))
    lease = rig.planner.station()._taken()
    assert rig.store.batches.cancel(rig.read(batch).tenant_id, batch)
    rig.planner.work(lease)
    assert (rig.read(batch).status, rig.slices(batch)) == ("cancelling", [])


def test_slices_decode_as_workers_will_read_them(rig):
    """The payload of a claimed job is the slice."""
    model = rig.model()
    batch = rig.batch(rig.rows("a.jsonl", 12))
    rig.planner.station().step()
    worker = new_job_id()
    rig.store.workers.register(worker, host="h", pid=1, pool="cpu", device="cpu", lease_s=30)
    claim = rig.store.claims.claim(worker, model, Lane.BULK, rows=1)
    assert msgspec.json.decode(claim.jobs[0].payload, type=Slice).batch == batch
