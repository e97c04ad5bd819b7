"""Jobs in a worker's hands: claim, expose, finish, retry, give back. Every statement carries the fence."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import psycopg2

from batchline.errors import InvalidRequestError
from batchline.job import TRANSITIONS, ClaimedJob, FinishedJob, Lane, Move, guard, names
from batchline.store.contract import Claim, Failure, Head
from batchline.store.failures import FAILED
from batchline.store.postgres import Database, columns

# A claim lost in a crash of Postgres is a job that is still queued, so it need not wait for the disk.
_NO_SYNC = "off AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))"

_LIVE = """live AS MATERIALIZED (
  SELECT w.id FROM workers w, off WHERE w.id = %(worker)s AND w.lease_until > now() AND NOT w.draining)"""

_TAKE = f"""
  UPDATE jobs j SET status = 'running', attempt = j.attempt + 1, worker_id = %(worker)s, started_at = now(),
    exposed = false
  FROM fit WHERE j.id = fit.id AND {guard(Move.CLAIM, by_id=True)}
  RETURNING j.id, j.tenant_id, j.model_id, j.attempt, j.failures, j.rows, j.suspect, j.rank,
    extract(epoch FROM now() - j.created_at) * 1000 AS queued_ms
"""

CLAIM_BYTES = 64 * 2**20
"""The payloads of one claim: what Postgres sends and a worker holds at once. A single larger one comes alone."""

# Jobs are taken in order of rank while their rows fit; the first one always fits. Those whose payloads go beyond the
# bytes come without, and `claim` gives them back: looking at payloads before the choice would make every claim dearer.
# (The length of a large payload stands in its pointer, so only what is sent is read.)
_CLAIM = f"""
WITH {_NO_SYNC}, {_LIVE}, c AS MATERIALIZED (
  SELECT j.id, j.rows, j.rank FROM jobs j
  WHERE j.model_id = %(model)s AND j.lane = %(lane)s AND j.rank >= %(floor)s
    AND j.status = 'queued' AND j.run_at IS NULL AND NOT j.suspect AND EXISTS (SELECT 1 FROM live)
  ORDER BY j.rank LIMIT %(rows)s + 1 FOR UPDATE OF j SKIP LOCKED
), summed AS (
  SELECT id, sum(rows) OVER (ORDER BY rank, id) AS total, row_number() OVER (ORDER BY rank, id) AS n FROM c
), fit AS MATERIALIZED (SELECT id FROM summed WHERE total <= %(rows)s OR n = 1 ORDER BY id
), u AS ({_TAKE})
SELECT u.*,
  CASE WHEN sum(octet_length(i.payload)) OVER w <= {CLAIM_BYTES} OR row_number() OVER w = 1 THEN i.payload END,
  (SELECT count(*) FROM c)
