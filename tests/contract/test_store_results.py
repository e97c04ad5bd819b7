"""`batch_contract.Results`: lines are seen once, whole, in row order, and only of attempts that finished."""

from __future__ import annotations

import json

import batch_stack
import pytest
import stack

from batchline.batch import BatchStatus, Chunk, Staged
from batchline.errors import SinkUnavailableError
from batchline.store import batch_results
from batchline.store.contract import Failure


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec())


@pytest.fixture
def worker(store):
    return stack.a_worker(store)


def _chunk(rows):
    """Lines of these row numbers."""
    rows = list(rows)
    return Chunk(rows[0], len(rows), b"".join(json.dumps({"row": n, "x": "é\n"}).encode() + b"\n" for n in rows))


def _read(store, batch, after=-1, limit=10**6):
    """The row numbers that a read gives."""
    return [
        json.loads(x)["row"] for part in store.results.read(batch, after=after, limit=limit) for x in part.splitlines()
    ]


def _write(store, worker, model, sizes, chunk_rows=3, *, finish=True):
    """A batch whose claimed slices are written, in chunks, and finished."""
    batch = batch_stack.planned(store, model, sizes)
    jobs = batch_stack.claimed(store, worker, model, len(sizes))
    for n, job in enumerate(jobs):
        first = sum(sizes[:n])
        ends = range(first, first + sizes[n], chunk_rows)
        chunks = [_chunk(range(at, min(at + chunk_rows, first + sizes[n]))) for at in ends]
        store.results.write(job.id, job.attempt, chunks)
        if finish:
            store.slices.finish(worker, batch_stack.finished(job))
    return batch, jobs


def test_lines_come_in_row_order_and_from_any_row(store, model, worker):
    """Cut to the row on both sides, across chunks, slices and empty slices."""
    batch, _ = _write(store, worker, model, [7, 0, 1, 12, 0])
    assert _read(store, batch) == list(range(20))
    for after in range(-1, 21):
        assert _read(store, batch, after=after) == list(range(after + 1, 20))
        assert _read(store, batch, after=after, limit=5) == list(range(after + 1, min(after + 6, 20)))
    assert _read(store, batch, limit=0) == []


def test_row_numbers_may_have_gaps(store, model, worker):
    """As those of a retry, which does some rows of its parent."""
    batch = batch_stack.planned(store, model, [3])
    (job,) = batch_stack.claimed(store, worker, model)
    store.results.write(job.id, job.attempt, [_chunk([3, 9]), _chunk([14, 15, 40])])
    store.slices.finish(worker, batch_stack.finished(job))
    assert _read(store, batch) == [3, 9, 14, 15, 40]
    assert _read(store, batch, after=8) == [9, 14, 15, 40]
    assert _read(store, batch, after=14, limit=1) == [15]
    assert _read(store, batch, after=12) == [14, 15, 40]


def test_nothing_is_seen_past_the_first_slice_that_has_not_ended(store, model, worker):
    """Lines of the attempt that runs are unseen, even though they are there; a cancelled slice is passed over."""
    batch, jobs = _write(store, worker, model, [2, 2, 2, 2], finish=False)
    for n in (0, 2, 3):
        store.slices.finish(worker, batch_stack.finished(jobs[n]))
    assert _read(store, batch) == [0, 1]
    assert _read(store, batch, after=3) == []
    store.jobs.cancel(1, [jobs[1].id])
    assert _read(store, batch) == [0, 1, 4, 5, 6, 7]


def test_lines_of_attempts_that_lost_are_neither_seen_nor_kept(store, model, worker):
    """Given back, then finished by another; and failed as a whole after it had written."""
    batch = batch_stack.planned(store, model, [2, 2])
    first, second = batch_stack.claimed(store, worker, model, 2)
    store.results.write(first.id, first.attempt, [_chunk([0]), _chunk([1])])
    store.results.write(second.id, second.attempt, [_chunk([2])])
    store.claims.give_back(worker, [first])
    (again,) = batch_stack.claimed(store, worker, model)
    store.results.write(again.id, again.attempt, [_chunk([0, 1])])
    store.slices.finish(worker, batch_stack.finished(again))
    assert _read(store, batch) == [0, 1]
    store.results.sweep(batch)
    assert store.db.run("SELECT job_id, attempt FROM batch_lines ORDER BY job_id") == sorted(
        [(first.id, 2), (second.id, 1)]
    )
    store.claims.retry(worker, [Failure(second.id, 1, "e", "m", 0.0)], max_failures=0)
    assert _read(store, batch) == [0, 1]
    store.results.sweep(batch)
    assert store.db.run("SELECT job_id, attempt FROM batch_lines") == [(first.id, 2)]
    assert _read(store, batch) == [0, 1]


