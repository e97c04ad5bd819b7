"""Hold: slices of paused batches that came back to the queue (a retry, a rescue) are taken out of it again."""

from __future__ import annotations

from batchline.store import Store
from scheduler.chore import Chore


def hold(store: Store) -> Chore:
    return Chore("hold", 1.0, store.batches.hold_paused)
