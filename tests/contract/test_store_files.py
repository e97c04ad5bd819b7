"""`batch_contract.Files`: a file is there until it is deleted or expires, and its bytes go last."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import batch_stack
import pytest
import stack

from batchline.batch import BatchStatus
from batchline.job import new_job_id
from batchline.store.batch_contract import FileView

NOW = datetime.now(UTC)
DAY_S = 86400.0


def _file(tenant=1, **changes):
    file_id = new_job_id()
    fields = {"purpose": "batch", "filename": "rows.jsonl", "bytes": 2**40, "blob": f"files/{file_id}"}
    fields |= {"created_at": NOW, "expires_at": None}
    return FileView(file_id, tenant, **fields | changes)


@pytest.fixture
def add(store):
    def _add(*args, **changes):
        file = _file(*args, **changes)
        store.files.add(file)
        return file

    return _add


def test_a_file_is_read_back_as_it_was_entered(store, add):
    """An id that is known stays as it is."""
    file = add(expires_at=NOW + timedelta(days=1))
    store.files.add(FileView(file.id, 2, "other", "x", 1, "y", NOW, None))
    assert store.files.read(file.id) == file
    assert store.files.read(new_job_id()) is None


def test_files_are_listed_newest_first_by_tenant_and_purpose(store, add):
    """In pages."""
    mine = [add(purpose=purpose) for purpose in ("batch", "batch_output", "batch")]
    add(2)
    newest = sorted((f.id for f in mine), reverse=True)
    assert [f.id for f in store.files.list(1, purpose=None, after=None, limit=2)] == newest[:2]
    assert [f.id for f in store.files.list(1, purpose=None, after=newest[1], limit=2)] == newest[2:]
    assert [f.id for f in store.files.list(1, purpose="batch_output", after=None, limit=9)] == [mine[1].id]


def test_a_deleted_file_is_gone_at_once_and_its_bytes_later(store, add):
    """Only its tenant may delete it, once; it is forgotten when its bytes are gone."""
    file, kept = add(), add()
    assert not store.files.delete(2, file.id)
    assert store.files.delete(1, file.id)
    assert not store.files.delete(1, file.id)
    assert store.files.read(file.id) is None
    assert [f.id for f in store.files.list(1, purpose=None, after=None, limit=9)] == [kept.id]
    for _ in range(2):
        assert store.files.take_garbage(kept_s=DAY_S, limit=9) == [(file.id, file.blob)]
    store.files.forget([file.id, kept.id])
    assert store.files.take_garbage(kept_s=DAY_S, limit=9) == []
    assert store.files.read(kept.id) == kept


def test_files_become_garbage_by_their_own_time_or_by_age(store, add):
    """What was taken is read no more, since its bytes may be gone already."""
    expired, old = add(expires_at=NOW - timedelta(seconds=1)), add(created_at=NOW - timedelta(days=2))
    young = add(created_at=NOW - timedelta(hours=23), expires_at=NOW + timedelta(hours=1))
    assert len(store.files.take_garbage(kept_s=DAY_S, limit=1)) == 1
    assert {f for f, _ in store.files.take_garbage(kept_s=DAY_S, limit=9)} == {expired.id, old.id}
    assert [store.files.read(f.id) for f in (expired, old, young)] == [None, None, young]


@pytest.mark.parametrize("why", ["deleted", "expired", "old"])
def test_the_input_of_an_unfinished_batch_stays(store, add, why):
    """Until the batch has ended."""
    file = add(
        expires_at=NOW - timedelta(1) if why == "expired" else None,
        created_at=NOW - timedelta(9) if why == "old" else NOW,
    )
    model = store.catalogue.register_model(stack.a_spec())
    batch = batch_stack.planned(store, model, [], input_file_id=file.id)
    if why == "deleted":
        store.files.delete(1, file.id)
    assert store.files.take_garbage(kept_s=DAY_S, limit=9) == []
    store.batches.take_to_end(batch_stack.HOLDER, lease_s=9.0)
    store.batches.end(batch_stack.HOLDER, batch, BatchStatus.COMPLETED)
    assert store.files.take_garbage(kept_s=DAY_S, limit=9) == [(file.id, file.blob)]
