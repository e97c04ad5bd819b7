"""Reads the signals of every pool from Postgres."""

from __future__ import annotations

from autoscaler.policy import Signals
from batchline.store import Store


def observe(store: Store) -> dict[str, Signals]:
    """Signals by pool; a pool with neither backlog nor workers does not appear."""
    store.chores.count_backlog(every_s=1.0)
    backlog = store.chores.backlog()
    workers = [w for w in store.workers.list() if w.live and not w.draining]
    pools = {b.pool for b in backlog} | {w.pool for w in workers}
    return {
        pool: Signals(
            queued_rows=sum(b.rows for b in backlog if b.pool == pool),
            oldest_age_s=max((b.oldest_age_s for b in backlog if b.pool == pool), default=0.0),
            workers=sum(w.pool == pool for w in workers),
        )
        for pool in sorted(pools)
    }