FROM u JOIN job_inputs i ON i.job_id = u.id WINDOW w AS (ORDER BY u.rank, u.id) ORDER BY u.rank, u.id
"""

_ID, _ATTEMPT, _PAYLOAD = 0, 3, 9
"""Columns of what a claim returns."""

_CLAIM_SUSPECT = f"""
WITH {_NO_SYNC}, {_LIVE}, fit AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.model_id = %(model)s AND j.lane = %(lane)s AND j.status = 'queued'
    AND j.run_at IS NULL AND j.suspect AND EXISTS (SELECT 1 FROM live)
  ORDER BY j.rank LIMIT 1 FOR UPDATE OF j SKIP LOCKED
), u AS ({_TAKE})
SELECT u.*, i.payload, 1 FROM u JOIN job_inputs i ON i.job_id = u.id
"""

_HEADS = """
SELECT m.id, h.rank, h.suspect FROM models m CROSS JOIN LATERAL (
  (SELECT j.rank, false AS suspect FROM jobs j WHERE j.model_id = m.id AND j.lane = %(lane)s AND j.rank >= %(floor)s
     AND j.status = 'queued' AND j.run_at IS NULL AND NOT j.suspect ORDER BY j.rank LIMIT 1)
  UNION ALL
  (SELECT j.rank, true FROM jobs j WHERE j.model_id = m.id AND j.lane = %(lane)s
     AND j.status = 'queued' AND j.run_at IS NULL AND j.suspect ORDER BY j.rank LIMIT 1)
) h WHERE m.pool = %(pool)s ORDER BY h.rank
"""

# Who has spent the budget of the day takes no slices; what is under way ends.
_BULK_HEADS = _HEADS.replace(
    "WHERE m.pool = %(pool)s",
    "WHERE m.pool = %(pool)s AND NOT EXISTS ("
    "SELECT FROM pool_money b WHERE b.pool = %(pool)s AND b.bulk_held_until > now())",
)

# The fence. It is checked where the rows are locked (`mine`); what follows in the statement finds them as they were.
_MINE = "j.worker_id = %(worker)s AND j.attempt = t.attempt"

_EXPOSE = f"""
WITH {_NO_SYNC}
UPDATE jobs j SET exposed = true FROM off, unnest(%(id)s::uuid[], %(attempt)s::int[]) AS t(id, attempt)
WHERE j.id = t.id AND {_MINE} AND {guard(Move.FINISH, by_id=True)} RETURNING j.id
"""

_ENDS = names(TRANSITIONS[Move.FINISH][1])

# A job that was cancelled, rescued or claimed again drops out at `mine`; its result is not written. The second half
# of the answer is for a repeat after a lost reply: what this very attempt has already finished counts as finished.
_FINISH = f"""
WITH t AS MATERIALIZED (
  SELECT * FROM unnest(%(id)s::uuid[], %(attempt)s::int[], %(status)s::job_status[], %(outputs)s::text[],
                       %(errors)s::text[], %(timings)s::text[], %(rows_failed)s::int[], %(code)s::text[])
    AS t(id, attempt, status, outputs, errors, timings, rows_failed, code)
), mine AS MATERIALIZED (
  SELECT j.id FROM jobs j JOIN t ON j.id = t.id
  WHERE {_MINE} AND {guard(Move.FINISH, by_id=True)} AND t.status IN ({_ENDS})
  ORDER BY j.id FOR UPDATE OF j
), u AS (
  UPDATE jobs j SET status = t.status, finished_at = now(), rows_failed = t.rows_failed, code = t.code, exposed = false
  FROM mine, t WHERE j.id = mine.id AND t.id = mine.id AND {guard(Move.FINISH, by_id=True)} RETURNING j.id
), r AS (
  INSERT INTO job_results (job_id, outputs, errors, timings)
  SELECT t.id, t.outputs::json, t.errors::json, t.timings::json FROM t JOIN u ON u.id = t.id ORDER BY t.id
)
SELECT id FROM u
UNION SELECT j.id FROM jobs j JOIN t ON j.id = t.id WHERE {_MINE} AND j.status IN ({_ENDS})
"""

_RETRY = f"""
WITH t AS MATERIALIZED (
  SELECT * FROM unnest(%(id)s::uuid[], %(attempt)s::int[], %(delay)s::float8[], %(code)s::text[], %(error)s::text[])
    AS t(id, attempt, delay_s, code, error)
), mine AS MATERIALIZED (
  SELECT j.id FROM jobs j JOIN t ON j.id = t.id
  WHERE {_MINE} AND {guard(Move.RETRY, by_id=True)} ORDER BY j.id FOR UPDATE OF j
), u AS (
  UPDATE jobs j SET failures = j.failures + 1, exposed = false, worker_id = NULL,
    status = CASE WHEN j.failures + 1 >= %(max)s THEN 'failed' ELSE 'queued' END::job_status,
    finished_at = CASE WHEN j.failures + 1 >= %(max)s THEN now() END,
    rows_failed = CASE WHEN j.failures + 1 >= %(max)s THEN j.rows ELSE 0 END,
    code = CASE WHEN j.failures + 1 >= %(max)s THEN t.code END,
    run_at = CASE WHEN j.failures + 1 >= %(max)s THEN NULL ELSE now() + t.delay_s * interval '1 second' END
  FROM mine, t WHERE j.id = mine.id AND t.id = mine.id AND {guard(Move.RETRY, by_id=True)}
  RETURNING j.id, j.status, j.lane, j.rows, t.code, t.error
), {FAILED}
SELECT id, status::text FROM u
"""

_GIVE_BACK = f"""
WITH mine AS MATERIALIZED (
  SELECT j.id FROM jobs j JOIN unnest(%(id)s::uuid[], %(attempt)s::int[]) AS t(id, attempt) ON j.id = t.id
  WHERE {_MINE} AND {guard(Move.GIVE_BACK, by_id=True)} ORDER BY j.id FOR UPDATE OF j
)
UPDATE jobs j SET status = 'queued', worker_id = NULL, started_at = NULL, exposed = false FROM mine
WHERE j.id = mine.id AND {guard(Move.GIVE_BACK, by_id=True)} RETURNING j.id
"""

_RECONCILE = f"""
WITH mine AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.worker_id = %(worker)s AND {guard(Move.GIVE_BACK)} AND j.id <> ALL(%(held)s::uuid[])
  ORDER BY j.id FOR UPDATE OF j
)
UPDATE jobs j SET status = 'queued', worker_id = NULL, started_at = NULL, exposed = false FROM mine
WHERE j.id = mine.id AND {guard(Move.GIVE_BACK, by_id=True)} RETURNING j.id
"""


class Claims:
    """See `batchline.store.contract.Claims`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def heads(self, pool: str, lane: Lane, *, floor: int = 0) -> list[Head]:
        sql = _HEADS if lane is Lane.ONLINE else _BULK_HEADS
        rows = self._db.run(sql, {"pool": pool, "lane": lane.value, "floor": floor}, prepare=True)
        return [Head(*row) for row in rows]

    def claim(self, worker_id: uuid.UUID, model_id: int, lane: Lane, *, rows: int, floor: int = 0) -> Claim:
        params = {"worker": worker_id, "model": model_id, "lane": lane.value, "rows": rows, "floor": floor}
        found = self._db.run(_CLAIM, params, repeat=False, prepare=True)
        taken, left = _claimed(found), [row for row in found if row[_PAYLOAD] is None]
        if left:
            self._give_back(worker_id, [row[_ID] for row in left], [row[_ATTEMPT] for row in left])
        return taken

    def claim_suspect(self, worker_id: uuid.UUID, model_id: int, lane: Lane = Lane.ONLINE) -> Claim:
        params = {"worker": worker_id, "model": model_id, "lane": lane.value}
        return _claimed(self._db.run(_CLAIM_SUSPECT, params, repeat=False))

    def expose(self, worker_id: uuid.UUID, job: ClaimedJob) -> bool:
        rows = self._db.run(_EXPOSE, {"worker": worker_id, "id": [job.id], "attempt": [job.attempt]})
        return bool(rows)

    def finish(self, worker_id: uuid.UUID, jobs: Sequence[FinishedJob]) -> set[uuid.UUID]:
        fields = ("id", "attempt", "status", "outputs", "errors", "timings", "rows_failed", "code")
        records = [
            (j.id, j.attempt, j.status.value, j.outputs, j.errors, j.timings, j.rows_failed, j.code) for j in jobs
        ]
        params: dict[str, object] = dict(zip(fields, columns(records, len(fields)), strict=True))
        try:
            return {row[0] for row in self._db.run(_FINISH, {**params, "worker": worker_id}, prepare=True)}
        except (psycopg2.DataError, ValueError) as e:
            raise InvalidRequestError("A result of this group cannot be stored; none was.") from e

    def retry(self, worker_id: uuid.UUID, failures: Sequence[Failure], *, max_failures: int) -> dict[uuid.UUID, str]:
        fields = ("id", "attempt", "delay", "code", "error")
        records = [(f.id, f.attempt, f.delay_s, f.code, _storable(f.message)) for f in failures]
        params: dict[str, object] = dict(zip(fields, columns(records, len(fields)), strict=True))
        rows = self._db.run(_RETRY, {**params, "worker": worker_id, "max": max_failures})
        return {row[0]: row[1] for row in rows}

    def give_back(self, worker_id: uuid.UUID, jobs: Sequence[ClaimedJob]) -> set[uuid.UUID]:
        return self._give_back(worker_id, [j.id for j in jobs], [j.attempt for j in jobs])

    def _give_back(self, worker_id: uuid.UUID, ids: list[uuid.UUID], attempts: list[int]) -> set[uuid.UUID]:
        params = {"worker": worker_id, "id": ids, "attempt": attempts}
        return {row[0] for row in self._db.run(_GIVE_BACK, params)}

    def reconcile(self, worker_id: uuid.UUID, held: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        return {row[0] for row in self._db.run(_RECONCILE, {"worker": worker_id, "held": list(held)})}


def _storable(message: str) -> str:
    """An error's message may hold anything; Postgres takes neither NUL nor lone surrogates."""
    return message.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _claimed(rows: list[tuple[Any, ...]]) -> Claim:
    jobs = [
        ClaimedJob(job_id, tenant, model, attempt, failures, n, suspect, float(queued_ms), bytes(payload))
        for job_id, tenant, model, attempt, failures, n, suspect, _rank, queued_ms, payload, _seen in rows
        if payload is not None
    ]
    return Claim(jobs, more=bool(rows) and rows[0][-1] > len(jobs), first_rank=rows[0][7] if rows else 0)
