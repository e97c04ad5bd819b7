"""How many rows a bulk micro-batch has: found by doubling, and kept short while online work waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.models import LoadedModel
from workers.predict import Sizes

MOST_ROWS = 65_536
MOST_BYTES = 64 * 2**20
"""Inputs and outputs of one micro-batch together."""

_SHORT_S = 0.005
"""A pass is not grown beyond this: it is long enough for what a pass costs by itself to be forgotten."""
_WORTH = 1.05
"""By how much a doubled size must be quicker by the row to be worth its memory."""
_LOOKS = 3
"""Passes that a size is judged by; the quickest counts, since a busy machine only ever adds."""
_REMEMBER_S = 600.0
_OLD_SHARE = 0.7
"""What the pace known so far weighs against the last pass."""


@dataclass(slots=True)
class _Known:
    """What has been measured of one model."""

    size: int
    since: float
    seconds: list[float] = field(default_factory=list[float])
    """Of full passes at this size."""
    best: tuple[int, float] = (0, 0.0)
    """The size before and its rows/s."""
    settled: bool = False
    row_s: float = 0.0
    """Seconds a row, lately."""
    row_bytes: float = 0.0


class BulkSizes:
    """Sizes of bulk micro-batches, for one thread. What was found is looked for anew after ten minutes."""

    def __init__(self, sizes: Sizes, *, bulk_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing known.

        Args:
            sizes: what the device has room for; it has the last word.
            bulk_s: the longest a pass may take while online work waits.
            clock: seconds.
        """
        self._sizes = sizes
        self._bulk_s = bulk_s
        self._clock = clock
        self._known: dict[int, _Known] = {}

    def rows(self, model: LoadedModel, *, online: bool = False) -> int:
        """Most rows of the next pass, from 1.

        Args:
            model: of the pass.
            online: whether online work waits or did lately: then the pass is held to `bulk_s` by the pace measured.
        """
        known = self._of(model)
        rows = min(known.size, self._sizes.limit(model, most=MOST_ROWS))
        if known.row_bytes:
            rows = min(rows, int(MOST_BYTES / known.row_bytes))
        if online:
            rows = min(rows, int(self._bulk_s / known.row_s) if known.row_s else 1)
        return max(1, rows)

    def note(self, model: LoadedModel, rows: int, seconds: float, size_bytes: int) -> None:
        """Learn from a pass that went well.

        Args:
            model: of the pass.
            rows: how many it had.
            seconds: how long it took.
            size_bytes: of its inputs and outputs.
        """
        known = self._of(model)
        pace = seconds / rows
        known.row_s = known.row_s * _OLD_SHARE + pace * (1 - _OLD_SHARE) if known.row_s else pace
        known.row_bytes = max(known.row_bytes, size_bytes / rows)
        if known.settled or rows != known.size:
            return
        known.seconds.append(seconds)
        if len(known.seconds) == _LOOKS:
            self._judge(model, known)

    def _judge(self, model: LoadedModel, known: _Known) -> None:
        """After enough passes at one size: go on to twice as many rows, stay, or go back."""
        took, size = min(known.seconds), known.size
        rate = size / max(took, 1e-9)
        before, rate_before = known.best
        if before and rate < rate_before:
            known.size, known.settled = before, True
        elif (before and rate < rate_before * _WORTH) or took * 2 > _SHORT_S or size * 2 > self._most(model, known):
            known.settled = True
        else:
            known.size, known.best, known.seconds = size * 2, (size, rate), []

    def _most(self, model: LoadedModel, known: _Known) -> int:
        return min(MOST_ROWS, self._sizes.limit(model, most=MOST_ROWS), int(MOST_BYTES / max(known.row_bytes, 1.0)))

    def _of(self, model: LoadedModel) -> _Known:
        now = self._clock()
        known = self._known.get(model.id)
        if known is None or now - known.since > _REMEMBER_S:
            policy = model.spec.policy
            fixed = policy.max_bulk_batch_size is not None or policy.max_batch_size == 1
            size = 1 if policy.max_batch_size == 1 else policy.max_bulk_batch_size or policy.max_batch_size
            row_s = known.row_s if known else 0.0
            known = self._known[model.id] = _Known(min(size, MOST_ROWS), now, settled=fixed, row_s=row_s)
        return known
