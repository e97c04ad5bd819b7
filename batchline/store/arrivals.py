"""What has arrived, over time: the record that scaling policies are simulated on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchline.job import first_id_at
from batchline.store.postgres import Database

STEP_S = 5.0
UNDUE_S = 3600.0
"""Batches without a deadline are taken to be due after this, as the policy drain_time takes them."""
_AT_ONCE = timedelta(hours=1)
"""How much time one statement reads: none keeps a snapshot for long."""

# Ids sort by time of creation: an hour is a range of the primary key, and a minute before it for ids that were minted
# before their job was written.
_ONLINE = """
SELECT floor(extract(epoch FROM j.created_at - %(start)s) / %(step)s) * %(step)s AS at_s, sum(j.rows)
FROM jobs j JOIN models m ON m.id = j.model_id
WHERE j.id >= %(low)s AND j.id < %(high)s AND j.lane = 'online'
  AND j.created_at >= %(from)s AND j.created_at < %(to)s AND (%(pool)s::text IS NULL OR m.pool = %(pool)s)
GROUP BY 1 ORDER BY 1
"""

_BATCHES = """
SELECT extract(epoch FROM coalesce(b.in_progress_at, b.created_at) - %(start)s) AS at_s, sum(s.rows),
  extract(epoch FROM b.deadline_at - %(start)s)
FROM batches b JOIN slices s ON s.batch_id = b.id JOIN jobs j ON j.id = s.job_id JOIN models m ON m.id = j.model_id
WHERE b.id >= %(low)s AND b.id < %(high)s
  AND b.created_at >= %(from)s AND b.created_at < %(to)s AND (%(pool)s::text IS NULL OR m.pool = %(pool)s)
GROUP BY b.id ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Rows that arrived.

    Attributes:
        at_s: seconds since the start of the record; of the online lane the beginning of a step of 5 s.
        rows: of all jobs of the step, or of one batch.
        due_s: when the batch is due; None for the online lane.
    """

    at_s: float
    rows: int
    due_s: float | None = None


def arrivals(db: Database, *, start: datetime, end: datetime, pool: str | None = None) -> Iterator[Arrival]:
    """All that arrived and is still kept (30 days unless set otherwise), hour by hour.

    Args:
        db: is asked once an hour of the record.
        start: of the record.
        end: the first moment beyond it.
        pool: whose models; None for all.
    """
    low = start
    while low < end:
        high = min(low + _AT_ONCE, end)
        params = {
            "start": start,
            "step": STEP_S,
            "from": low,
            "to": high,
            "pool": pool,
            "low": first_id_at((low - timedelta(minutes=1)).timestamp()),
            "high": first_id_at((high + timedelta(minutes=1)).timestamp()),
        }
        for at_s, rows in db.run(_ONLINE, params):
            yield Arrival(float(at_s), int(rows))
        for at_s, rows, due_s in db.run(_BATCHES, params):
            yield Arrival(float(at_s), int(rows), float(at_s) + UNDUE_S if due_s is None else float(due_s))
        low = high
