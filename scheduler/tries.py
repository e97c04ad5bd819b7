"""How often a batch has been tried in vain, and how long to leave it alone."""

from __future__ import annotations

import random
import uuid
from collections import OrderedDict

from batchline.retry import backoff_s

_MOST = 10_000


class Tries:
    """Counts per batch, of this process: another scheduler begins anew, which costs time and nothing else."""

    def __init__(self, limit: int, *, cap_s: float, rng: random.Random | None = None) -> None:
        self._limit = limit
        self._cap_s = cap_s
        self._rng = rng
        self._failures: OrderedDict[uuid.UUID, int] = OrderedDict()

    def failed(self, batch_id: uuid.UUID) -> float | None:
        """Seconds to leave the batch alone; None when it has been tried often enough."""
        failures = self._failures.pop(batch_id, 0) + 1
        if failures >= self._limit:
            return None
        self._failures[batch_id] = failures
        if len(self._failures) > _MOST:
            self._failures.popitem(last=False)
        return backoff_s(failures, cap_s=self._cap_s, rng=self._rng)

    def forget(self, batch_id: uuid.UUID) -> None:
        """It has come through."""
        self._failures.pop(batch_id, None)
