"""The verdict, pure: how a batch ends, and why, once all its slices have ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from batchline.batch import BatchFault, BatchStatus, BatchView
from batchline.store.batch_contract import SliceView

_TOLD = 10
"""Slices that failed as a whole and are named."""


@dataclass(slots=True)
class Whole:
    """What slices tell beside their rows: those that failed as a whole have staged nothing."""

    count: int = 0
    """Slices that failed as a whole."""
    expired: int = 0
    """Requests that the window left no time for, in slices that were finished."""
    faults: list[BatchFault] = field(default_factory=list[BatchFault])

    def look(self, slices: Iterable[SliceView]) -> Whole:
        """Add what is found among these."""
        for view in slices:
            self.expired += view.staged.expired if view.staged else 0
            if view.status == "failed" and view.staged is None:
                self.count += 1
                if len(self.faults) < _TOLD:
                    told = view.message or "The slice failed."
                    self.faults.append(BatchFault(view.code or "failed", f"Slice {view.number}: {told}"))
        return self


def verdict(batch: BatchView, whole: Whole) -> tuple[BatchStatus, list[BatchFault]]:
    """The status to end with, and faults that are not yet noted in the batch.

    Row errors alone fail no batch unless their share exceeds its threshold, or every row failed; of requests, whose
    failures stand in the error file, not even then. A slice that failed as a whole fails the batch unless the
    threshold forgives it.

    Args:
        batch: finalizing or cancelling, with exact counts.
        whole: of its slices.
    """
    if batch.status is BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED, []
    if batch.errors is not None:
        return BatchStatus.FAILED, []
    if faults := over(batch, whole):
        return BatchStatus.FAILED, faults
    return (BatchStatus.EXPIRED if batch.counts.expired or whole.expired else BatchStatus.COMPLETED), []


def over(batch: BatchView, whole: Whole) -> list[BatchFault]:
    """Why the batch has failed; empty when it has not."""
    counts, threshold = batch.counts, batch.error_threshold
    if threshold is None and whole.count:
        return whole.faults
    if threshold is not None and counts.failed > threshold * counts.total:
        told = f"{counts.failed} of {counts.total} rows failed, more than the error_threshold of {threshold:g} allows."
        return [BatchFault("error_threshold_exceeded", told), *whole.faults]
    if counts.failed and counts.failed == counts.total and batch.kind != "requests":
        return [BatchFault("all_rows_failed", f"All {counts.total} rows failed; see the errors of the rows.")]
    return []
