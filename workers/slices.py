"""One slice, from its claim to its end: read ahead, predict, write behind, stage, finish, publish.

    reader thread           this thread                         writer thread
    read -> inputs --|2|--> device: predict, pass by pass --|2|--> columns -> part ... stage
                                                                                  |
    this thread again:                        finish (guarded) -> publish, or discard what came too late

Another thread tells Postgres once a second how far it is, and hears so when the slice is no longer ours.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import orjson

from batchline import failpoints
from batchline.errors import (
    BatchlineError,
    OutOfMemoryError,
    SinkError,
    SinkUnavailableError,
    SourceError,
    SourceUnavailableError,
    StoreUnavailableError,
)
from batchline.job import ClaimedJob, Lane
from batchline.metrics import FINISHED, ROW_ERRORS, STAGE_SECONDS, STALE
from batchline.retry import backoff_s
from batchline.settings import Settings
from batchline.store.batch_contract import FinishedSlice, Slices, SliceWork
from batchline.store.contract import Claims, Failure
from workers.leaving import give_back
from workers.models import LoadedModel
from workers.pipeline import Behind, Channel, ClosedError, ahead
from workers.predict import Pace, Predictor
from workers.stretches import Collator, Stretch, Work, Written
from workers.suspects import Alone, StaleError
from workers.turns import Turns

log = logging.getLogger("workers")

_AHEAD = 2
"""Stretches between two stages."""
_PROGRESS_S = 1.0
_LOOK_S = 0.1
"""So often is looked whether the worker drains."""
_STAGE = {s: STAGE_SECONDS.labels(f"slice_{s}") for s in ("read", "predict", "write")}

_PLACE_FAILURES = 10
"""A bucket or database that does not answer is waited for some ten minutes before it fails a slice, and its batch."""

OpenWork = Callable[[SliceWork, ClaimedJob, LoadedModel], Work]


class _DrainingError(Exception):
    """The worker drains before the slice is done."""


@dataclass(slots=True)
class _Spent:
    """Seconds by stage; each is written by one thread."""

    read: float = 0.0
    predict: float = 0.0
    wait: float = 0.0
    write: float = 0.0
    passes: list[float] = field(default_factory=list[float])


@dataclass(slots=True)
class _Run:
    """One attempt at one slice."""

    worker_id: uuid.UUID
    job: ClaimedJob
    model: LoadedModel
    began: float = field(default_factory=time.monotonic)
    spent: _Spent = field(default_factory=_Spent)
    rows_done: int = 0


class Watch:
    """Tells how far a slice is, and ends its stages when it is to be left."""

    def __init__(self, progress: Callable[[], bool], draining: threading.Event, *channels: Channel[Stretch]) -> None:
        self._progress = progress
        self._draining = draining
        self._channels = channels
        self._ended = threading.Event()
        self._why: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what the slice is to be left for."""
        if self._why is None and self._draining.is_set():
            self._why = _DrainingError()
        if self._why is not None:
            raise self._why

    def _watch(self) -> None:
        told = time.monotonic()
        while not self._ended.wait(_LOOK_S):
            try:
                self.check()
                if time.monotonic() - told >= _PROGRESS_S:
                    told = time.monotonic()
                    if not self._progress():
                        raise StaleError
            except StoreUnavailableError as e:
                log.info("progress not told", extra={"error": e.detail})
            except (StaleError, _DrainingError) as e:
                self._why = e
                for channel in self._channels:
                    channel.close()
                return


