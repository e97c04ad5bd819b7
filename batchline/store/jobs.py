"""Jobs as clients see them: submit in groups, read in groups, list, cancel."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, cast

import psycopg2

from batchline.errors import BatchlineError, StoreUnavailableError
from batchline.job import TERMINAL, Admitted, JobView, Lane, Move, NewJob, Status, guard, names
from batchline.store import keys, subscriptions
from batchline.store.postgres import Database, Row, columns

POSITION_LIMIT = 1000
"""Queue positions are counted exactly up to here."""

# Ids are minted before, so a lost COMMIT reply is answered by sending the same statement again. Keys and jobs are
# inserted in key order: two processes inserting the same keys in opposite order would deadlock.
_SUBMIT_TEXT = """
WITH wait AS MATERIALIZED (SELECT set_config('lock_timeout', %(wait)s, true)), new AS MATERIALIZED (
  SELECT * FROM unnest(%(id)s::uuid[], %(tenant)s::int[], %(model)s::int[], %(lane)s::job_lane[],
                       %(priority)s::smallint[], %(rank)s::bigint[], %(rows)s::int[],
                       %(payload)s::bytea[], %(metadata)s::text[], %(deadline)s::timestamptz[],
                       %(key)s::text[], %(hash)s::bytea[]{given}) WITH ORDINALITY
    AS t(id, tenant_id, model_id, lane, priority, rank, rows, payload, metadata, deadline_at, key, body_hash{named},
         nth)
), keyed AS (
  INSERT INTO idempotency_keys (tenant_id, key, body_hash, job_id)
  SELECT DISTINCT ON (tenant_id, key) tenant_id, key, body_hash, id
  FROM wait, new WHERE key IS NOT NULL ORDER BY tenant_id, key, nth
  ON CONFLICT DO NOTHING RETURNING job_id
), accepted AS MATERIALIZED (
  SELECT * FROM new WHERE key IS NULL OR id IN (SELECT job_id FROM keyed)
), inserted AS (
  INSERT INTO jobs (id, tenant_id, model_id, lane, status, priority, rank, rows, metadata, deadline_at{column})
  SELECT id, tenant_id, model_id, lane, 'queued', priority, rank, rows, metadata, deadline_at{value}
  FROM accepted ORDER BY id ON CONFLICT (id) DO NOTHING
), kept AS (
  INSERT INTO job_inputs (job_id, payload) SELECT id, payload FROM accepted ORDER BY id ON CONFLICT (job_id) DO NOTHING
){beside}
SELECT id FROM accepted
"""
_SUBMIT = _SUBMIT_TEXT.format(**dict.fromkeys(subscriptions.OF_JOBS, ""))
_SUBMIT_TOLD = _SUBMIT_TEXT.format(**subscriptions.OF_JOBS)
"""For a group of which one job has a webhook."""

_VIEW = """
SELECT j.id, j.tenant_id, m.name, m.version::text, j.status::text, j.lane::text, j.priority, j.rows,
       j.rows_failed, j.attempt, j.suspect, j.code, j.created_at, j.started_at, j.finished_at, j.deadline_at,
       nullif(j.run_at, 'infinity'),
       j.metadata,
       r.outputs::text, r.errors::text, r.timings::text,
       CASE WHEN j.status = 'queued' THEN (
         SELECT count(*) FROM (
           SELECT 1 FROM jobs q WHERE q.model_id = j.model_id AND q.lane = j.lane AND q.rank < j.rank
           AND q.status = 'queued' AND q.run_at IS NULL AND NOT q.suspect LIMIT {limit} + 1) ahead) END,
       j.result_pruned, {webhook}
FROM jobs j JOIN models m ON m.id = j.model_id
"""
_SHOWN = _VIEW.format(limit=POSITION_LIMIT, webhook=subscriptions.shown("j"))
_WITH_RESULTS = _SHOWN + "LEFT JOIN job_results r ON r.job_id = j.id "
# A list shows no outputs: a page of 100 large results would be a body of its own kind.
_WITHOUT_RESULTS = _SHOWN.replace("r.outputs::text, r.errors::text, r.timings::text", "NULL, NULL, NULL")

# The subquery hides how long the array is: the planner would plan for each anew, which takes longer than reading.
_READ = _WITH_RESULTS + "WHERE j.id = ANY((SELECT %(ids)s::uuid[])::uuid[])"

_PAGE = """ j.tenant_id = %(tenant)s
  AND (%(status)s::job_status IS NULL OR j.status = %(status)s::job_status)
  AND (%(model)s::text IS NULL OR m.name = %(model)s)
  AND (%(after)s::uuid IS NULL OR j.id < %(after)s::uuid)
