"""The ender over real files and Postgres: statuses, manifests, output files; repeated from every step it can die at."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pyarrow as pa
import pytest
import stack
from scheduler_rig import Rig
from system import until

from batchline import failpoints
from batchline.batch import BatchFault, DataSet, Input, Output, Requests, Staged, part_key
from batchline.data import open_sink, places_of
from batchline.data.contract import SinkContext
from batchline.errors import SinkError, SinkUnavailableError
from batchline.job import Lane
from batchline.store.batch_contract import FinishedSlice
from batchline.store.contract import Failure
from scheduler import ending
from scheduler.chores.publish import publish
from scheduler.chores.threshold import threshold
from scheduler.ending import Ender


class Running(Rig):
    """A rig with a model, a worker of one's own, and an ender."""

    def __init__(self, store, folder, **settings):
        super().__init__(store, folder, **settings)
        self.model_id = self.model()
        self.worker = stack.a_worker(store)
        self.ender = Ender(self.settings, store, self.doors, self.finds)

    def planned(self, count=25, output=None, **changes):
        """A batch of slices of ten rows, planned."""
        batch = self.batch(self.rows("a.jsonl", count), output, **changes)
        assert self.planner.station().step()
        return batch

    def claim(self):
        return self.store.claims.claim(self.worker, self.model_id, Lane.BULK, rows=1).jobs[0]

    def part(self, batch, job, rows):
        """What a worker stages of a slice."""
        out = Output(uri=f"file://{self.folder}/out", format="jsonl")
        sink = open_sink(out, places_of(self.settings), SinkContext(batch, "id", job.id), results=self.store.results)
        schema = pa.schema([("id", pa.int64()), ("label", pa.int64())])
        part = sink.open(self.number(job), job.attempt, schema)
        part.write(pa.record_batch([pa.array(range(rows)), pa.array([7] * rows)], schema=schema))
        return part.stage()

    def number(self, job):
        return next(v.number for v in self.store.batches.slices(self.slice_of(job).batch) if v.job_id == job.id)

    def slice_of(self, job):
        from batchline.batch import Slice

        return msgspec.json.decode(job.payload, type=Slice)

    def finish(self, job, *, failed=(), staged=None):
        done = FinishedSlice(job.id, job.attempt, job.rows, list(failed), staged or Staged([], job.rows), "{}")
        assert self.store.slices.finish(self.worker, done)

    def finish_all(self, batch, *, failed=(), files=False):
        for view in self.store.batches.slices(batch):
            if view.status == "queued":
                job = self.claim()
                self.finish(job, failed=failed, staged=self.part(batch, job, job.rows) if files else None)

    def end(self):
        return self.ender.station().step()


@pytest.fixture
def rig(store, database_url, tmp_path):
    return Running(store, tmp_path, databases=f"dwh={database_url}")


def test_a_batch_ends_as_completed_with_its_last_slice(rig):
    """Not before; its counts are frozen."""
    batch = rig.planned()
    assert not rig.end()
    rig.finish_all(batch, failed=[0])
    assert rig.end()
    view = rig.read(batch)
    assert (view.status, view.counts.succeeded, view.counts.failed) == ("completed", 22, 3)
    assert view.completed_at is not None
    assert not rig.end()


def test_a_batch_without_rows_completes(rig):
    """There is nothing to do."""
    batch = rig.batch(rig.rows("a.jsonl", 1))
    lease = rig.planner.station()._taken()
    assert rig.store.batches.plan(lease.holder, batch, [], model_id=rig.model_id, note="{}")
    assert rig.end()
    assert rig.read(batch).status == "completed"