class SliceRunner:
    """Sees claimed slices through; see `workers.bulk.RunSlice`."""

    def __init__(
        self,
        settings: Settings,
        *,
        claims: Claims,
        slices: Slices,
        open_work: OpenWork,
        predictor: Predictor,
        pace: Pace,
        turns: Turns,
        draining: threading.Event,
    ) -> None:
        self._settings = settings
        self._claims = claims
        self._slices = slices
        self._open = open_work
        self._predictor = predictor
        self._pace = pace
        self._turns = turns
        self._draining = draining

    def __call__(
        self, worker_id: uuid.UUID, job: ClaimedJob, model: LoadedModel, predicted: Callable[[], None]
    ) -> dict[str, Any]:
        run = _Run(worker_id, job, model)
        summary: dict[str, Any] = {"model": model.spec.ref, "jobs": 1}
        try:
            ask = self._slices.work(job)
            if ask is None:
                raise StaleError
            summary |= {"batch": str(ask.batch.id)}
            self._turns.belongs(job.id, ask.batch.id)
            ask = self._condemned(run, ask)
            work = self._open(ask, job, model)
            if job.suspect:
                written = self._run_alone(run, work, ask)
                predicted()
            else:
                written = self._run_overlapped(run, work, predicted)
            failpoints.hit("worker.before_finish")
            return summary | self._finish(run, work, written, ask)
        except StaleError:
            STALE.inc()
            return summary | {"stale": True}
        except _DrainingError:
            give_back(self._claims, worker_id, [job])
            return summary | {"jobs": 0, "given_back": 1}
        except Exception as e:
            return summary | self._failed(run, e)

    def _condemned(self, run: _Run, ask: SliceWork) -> SliceWork:
        """A row that was alone on the device when the process died is not tried again."""
        if ask.exposed is None or ask.exposed[1] - ask.exposed[0] != 1:
            return ask
        row = ask.exposed[0]
        if not self._slices.condemn(run.worker_id, run.job, row):
            raise StaleError
        log.warning("row is poison", extra={"job_id": str(run.job.id), "row": row})
        return replace(ask, poison=(*ask.poison, row), exposed=None)

    def _run_overlapped(self, run: _Run, work: Work, predicted: Callable[[], None]) -> Written:
        """Three stages at once."""
        incoming, outgoing = Channel[Stretch](_AHEAD), Channel[Stretch](_AHEAD)
        collator = Collator(run.model, self._pace)
        with Watch(lambda: self._progress(run), self._draining, incoming, outgoing) as watch:
            try:
                with (
                    ahead(self._read(run, work, collator), incoming) as stretches,
                    Behind(lambda items: self._write(run, work, items), outgoing) as writer,
                ):
                    for stretch in stretches:
                        stretch.predicted = self._predictor.run(
                            run.model,
                            stretch.batches,
                            lambda _: watch.check(),
                            pace=self._pace,
                            step=self._turns.step,
                        )
                        self._count(run, stretch)
                        writer.put(stretch)
                    predicted()
                    return writer.result()
            except ClosedError:
                watch.check()
                raise

    def _run_alone(self, run: _Run, work: Work, ask: SliceWork) -> Written:
        """One step after the other, each pass with nothing else in the process."""
        with Watch(lambda: self._progress(run), self._draining) as watch:
            alone = Alone(
                self._slices,
                self._predictor,
                self._turns,
                worker_id=run.worker_id,
                job=run.job,
                model=run.model,
                pace=self._pace,
                exposed=ask.exposed,
                check=watch.check,
                stop=self._draining,
            )

            def stretches() -> Iterator[Stretch]:
                for stretch in self._read(run, work, None):
                    watch.check()
                    alone.predict(stretch)
                    self._count(run, stretch)
                    yield stretch

            return self._write(run, work, stretches())

    def _read(self, run: _Run, work: Work, collator: Collator | None) -> Iterator[Stretch]:
        """The reader's stage: each stretch is a step, collated if it can be done ahead."""
        stretches = work.read()
        while True:
            with self._turns.step():
                at = time.monotonic()
                stretch = next(stretches, None)
                if stretch is not None and collator is not None:
                    collator.whole(stretch)
                run.spent.read += time.monotonic() - at
            if stretch is None:
                return
            yield stretch

    def _write(self, run: _Run, work: Work, stretches: Iterator[Stretch]) -> Written:
        """The writer's stage; what it takes to get a stretch is not its time."""

        def arriving() -> Iterator[Stretch]:
            for stretch in stretches:
                at = time.monotonic()
                yield stretch
                run.spent.write += time.monotonic() - at
                run.rows_done += stretch.count

        return work.write(arriving())

    def _count(self, run: _Run, stretch: Stretch) -> None:
        done = stretch.predicted
        run.spent.predict += done.predict_s
        run.spent.wait += done.wait_s
        run.spent.passes += done.pass_s
        if done.no_room and run.job.failures + 1 < self._settings.max_failures:
            raise OutOfMemoryError("The device had no room for a row of this slice.")
        self._turns.count(len(stretch.todo), run.model.id, Lane.BULK)

    def _progress(self, run: _Run) -> bool:
        return self._slices.progress(run.worker_id, run.job, run.rows_done)

    def _finish(self, run: _Run, work: Work, written: Written, ask: SliceWork) -> dict[str, Any]:
        """Finish under the fence; while Postgres is away the part waits for as long as a lease can live."""
        job, ref = run.job, run.model.spec.ref
        seconds = time.monotonic() - run.began
        timings = {
            "queued": round(job.queued_ms, 2),
            "read": round(run.spent.read * 1000, 2),
            "device_wait": round(run.spent.wait * 1000, 2),
            "predict": round(run.spent.predict * 1000, 2),
            "write": round(run.spent.write * 1000, 2),
            "busy": round(self._turns.spent_s(job.id) * 1000, 2),
            "rows": written.rows,
            "passes": len(run.spent.passes),
            "pass_p95": round(_p95(run.spent.passes) * 1000, 2),
        }
        done = FinishedSlice(
            id=job.id,
            attempt=job.attempt,
            rows=written.rows,
            failed=written.failed,
            staged=written.staged,
            timings=orjson.dumps(timings).decode(),
            poison=ask.poison,
        )
        if not self._finished(run.worker_id, done):
            work.discard(written.staged)
            raise StaleError
        self._publish(job, work, written)
        for stage, spent_s in (("read", run.spent.read), ("predict", run.spent.predict), ("write", run.spent.write)):
            _STAGE[stage].observe(spent_s)
        FINISHED.labels(ref, "failed" if written.rows and len(written.failed) == written.rows else "succeeded").inc()
        if written.failed:
            ROW_ERRORS.labels(ref, "predict_failed").inc(len(written.failed))
        rows_per_s = round(written.rows / max(seconds, 1e-9))
        log.info("slice", extra={"job_id": str(job.id), "model": ref, "rows_per_s": rows_per_s} | timings)
        spent = {f"{name}_ms": timings[name] for name in ("read", "predict", "write")}
        return {"rows": written.rows, "rows_failed": len(written.failed), "rows_per_s": rows_per_s} | spent

    def _finished(self, worker_id: uuid.UUID, done: FinishedSlice) -> bool:
        deadline = time.monotonic() + self._settings.lease_s
        tries = 0
        while True:
            try:
                return self._slices.finish(worker_id, done)
            except StoreUnavailableError:
                tries += 1
                wait_s = backoff_s(tries, base_s=0.1, cap_s=2.0)
                if time.monotonic() + wait_s > deadline:
                    raise
                time.sleep(wait_s)

    def _publish(self, job: ClaimedJob, work: Work, written: Written) -> None:
        """What cannot be published now is published by a chore."""
        failpoints.hit("worker.before_publish")
        if not written.staged.parts:
            return
        try:
            work.publish(written.staged)
            self._slices.published([job.id])
        except BatchlineError as e:
            log.warning("part not published yet", extra={"job_id": str(job.id), "error": e.detail})

    def _failed(self, run: _Run, error: Exception) -> dict[str, Any]:
        """Faults of the data or of its place are final; what may pass is tried again while the budget lasts."""
        budget = self._settings.max_failures
        if isinstance(error, SourceError | SinkError):
            budget = 1
        elif isinstance(error, SourceUnavailableError | SinkUnavailableError | StoreUnavailableError):
            budget = max(budget, _PLACE_FAILURES)
        if isinstance(error, BatchlineError):
            code, message = error.code, error.detail
            log.warning("slice failed", extra={"job_id": str(run.job.id), "code": code, "error": message})
        else:
            code, message = "internal", f"The worker could not run this slice ({type(error).__name__})."
            log.error("slice failed", exc_info=error, extra={"job_id": str(run.job.id)})
        failure = Failure(run.job.id, run.job.attempt, code, message, backoff_s(run.job.failures + 1))
        self._claims.retry(run.worker_id, [failure], max_failures=budget)
        return {"error": code}


def _p95(seconds: list[float]) -> float:
    """The nearest rank; 0 of nothing."""
    return sorted(seconds)[max(0, math.ceil(0.95 * len(seconds)) - 1)] if seconds else 0.0
