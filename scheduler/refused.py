"""The one error of the planner's own: a batch is at fault, and each fault is told."""

from __future__ import annotations

from collections.abc import Sequence

from batchline.batch import BatchFault


class RefusedError(Exception):
    """The batch can never be run as it stands."""

    def __init__(self, faults: Sequence[BatchFault]) -> None:
        super().__init__(faults[0].message)
        self.faults = faults
