"""Slices in a worker's hands: what to do, progress, exposure, the guarded finish, publication. Fenced as jobs are."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec
import psycopg2

from batchline.batch import Staged, rows_to_bits
from batchline.errors import SinkUnavailableError
from batchline.job import TRANSITIONS, ClaimedJob, Move, Status, guard, names
from batchline.store.batch_contract import FinishedSlice, SliceWork
from batchline.store.batch_rows import UNCOUNTED, view_of
from batchline.store.postgres import Database

_WORK = (
    UNCOUNTED.replace(
        " FROM batches b", ", s.poison, CASE WHEN s.died THEN ARRAY[s.exposed_from, s.exposed_upto] END FROM batches b"
    )
    + "JOIN slices s ON s.batch_id = b.id WHERE s.job_id = %(id)s"
)

# A note lost in a crash of Postgres is made again within the second.
_NO_SYNC = "off AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))"

_MINE = f"j.id = %(id)s AND j.worker_id = %(worker)s AND j.attempt = %(attempt)s AND {guard(Move.FINISH, by_id=True)}"

_PROGRESS = f"""
WITH {_NO_SYNC}
UPDATE slices s SET rows_done = %(rows)s, attempt = %(attempt)s FROM off, jobs j
WHERE s.job_id = j.id AND {_MINE} RETURNING 1
"""

_EXPOSE = f"""
WITH {_NO_SYNC}, u AS (UPDATE jobs j SET exposed = %(from)s < %(upto)s FROM off WHERE {_MINE} RETURNING j.id)
UPDATE slices s SET exposed_from = %(from)s, exposed_upto = %(upto)s, died = false FROM u
WHERE s.job_id = u.id RETURNING 1
"""

_CONDEMN = f"""
WITH mine AS MATERIALIZED (SELECT j.id FROM jobs j WHERE {_MINE} FOR UPDATE)
UPDATE slices s SET died = false,
  poison = CASE WHEN %(row)s = ANY(s.poison) THEN s.poison ELSE s.poison || %(row)s END
FROM mine WHERE s.job_id = mine.id RETURNING 1
"""

# Result lines are committed without waiting for the disk: a crash of Postgres may have taken some of a slice whose
# worker lives on. So they are counted here, where the commit makes them durable.
_FINISH = f"""
WITH mine AS MATERIALIZED (SELECT j.id FROM jobs j WHERE {_MINE} FOR UPDATE
), whole AS MATERIALIZED (
  SELECT mine.id FROM mine WHERE %(lines)s = 0 OR %(lines)s = (
    SELECT sum(l.rows) FROM batch_lines l WHERE l.job_id = %(id)s AND l.attempt = %(attempt)s)
), u AS (
  UPDATE jobs j SET status = %(status)s::job_status, finished_at = now(), rows = %(rows)s, rows_failed = %(failed)s,
    code = %(code)s, exposed = false
  FROM whole WHERE j.id = whole.id RETURNING j.id
), s AS (
  UPDATE slices s SET rows = %(rows)s, rows_done = %(rows)s, rows_failed = %(failed)s, attempt = %(attempt)s,
    failed = %(bits)s, staged = %(staged)s, published = %(published)s, died = false,
    poison = CASE WHEN %(poison)s::int[] = '{{}}' THEN s.poison ELSE %(poison)s::int[] END
  FROM u WHERE s.job_id = u.id
), r AS (
  INSERT INTO job_results (job_id, timings) SELECT u.id, %(timings)s::json FROM u
)
SELECT id, true FROM u
UNION SELECT id, false FROM mine WHERE NOT EXISTS (SELECT 1 FROM whole)
UNION SELECT j.id, true FROM jobs j WHERE j.id = %(id)s AND j.worker_id = %(worker)s AND j.attempt = %(attempt)s
  AND j.status IN ({names(TRANSITIONS[Move.FINISH][1])})
"""

_UNPUBLISHED = """
WITH open AS MATERIALIZED (
  SELECT b.id FROM batches b WHERE b.ended_at IS NULL AND b.status <> 'validating' AND b.kind = 'data_set'
)
SELECT s.job_id, s.batch_id, s.number, s.staged FROM open JOIN slices s ON s.batch_id = open.id
WHERE s.staged IS NOT NULL AND NOT s.published
ORDER BY s.batch_id LIMIT %(limit)s
"""

_PUBLISHED = """
WITH t AS MATERIALIZED (
  SELECT s.job_id FROM slices s WHERE s.job_id = ANY(%(ids)s::uuid[]) AND s.staged IS NOT NULL AND NOT s.published
  ORDER BY s.job_id FOR UPDATE
)
UPDATE slices s SET published = true FROM t WHERE s.job_id = t.job_id
"""


class Slices:
    """See `batchline.store.batch_contract.Slices`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def work(self, job: ClaimedJob) -> SliceWork | None:
        for *view, poison, exposed in self._db.run(_WORK, {"id": job.id}, prepare=True):
            return SliceWork(view_of(tuple(view)), tuple(poison), tuple(exposed) if exposed else None)
        return None

    def progress(self, worker_id: uuid.UUID, job: ClaimedJob, rows_done: int) -> bool:
        return bool(self._db.run(_PROGRESS, {**_fence(worker_id, job), "rows": rows_done}))

    def expose(self, worker_id: uuid.UUID, job: ClaimedJob, rows: tuple[int, int]) -> bool:
        return bool(self._db.run(_EXPOSE, {**_fence(worker_id, job), "from": rows[0], "upto": rows[1]}))

    def condemn(self, worker_id: uuid.UUID, job: ClaimedJob, row: int) -> bool:
        return bool(self._db.run(_CONDEMN, {**_fence(worker_id, job), "row": row}))

    def finish(self, worker_id: uuid.UUID, done: FinishedSlice) -> bool:
        failed = len(done.failed)
        none_left = done.rows > 0 and failed == done.rows
        params = {
            **_fence(worker_id, done),
            "status": (Status.FAILED if none_left else Status.SUCCEEDED).value,
            "code": "predict_failed" if none_left else None,
            "rows": done.rows,
            "failed": failed,
            "bits": psycopg2.Binary(rows_to_bits(list(done.failed), max(done.failed) + 1)) if failed else None,
            "staged": msgspec.json.encode(done.staged).decode(),
            "published": not done.staged.parts,
            "poison": list(done.poison),
            "timings": done.timings,
            "lines": done.staged.lines,
        }
        found = self._db.run(_FINISH, params)
        if found and not found[0][1]:
            raise SinkUnavailableError("Postgres has lost result lines of this slice in a crash; it is done again.")
        return bool(found)

    def unpublished(self, *, limit: int) -> list[tuple[uuid.UUID, uuid.UUID, int, Staged]]:
        rows = self._db.run(_UNPUBLISHED, {"limit": limit})
        return [(job, batch, n, msgspec.json.decode(staged, type=Staged)) for job, batch, n, staged in rows]

    def published(self, job_ids: Sequence[uuid.UUID]) -> None:
        self._db.run(_PUBLISHED, {"ids": list(job_ids)})


def _fence(worker_id: uuid.UUID, job: ClaimedJob | FinishedSlice) -> dict[str, object]:
    return {"worker": worker_id, "id": job.id, "attempt": job.attempt}