@pytest.mark.parametrize(("name", "text"), [("a.csv", "id,note,{x}\n"), ("a.jsonl", ""), ("a.jsonl.gz", "\n")])
@pytest.mark.parametrize("mode", ["upsert", "append", "replace"])
def test_a_header_or_no_line_at_all_is_a_batch_of_no_rows(rig, name, text, mode):
    """Into Postgres, into files, and into tables whose columns have types that nobody could compare."""
    store = rig.store
    text = text.format(x=",".join(f"x{n}" for n in range(64))).encode()
    (rig.folder / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    store.db.run("CREATE TABLE scores (id bigint PRIMARY KEY, note int, label bigint)")
    store.db.run("INSERT INTO scores VALUES (1, 2, 3)")
    source = Input(uri=f"file://{rig.folder}/{name}", key="id")
    for output in (
        Output(keep=["note"]),
        Output(uri=f"file://{rig.folder}/out", format="csv", keep=["note"]),
        Output(table="scores", database="dwh", mode=mode, keep=["note"]),
        Output(table="fresh", database="dwh", mode=mode, keep=["note"]),
    ):
        batch = rig.submit("data_set", msgspec.json.encode(DataSet("digits", "1", source, output)))
        assert rig.planner.station().step()
        assert rig.end()
        assert (rig.read(batch).status, rig.read(batch).counts.total) == ("completed", 0), rig.faults(batch)
    assert json.loads((rig.folder / "out" / "manifest.json").read_text())["rows"] == 0
    assert store.db.run("SELECT count(*) FROM scores") == [(0 if mode == "replace" else 1,)]


def outputs(rig):
    return {p.name for p in (rig.folder / "out").iterdir()}


def test_staged_parts_are_published_and_the_manifest_written(rig):
    """Also those whose workers died after finishing; nothing unpublished is left behind."""
    batch = rig.planned(output=Output(uri=f"file://{rig.folder}/out", format="jsonl"))
    rig.finish_all(batch, files=True)
    (rig.folder / "out" / f".part-00000-{batch.hex[-12:]}.jsonl.lost.tmp").write_text("{}")
    assert rig.end()
    assert rig.read(batch).status == "completed"
    manifest = json.loads((rig.folder / "out" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["succeeded"], manifest["failed"]) == (25, 25, 0)
    assert (manifest["model"], manifest["digest"]) == ("digits@1", "d" * 64)
    assert set(manifest["parts"]) | {"manifest.json"} == outputs(rig)
    assert len(manifest["parts"]) == 3
    assert all(v.published for v in rig.store.batches.slices(batch))


def test_a_failed_batch_keeps_its_parts_and_has_no_manifest(rig):
    """A slice that failed as a whole fails it, and is named."""
    batch = rig.planned(output=Output(uri=f"file://{rig.folder}/out", format="jsonl"))
    job = rig.claim()
    rig.finish(job, staged=rig.part(batch, job, 10))
    job = rig.claim()
    gone = Failure(job.id, job.attempt, "source_error", "a.jsonl changed while it was read.", 0.0)
    rig.store.claims.retry(rig.worker, [gone], max_failures=1)
    assert threshold(rig.store).step() == 1
    assert rig.read(batch).counts.cancelled == 5
    assert rig.end()
    view = rig.read(batch)
    assert view.status == "failed"
    assert [(f["code"], "a.jsonl changed" in f["message"]) for f in rig.faults(batch)] == [("source_error", True)]
    assert len(outputs(rig)) == 1
    assert "manifest.json" not in outputs(rig)


def test_too_many_row_errors_stop_a_batch(rig):
    """The rest is not worked on; the fault says how many."""
    batch = rig.planned(error_threshold=0.1)
    job = rig.claim()
    rig.finish(job, failed=[0, 1, 2])
    assert threshold(rig.store).step() == 1
    assert rig.end()
    assert rig.read(batch).status == "failed"
    assert rig.faults(batch)[0]["code"] == "error_threshold_exceeded"
    assert "3 of 25 rows" in rig.faults(batch)[0]["message"]


def test_cancelled_and_expired_batches_end_as_such(rig):
    """Finished rows stay counted."""
    cancelled = rig.planned()
    rig.finish(rig.claim())
    assert rig.store.batches.cancel(stack.TENANT, cancelled)
    assert rig.end()
    view = rig.read(cancelled)
    assert (view.status, view.counts.succeeded, view.counts.cancelled) == ("cancelled", 10, 15)
    expired = rig.planned(deadline_at=datetime.now(UTC) - timedelta(seconds=1))
    assert rig.store.chores.expire() == 3
    assert rig.end()
    assert (rig.read(expired).status, rig.read(expired).counts.expired) == ("expired", 25)


def test_a_batch_cancelled_before_it_was_planned_ends(rig):
    """Without a slice."""
    batch = rig.batch(rig.rows("a.jsonl", 5))
    assert rig.store.batches.cancel(stack.TENANT, batch)
    assert rig.end()
    assert rig.read(batch).status == "cancelled"


@pytest.mark.parametrize(
    "place",
    ["scheduler.after_publish", "scheduler.before_complete", "scheduler.after_complete", "scheduler.before_end"],
)
def test_an_ender_that_dies_at_any_step_is_followed_by_another(rig, monkeypatch, place, tmp_path):
    """What it has done, the next one finds done; the batch completes once."""
    batch = rig.planned(output=Output(uri=f"file://{rig.folder}/out", format="jsonl"))
    rig.finish_all(batch, files=True)

    def dies(name):
        if name == place:
            raise SystemExit(name)

    monkeypatch.setattr(failpoints, "hit", dies)
    with pytest.raises(SystemExit):
        rig.end()
    monkeypatch.undo()
    assert rig.read(batch).status == "finalizing"
    assert not Running(rig.store, tmp_path).end(), "its lease holds"
    rig.store.db.run("UPDATE batches SET lease_until = now()")
    assert Running(rig.store, tmp_path).end()
    assert rig.read(batch).status == "completed"
    assert len(outputs(rig)) == 4


def test_two_enders_end_each_batch_once(rig, tmp_path):
    """The lease keeps them apart."""
    batches = [rig.planned(count=12) for _ in range(6)]
    for _ in range(12):
        rig.finish(rig.claim())
    stations = [rig.ender.station(), Running(rig.store, tmp_path).ender.station()]
    for one in stations:
        one.start()
    until(lambda: all(rig.read(b).status == "completed" for b in batches), within_s=20, what="all have ended")
    for one in stations:
        one.close(5)
    assert {rig.read(b).status for b in batches} == {"completed"}


def test_a_sink_that_refuses_fails_the_batch_and_one_that_is_away_is_asked_again(rig, monkeypatch):
    """The results cannot be brought where they belong: the batch says why."""
    batch = rig.planned(output=Output(uri=f"file://{rig.folder}/out", format="jsonl"))
    rig.finish_all(batch, files=True)
    sink = type(rig.doors.sink(rig.read(batch), msgspec.json.decode(rig.read(batch).body, type=ending.DataSet)))

    def away(self, number, staged):
        raise SinkUnavailableError("The bucket does not answer.")

    monkeypatch.setattr(sink, "publish", away)
    assert rig.end()
    assert rig.read(batch).status == "finalizing"
    assert not rig.end(), "it is left alone for a while"

    def refuses(self, number, staged):
        raise SinkError("The folder may not be written to.")

    monkeypatch.setattr(sink, "publish", refuses)
    rig.store.db.run("UPDATE batches SET lease_until = now()")
    assert rig.end()
    assert rig.read(batch).status == "failed"
    assert rig.faults(batch)[0]["message"] == "The folder may not be written to."
    assert rig.store.slices.unpublished(limit=9) == []


def test_parts_of_dead_workers_are_published_while_the_batch_runs(rig):
    """The chore finds what was finished and not published."""
    batch = rig.planned(output=Output(uri=f"file://{rig.folder}/out", format="jsonl"))
    job = rig.claim()
    rig.finish(job, staged=rig.part(batch, job, 10))
    chore = publish(rig.store, rig.doors)
    assert chore.step() == 1
    assert len(outputs(rig)) == 1
    assert chore.step() == 0


def test_a_sink_that_refuses_a_part_stops_the_batch(rig, monkeypatch):
    """The rest would be worked on in vain."""
    batch = rig.planned(output=Output(uri=f"file://{rig.folder}/out", format="jsonl"))
    job = rig.claim()
    rig.finish(job, staged=Staged([{"temp": ".none", "name": "part-none"}], 10))
    assert publish(rig.store, rig.doors).step() == 0
    assert rig.read(batch).counts.cancelled == 15
    assert rig.end()
    assert rig.read(batch).status == "failed"


# Batches of requests.


def planned_requests(rig, count=25, **changes):
    lines = [
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": "/v1/jobs", "body": {"model": "digits"}})
        for n in range(count)
    ]
    rig.doors.blobs.put("files/input", [("\n".join(lines) + "\n").encode()])
    batch = rig.submit("requests", msgspec.json.encode(Requests("files/input", "/v1/jobs", "24h")), **changes)
    assert rig.planner.station().step()
    return batch


def finish_requests(rig, batch, *, failed=()):
    """A slice as a worker ends it: two parts in the blob store."""
    job = rig.claim()
    made = rig.slice_of(job)
    parts = []
    for kind, rows in (("output", set(range(job.rows)) - set(failed)), ("error", failed)):
        if rows:
            key = part_key(batch, made.number, job.attempt, kind)
            rig.doors.blobs.put(
                key, [json.dumps({"custom_id": f"r{made.first_row + n}"}).encode() + b"\n" for n in sorted(rows)]
            )
            parts.append({"kind": kind, "blob": key})
    rig.finish(job, failed=failed, staged=Staged(parts, job.rows))


def content(rig, file_id):
    file = rig.store.files.read(file_id)
    with rig.doors.blobs.open(file.blob) as blob:
        data = blob.read()
    assert len(data) == file.bytes
    return [json.loads(line) for line in data.splitlines()]


def test_output_and_error_lines_become_two_files(rig):
    """In the order of the input, entered as files of the tenant; the parts are gone."""
    batch = planned_requests(rig)
    for _ in range(3):
        finish_requests(rig, batch, failed=[2])
    assert rig.end()
    view = rig.read(batch)
    assert view.status == "completed"
    good = [line["custom_id"] for line in content(rig, view.output_file_id)]
    assert good == [f"r{n}" for n in range(25) if n % 10 != 2]
    assert [line["custom_id"] for line in content(rig, view.error_file_id)] == ["r2", "r12", "r22"]
    file = rig.store.files.read(view.output_file_id)
    assert (file.tenant_id, file.purpose) == (stack.TENANT, "batch_output")
    assert not list(rig.blobs.glob("parts/*/*"))


def test_a_batch_without_errors_has_no_error_file(rig):
    """And one whose requests all failed is completed, with an error file alone, as OpenAI has it."""
    batch = planned_requests(rig, 5)
    finish_requests(rig, batch)
    assert rig.end()
    assert (rig.read(batch).output_file_id is not None, rig.read(batch).error_file_id) == (True, None)
    batch = planned_requests(rig, 5)
    finish_requests(rig, batch, failed=range(5))
    assert rig.end()
    view = rig.read(batch)
    assert (view.status, view.output_file_id, view.error_file_id is not None) == ("completed", None, True)


@pytest.mark.parametrize(
    ("how", "status", "code"), [("cancel", "cancelled", "batch_cancelled"), ("expire", "expired", "batch_expired")]
)
def test_requests_that_never_ran_stand_in_the_error_file(rig, how, status, code):
    """With their custom ids and the reason."""
    batch = planned_requests(rig)
    finish_requests(rig, batch)
    if how == "cancel":
        rig.store.batches.cancel(stack.TENANT, batch)
    else:
        rig.store.db.run("UPDATE jobs SET deadline_at = now() - interval '1 second'")
        rig.store.chores.expire()
    assert rig.end()
    view = rig.read(batch)
    assert view.status == status
    assert len(content(rig, view.output_file_id)) == 10
    lines = content(rig, view.error_file_id)
    assert [line["custom_id"] for line in lines] == [f"r{n}" for n in range(10, 25)]
    assert {(line["error"]["code"], line["response"]) for line in lines} == {(code, None)}


def test_files_made_twice_are_the_same_files(rig, monkeypatch, tmp_path):
    """An ender that dies before the end is followed by one that makes no second file."""
    batch = planned_requests(rig)
    for _ in range(3):
        finish_requests(rig, batch, failed=[2])

    def dies(name):
        if name == "scheduler.before_end":
            raise SystemExit(name)

    monkeypatch.setattr(failpoints, "hit", dies)
    with pytest.raises(SystemExit):
        rig.end()
    monkeypatch.undo()
    rig.store.db.run("UPDATE batches SET lease_until = now()")
    assert Running(rig.store, tmp_path).end()
    assert len(content(rig, rig.read(batch).output_file_id)) == 22
    assert len(rig.store.files.list(stack.TENANT, purpose=None, after=None, limit=9)) == 2


def test_stop_notes_one_fault(rig):
    """Whoever comes second changes nothing."""
    batch = rig.planned()
    assert rig.store.batches.stop(batch, BatchFault("a", "first"))
    assert not rig.store.batches.stop(batch, BatchFault("b", "second"))
    assert rig.end()
    assert [f["code"] for f in rig.faults(batch)] == ["a"]