ORDER BY j.id DESC LIMIT %(limit)s"""
_LIST = _WITHOUT_RESULTS + "WHERE j.lane = 'online' AND" + _PAGE
_LIST_OF_BATCH = (
    _WITHOUT_RESULTS + "WHERE j.id IN (SELECT job_id FROM slices s WHERE s.batch_id = %(batch)s) AND" + _PAGE
)

_DONE = f"SELECT id FROM jobs WHERE id = ANY(%(ids)s::uuid[]) AND status IN ({names(TERMINAL)})"

_CANCEL = f"""
WITH c AS MATERIALIZED (
  SELECT j.id FROM jobs j
  WHERE j.id = ANY(%(ids)s::uuid[]) AND j.tenant_id = %(tenant)s AND {guard(Move.CANCEL, by_id=True)}
  ORDER BY j.id FOR UPDATE
)
UPDATE jobs j SET status = 'cancelled', finished_at = now(), exposed = false FROM c
WHERE j.id = c.id AND {guard(Move.CANCEL, by_id=True)} RETURNING j.id
"""


class Jobs:
    """See `batchline.store.contract.Jobs`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def submit(self, jobs: Sequence[NewJob]) -> list[Admitted | BatchlineError]:
        return self._submit(jobs, wait="2s")

    def _submit(self, jobs: Sequence[NewJob], *, wait: str) -> list[Admitted | BatchlineError]:
        sql, params = _SUBMIT, {**_columns_of(jobs), "wait": wait}
        if any(job.webhook is not None for job in jobs):
            sql, params = _SUBMIT_TOLD, params | subscriptions.columns_of(jobs)
        try:
            accepted = {row[0] for row in self._db.run(sql, params, prepare=True)}
        except StoreUnavailableError as e:
            if not isinstance(e.__cause__, psycopg2.errors.LockNotAvailable):
                raise
            # The key has had its time; finding out whose it is must not take as long again at every halving.
            return self._split(jobs, keys.in_flight(), wait="50ms")
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError) as e:
            return self._split(jobs, keys.refusal(e), wait=wait)
        left = [job for job in jobs if job.id not in accepted]
        first = keys.first_of(self._db, [(j.tenant_id, j.idempotency_key) for j in left]) if left else {}
        return [_outcome(job, accepted, first) for job in jobs]

    def _split(self, jobs: Sequence[NewJob], error: BatchlineError, *, wait: str) -> list[Admitted | BatchlineError]:
        """One submit spoils the group: halve until it is alone with its error."""
        if len(jobs) == 1:
            return [error]
        middle = len(jobs) // 2
        return [*self._submit(jobs[:middle], wait=wait), *self._submit(jobs[middle:], wait=wait)]

    def read(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, JobView]:
        return {row[0]: _view(row) for row in self._db.run(_READ, {"ids": list(ids)}, prepare=True)}

    def list(
        self,
        tenant_id: int,
        *,
        status: Status | None,
        model: str | None,
        after: uuid.UUID | None,
        limit: int,
        batch: uuid.UUID | None = None,
    ) -> list[JobView]:
        params = {"tenant": tenant_id, "status": status, "model": model, "after": after, "limit": limit, "batch": batch}
        return [_view(row) for row in self._db.run(_LIST if batch is None else _LIST_OF_BATCH, params)]

    def terminal(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        return {row[0] for row in self._db.run(_DONE, {"ids": list(ids)}, prepare=True)}

    def cancel(self, tenant_id: int, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        return {row[0] for row in self._db.run(_CANCEL, {"tenant": tenant_id, "ids": list(ids)})}


def _columns_of(jobs: Sequence[NewJob]) -> dict[str, object]:
    names = (
        "id",
        "tenant",
        "model",
        "lane",
        "priority",
        "rank",
        "rows",
        "payload",
        "metadata",
        "deadline",
        "key",
        "hash",
    )
    records = [
        (
            j.id,
            j.tenant_id,
            j.model_id,
            j.lane.value,
            j.priority,
            j.rank,
            j.rows,
            psycopg2.Binary(j.payload),
            j.metadata,
            j.deadline_at,
            j.idempotency_key,
            psycopg2.Binary(j.body_hash) if j.body_hash is not None else None,
        )
        for j in jobs
    ]
    return dict(zip(names, columns(records, len(names)), strict=True))


def _outcome(job: NewJob, accepted: set[uuid.UUID], first: keys.First) -> Admitted | BatchlineError:
    if job.id in accepted:
        return Admitted(job.id)
    return keys.answer(job.id, job.body_hash, first.get((job.tenant_id, job.idempotency_key or "")))


def _view(row: Row) -> JobView:
    *fields, position, pruned, asked = row
    fields[4], fields[5] = Status(fields[4]), Lane(fields[5])
    if position is not None and position > POSITION_LIMIT:
        position = None
    return JobView(*cast("tuple[Any, ...]", (*fields, position, pruned, subscriptions.webhook_of(asked))))
