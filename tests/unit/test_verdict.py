"""The verdict on a batch: which errors fail it, which its threshold forgives, and that cancelling comes first."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from batchline.batch import BatchStatus, BatchView, Counts, Staged
from batchline.store.batch_contract import SliceView
from scheduler.verdict import Whole, verdict


def a_batch(**changes: Any) -> BatchView:
    fields: dict[str, Any] = dict.fromkeys(BatchView.__dataclass_fields__)
    fields |= {"id": uuid.uuid4(), "kind": "data_set", "status": BatchStatus.FINALIZING, "rows_per_s": 0.0}
    fields |= {"created_at": datetime.now(UTC), "counts": Counts(100, 100)}
    return BatchView(**fields | changes)


def a_slice(status: str, staged: Staged | None = None) -> SliceView:
    return SliceView(
        uuid.uuid4(), 3, status, 1, 10, 10, "source_error", "f.csv, row 7: bad", b"", None, staged, published=False
    )


WHOLE = Whole().look([a_slice("failed"), a_slice("succeeded", Staged()), a_slice("failed", Staged())])


@pytest.mark.parametrize(
    ("batch", "whole", "status", "codes"),
    [
        (a_batch(), Whole(), "completed", []),
        (a_batch(kind="requests"), Whole().look([a_slice("succeeded", Staged(expired=1))]), "expired", []),
        (a_batch(counts=Counts()), Whole(), "completed", []),
        (a_batch(counts=Counts(100, 1, 99)), Whole(), "completed", []),
        (a_batch(counts=Counts(100, 0, 100)), Whole(), "failed", ["all_rows_failed"]),
        (a_batch(counts=Counts(100, 0, 100), kind="requests"), Whole(), "completed", []),
        (a_batch(counts=Counts(100, 0, 100), error_threshold=1.0), Whole(), "failed", ["all_rows_failed"]),
        (a_batch(counts=Counts(100, 95, 5), error_threshold=0.05), Whole(), "completed", []),
        (a_batch(counts=Counts(100, 94, 6), error_threshold=0.05), Whole(), "failed", ["error_threshold_exceeded"]),
        (a_batch(counts=Counts(100, 99, 1), error_threshold=0.0), Whole(), "failed", ["error_threshold_exceeded"]),
        (a_batch(counts=Counts(100, 90, 10)), WHOLE, "failed", ["source_error"]),
        (a_batch(counts=Counts(100, 90, 10), error_threshold=0.5), WHOLE, "completed", []),
        (a_batch(counts=Counts(100, 90, 10), kind="requests"), WHOLE, "failed", ["source_error"]),
        (a_batch(counts=Counts(100, 90, expired=10)), Whole(), "expired", []),
        (a_batch(counts=Counts(100, 90, cancelled=10), errors="[]"), Whole(), "failed", []),
        (a_batch(status=BatchStatus.CANCELLING, counts=Counts(100, 0, 100), errors="[]"), WHOLE, "cancelled", []),
        (a_batch(status=BatchStatus.CANCELLING, counts=Counts(100, 100)), Whole(), "cancelled", []),
    ],
)  # fmt: skip
def test_how_a_batch_ends(batch, whole, status, codes):
    """Each rule by one example."""
    found, faults = verdict(batch, whole)
    assert found == status
    assert [f.code for f in faults] == codes


def test_a_slice_that_failed_as_a_whole_is_named_with_its_file_and_row():
    """Those whose rows all failed one by one have staged their errors, and are none."""
    assert WHOLE.count == 1
    assert WHOLE.faults[0].message == "Slice 3: f.csv, row 7: bad"
