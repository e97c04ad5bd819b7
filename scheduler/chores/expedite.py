"""Expedite: slices of batches that would miss their deadline if batches went on taking turns go first.

The rank of a slice has batches of a pool take turns. That suits all as long as those with a deadline have time to
spare. Once they have not, earliest deadline first is what meets every deadline that can be met (Liu, Layland, 1973).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import accumulate, groupby

from batchline.batch import MAX_SLICES
from batchline.metrics import EXPEDITED
from batchline.store import Store
from batchline.store.expedite_contract import Due, Pick
from scheduler.chore import Chore

log = logging.getLogger("scheduler.expedite")

EVERY_S = 5.0
SHARE = 0.5
"""Of what the pool can do until a deadline: work that needs more of it has no time to spare. So batches with deadlines
get half of the pool at least when they need it. The other half is for errors: of the speed that was measured, of the
workers that stay, of the online work that comes."""
_LOOK_S = 10.0
"""So long may workers not look at the head of the queue: see `workers.claiming`."""
_AHEAD_S = 2 * EVERY_S
"""What is moved lasts the pool for so long."""
_LEAST, _MOST = 2, 20
"""Slices a worker that are moved at a time."""
_COUNTED = 300_000
"""Slices that a tick counts for a pool at most, the first due; the rest is taken as it was planned."""
_QUIET = timedelta(minutes=10)
"""After so long without a near deadline the next one is told again."""
_UNMEASURED = 1e3
"""Rows/s of one worker where nobody has measured any: as the planner believes at least."""


def expedite(store: Store, now: Callable[[], datetime] | None = None) -> Chore:
    """Moves few slices at a time, however large the batches are.

    Args:
        store: whose batches.
        now: the database's clock, if not asked of the store.
    """
    told: dict[str, datetime] = {}

    def step() -> int:
        at, moved = (now or store.schedules.now)(), 0
        for pool, planned in groupby(sorted(store.deadlines.planned(), key=_by_pool), lambda due: due.pool):
            picks = _picks(store, list(planned), at)
            if not picks:
                continue
            if pool not in told or at - told[pool] > _QUIET:
                log.info("deadlines are near: batches go by deadline first", extra={"pool": pool})
            told[pool] = at
            moved_here = store.deadlines.expedite(picks)
            EXPEDITED.labels(pool).inc(moved_here)
            moved += moved_here
        return moved

    return Chore("expedite", EVERY_S, step)


def _by_pool(due: Due) -> tuple[str, datetime]:
    return due.pool, due.deadline_at


def _picks(store: Store, planned: Sequence[Due], at: datetime) -> list[Pick]:
    """Slices are counted for deadlines that the plans alone cannot clear: 0.6 s of Postgres a million."""
    doubtful = urgent(planned, at, share=SHARE / 2)  # half: what is left may be larger slices than the mean
    counted = sum(total <= _COUNTED for total in accumulate(due.slices for due in doubtful))
    left = store.deadlines.left(doubtful[:counted]) if counted else []
    return first_of(urgent([*left, *doubtful[counted:]], at))


def urgent(dues: Sequence[Due], now: datetime, *, share: float = SHARE) -> Sequence[Due]:
    """What has no time to spare, and all that is due before it.

    Args:
        dues: of one pool, in order of their deadlines.
        now: by the clock of the deadlines.
        share: of the time left; see `SHARE`.

    Returns:
        `dues` up to the last one that has too little time. W worker-seconds that are due until d, in k slices, take n
        workers W / min(n, k) seconds, since a slice is done by one. They have too little time if that is more than
        `share` of what is left until d, less the time until a worker is there for them: a tick, its look at the
        queue, and the longest slice of the pool that it may have begun.
    """
    work_s, slices, last = 0.0, 0, 0
    for n, due in enumerate(dues, start=1):
        left_s = (due.deadline_at - now).total_seconds()
        if left_s <= 0 or not due.slices:
            continue
        work_s += _seconds(due)
        slices += due.slices
        needed_s = work_s / min(max(due.workers, 1), slices)
        if needed_s > share * (left_s - EVERY_S - _LOOK_S - max(due.busy_s, work_s / slices)):
            last = n
    return dues[:last]


def first_of(dues: Sequence[Due]) -> list[Pick]:
    """The first slices, by deadline, as many as the pool's workers can do until the tick after the next."""
    slices = sum(due.slices for due in dues)
    if not slices:
        return []
    slice_s = sum(_seconds(due) for due in dues) / slices
    a_worker = min(max(math.ceil(_AHEAD_S / max(slice_s, 1e-3)), _LEAST), _MOST)
    room = min(max(dues[0].workers, 1) * a_worker, MAX_SLICES)
    picks = list[Pick]()
    for due in dues:
        most = min(room, due.queued)
        if most:
            picks.append(Pick(due.model_id, due.deadline_at, most))
        room -= most
    return picks


def _seconds(due: Due) -> float:
    """Of one worker."""
    return due.rows / (due.rows_per_s or _UNMEASURED)