def test_a_slice_whose_lines_a_crash_took_does_not_finish(store, model, worker):
    """Lines are not durable before the finish: what Postgres has lost meanwhile is done again, by the next attempt."""
    batch = batch_stack.planned(store, model, [4])
    (job,) = batch_stack.claimed(store, worker, model)
    whole = batch_stack.finished(job, staged=Staged(rows=4, lines=4))
    for chunks in ([], [_chunk([0, 1])], [_chunk([3])]):
        store.results.write(job.id, job.attempt, chunks)
        with pytest.raises(SinkUnavailableError, match="lost result lines"):
            store.slices.finish(worker, whole)
        assert store.db.run("SELECT status::text FROM jobs WHERE id = %(id)s", {"id": job.id}) == [("running",)]
    store.results.write(job.id, job.attempt, [_chunk([2])])
    assert store.slices.finish(worker, whole)
    assert store.slices.finish(worker, whole), "a repeat after a lost reply"
    assert _read(store, batch) == [0, 1, 2, 3]


def test_a_chunk_written_again_is_there_once(store, model, worker):
    """Also beside new ones, and byte for byte."""
    batch = batch_stack.planned(store, model, [3])
    (job,) = batch_stack.claimed(store, worker, model)
    odd = Chunk(0, 1, b'{"row":0,"x":"\\u0000\\\\N\\t"}\n')
    store.results.write(job.id, job.attempt, [])
    for chunks in ([odd], [odd], [odd, _chunk([1])], [_chunk([2])], [_chunk([1]), _chunk([2])]):
        store.results.write(job.id, job.attempt, chunks)
    store.slices.finish(worker, batch_stack.finished(job))
    assert b"".join(store.results.read(batch, after=-1, limit=9)) == odd.lines + _chunk([1]).lines + _chunk([2]).lines


def test_a_read_fetches_a_few_chunks_at_a_time(store, model, worker, monkeypatch):
    """However large the batch: what has not been asked for is not fetched, and slices without lines are passed over."""
    monkeypatch.setattr(batch_results, "_SLICES", 2)
    batch, _ = _write(store, worker, model, [5, 0, 0, 0, 0, 5, 20], chunk_rows=1)
    assert _read(store, batch) == list(range(30))
    steps, run = [], store.db.run
    monkeypatch.setattr(store.db, "run", lambda sql, *a, **k: steps.append(found := run(sql, *a, **k)) or found)
    lines = store.results.read(batch, after=4, limit=100)
    assert json.loads(next(lines))["row"] == 5
    assert max(len(found) for found in steps) <= batch_results._CHUNKS + 1
    assert sum(len(found) for found in steps) < 20


def test_a_batch_is_complete_when_it_has_ended(store, model, worker):
    """No line comes after that."""
    batch, _ = _write(store, worker, model, [1])
    assert not store.results.complete(batch)
    store.batches.take_to_end(batch_stack.HOLDER, lease_s=9.0)
    store.batches.end(batch_stack.HOLDER, batch, BatchStatus.COMPLETED)
    assert store.results.complete(batch)
    assert _read(store, batch) == [0]


def test_lines_are_stored_small_and_read_as_they_came(store, model, worker):
    """As zstd frames where that shrinks them; lines that were stored plainly are read all the same."""
    batch = batch_stack.planned(store, model, [200])
    (job,) = batch_stack.claimed(store, worker, model)
    many, one, old = _chunk(range(198)), Chunk(198, 1, b'{"row":198}\n'), Chunk(199, 1, b'{"row":199}\n')
    store.results.write(job.id, job.attempt, [many, one])
    store.db.run(
        "INSERT INTO batch_lines (job_id, attempt, first_row, rows, lines) VALUES (%(job)s, 1, 199, 1, %(x)s)",
        {"job": job.id, "x": old.lines},
    )
    store.slices.finish(worker, batch_stack.finished(job))
    sizes = [n for (n,) in store.db.run("SELECT length(lines) FROM batch_lines ORDER BY first_row")]
    assert sizes[0] < len(many.lines) / 5
    assert sizes[1:] == [len(one.lines), len(old.lines)]
    assert b"".join(store.results.read(batch, after=-1, limit=999)) == many.lines + one.lines + old.lines
