"""Rescue: take jobs back from workers whose lease has expired."""

from __future__ import annotations

import logging

from batchline.metrics import POISONED, RESCUED
from batchline.settings import Settings
from batchline.store import Store
from scheduler.chore import Chore

log = logging.getLogger("scheduler.rescue")


def rescue(settings: Settings, store: Store) -> Chore:
    """While Postgres is younger than a lease nobody is rescued: it was away, and no worker could renew.

    The same holds after the leader itself was cut off that long (`Leader` starts the delay anew).
    """

    def step() -> int:
        if not store.chores.settled(lease_s=settings.lease_s):
            return 0
        rescued = store.chores.rescue(max_failures=settings.max_failures)
        moved = rescued.requeued + rescued.poisoned
        if moved:
            RESCUED.inc(moved)
            POISONED.inc(rescued.poisoned)
            log.warning("jobs rescued", extra={"requeued": rescued.requeued, "poisoned": rescued.poisoned})
        return moved

    return Chore("rescue", settings.sweep_s, step, portion=store.chores.STEP, delay_after_gap_s=settings.lease_s)
