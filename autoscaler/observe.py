"""Reads the signals of every pool from Postgres."""

from __future__ import annotations

import statistics

from autoscaler.signals import Signals
from batchline.job import Lane
from batchline.store import Store


def observe(store: Store, now: float) -> dict[str, Signals]:
    """Signals by pool; a pool with neither backlog nor workers does not appear.

    Args:
        store: counted anew unless somebody did within a second.
        now: epoch seconds, the time of these looks.
    """
    store.chores.count_backlog(every_s=1.0)
    backlog = store.chores.backlog()
    live = [w for w in store.workers.list() if w.live]
    found = dict[str, Signals]()
    for pool in sorted({b.pool for b in backlog} | {w.pool for w in live if not w.draining}):
        waiting = [b for b in backlog if b.pool == pool]
        ours = [w for w in live if w.pool == pool]
        found[pool] = Signals(
            at=now,
            queued_rows=sum(b.rows for b in waiting),
            bulk_rows=sum(b.rows for b in waiting if b.lane is Lane.BULK),
            oldest_age_s=max((b.oldest_age_s for b in waiting if b.lane is not Lane.BULK), default=0.0),
            workers=sum(not w.draining for w in ours),
            draining=sum(w.draining for w in ours),
            rows_per_s=statistics.fmean([w.rows_per_s for w in ours if w.rows_per_s > 0] or [0.0]),
        )
    return found
