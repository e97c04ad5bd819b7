"""From outputs to results: JSON for each job, one statement for all of them, held in hand while Postgres is away."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson

from batchline import failpoints
from batchline.errors import BatchlineError, StoreUnavailableError
from batchline.job import ClaimedJob, FinishedJob, Status
from batchline.metrics import FINISHED, ROW_ERRORS, STALE
from batchline.queue.contract import Finished
from batchline.retry import backoff_s
from batchline.rows import Array
from batchline.store.contract import Claims, Failure
from workers.predict import Predicted

log = logging.getLogger("workers")

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def encode(jobs: Sequence[ClaimedJob], done: Predicted, timings: Callable[[ClaimedJob], str]) -> list[FinishedJob]:
    """Make the results of jobs whose rows are all in `done.passes` or `done.faults`.

    Args:
        jobs: in the order in which their rows were numbered.
        done: what became of the rows.
        timings: the JSON text of a job's timings.
    """
    values: dict[int, dict[str, Any]] = {}
    for rows, outputs in done.passes:
        readable = [(name, _readable(value)) for name, value in outputs.items()]
        for i, row in enumerate(rows):
            values[row] = {name: value[i] for name, value in readable}
    finished: list[FinishedJob] = []
    start = 0
    for job in jobs:
        numbers = range(start, start + job.rows)
        start += job.rows
        errors = _errors(numbers, done.faults) if done.faults else []
        try:
            outputs = orjson.dumps([values.get(n) for n in numbers], option=_NUMPY).decode()
        except orjson.JSONEncodeError as e:
            log.warning("output is no JSON", extra={"job_id": str(job.id), "error": str(e)})
            outputs, errors = (
                None,
                _errors(numbers, dict.fromkeys(numbers, "The model's output cannot be written as JSON.")),
            )
        finished.append(
            FinishedJob(
                id=job.id,
                attempt=job.attempt,
                status=Status.FAILED if len(errors) == job.rows else Status.SUCCEEDED,
                outputs=outputs,
                errors=orjson.dumps(errors).decode() if errors else None,
                timings=timings(job),
                rows_failed=len(errors),
                code="predict_failed" if len(errors) == job.rows else None,
            )
        )
    return finished


def _errors(numbers: range, faults: dict[int, str]) -> list[dict[str, object]]:
    return [{"row": n - numbers.start, "code": "predict_failed", "message": faults[n]} for n in numbers if n in faults]


def _readable(values: Array) -> Array | list[Any]:
    """[B, ...] as orjson can write it: numbers stay arrays (float32 in its shortest form), the rest become lists."""
    kind = values.dtype.kind
    if kind == "O":
        return values.tolist()
    if kind == "f":
        if not np.isfinite(values).all():
            return _spelled(values)
        return (
            np.ascontiguousarray(values, dtype=np.float32)
            if values.dtype.itemsize == 2
            else np.ascontiguousarray(values)
        )
    return values.tolist() if values.ndim == 1 else np.ascontiguousarray(values)


def _spelled(values: Array) -> Any:
    """Numbers that JSON has no word for, as words; the others in their shortest form, as orjson writes arrays."""
    if values.ndim:
        return [_spelled(v) for v in values]
    if np.isnan(values):
        return "NaN"
    if np.isinf(values):
        return "Infinity" if values > 0 else "-Infinity"
    return float(str(values))


class Finisher:
    """Writes results and announces them."""

    def __init__(self, claims: Claims, announce: Finished, *, lease_s: float, max_failures: int) -> None:
        self._claims = claims
        self._announce = announce
        self._lease_s = lease_s
        self._max_failures = max_failures

    def finish(self, worker_id: uuid.UUID, model: str, jobs: Sequence[FinishedJob]) -> bool:
        """Write results; while Postgres is away they stay in hand for as long as a lease can live.

        Returns:
            False if they had to be dropped unwritten: the jobs are to be reconciled.
        """
        failpoints.hit("worker.before_finish")
        deadline = time.monotonic() + self._lease_s
        tries = 0
        while True:
            try:
                written = self._claims.finish(worker_id, jobs)
                break
            except StoreUnavailableError:
                tries += 1
                wait_s = backoff_s(tries, base_s=0.1, cap_s=2.0)
                if time.monotonic() + wait_s > deadline:
                    log.exception("results dropped", extra={"model": model, "jobs": len(jobs)})
                    return False
                time.sleep(wait_s)
            except BatchlineError as e:
                return self._split(worker_id, model, jobs, e)
        self._count(model, jobs, written)
        self._announce.publish(list(written))
        return True

    def _split(self, worker_id: uuid.UUID, model: str, jobs: Sequence[FinishedJob], error: BatchlineError) -> bool:
        """One result that cannot be stored spoils the statement: halve until it is alone, and fail its job."""
        if len(jobs) > 1:
            middle = len(jobs) // 2
            first = self.finish(worker_id, model, jobs[:middle])
            return self.finish(worker_id, model, jobs[middle:]) and first
        log.error("result cannot be stored", extra={"model": model, "job_id": str(jobs[0].id), "error": error.detail})
        message = "The model's output cannot be stored."
        return self.retry(worker_id, [Failure(jobs[0].id, jobs[0].attempt, "internal", message, 0.0)])

    def _count(self, model: str, jobs: Sequence[FinishedJob], written: set[uuid.UUID]) -> None:
        stale = len(jobs) - len(written)
        if stale:
            STALE.inc(stale)
            log.info("stale results dropped", extra={"model": model, "jobs": stale})
        failed = sum(j.status is Status.FAILED for j in jobs if j.id in written)
        if failed:
            FINISHED.labels(model, "failed").inc(failed)
        FINISHED.labels(model, "succeeded").inc(len(written) - failed)
        rows = sum(j.rows_failed for j in jobs)
        if rows:
            ROW_ERRORS.labels(model, "predict_failed").inc(rows)

    def retry(self, worker_id: uuid.UUID, failures: Sequence[Failure]) -> bool:
        """Charge failures; False if Postgres could not be told."""
        try:
            became = self._claims.retry(worker_id, failures, max_failures=self._max_failures)
        except StoreUnavailableError as e:
            log.warning("failures not written", extra={"jobs": len(failures), "error": e.detail})
            return False
        self._announce.publish([job_id for job_id, status in became.items() if status == Status.FAILED])
        return True

    def try_again(self, worker_id: uuid.UUID, jobs: Sequence[ClaimedJob], code: str, message: str) -> bool:
        """Queue jobs again after a wait that grows with their failures, while their budget lasts."""
        return self.retry(worker_id, [Failure(j.id, j.attempt, code, message, backoff_s(j.failures + 1)) for j in jobs])
