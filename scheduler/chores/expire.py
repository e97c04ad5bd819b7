"""Expire: end queued jobs whose deadline has passed."""

from __future__ import annotations

from batchline.store import Store
from scheduler.chore import Chore


def expire(store: Store) -> Chore:
    return Chore("expire", 1.0, store.chores.expire, portion=store.chores.STEP)
