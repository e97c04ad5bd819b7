"""Dispatch: make due jobs claimable and nudge every pool that has work, whatever became of earlier nudges."""

from __future__ import annotations

from batchline.queue.contract import Nudger
from batchline.settings import Settings
from batchline.store import Store
from scheduler.chore import Chore


def dispatch(settings: Settings, store: Store, nudger: Nudger) -> Chore:
    def step() -> int:
        released = store.chores.release()
        for pool, lane in store.chores.waiting():
            nudger.nudge(pool, lane, force=True)
        return released

    return Chore("dispatch", settings.dispatch_s, step, portion=store.chores.STEP)
