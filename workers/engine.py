"""The way of a claim through the worker: choose, claim, collate, predict, write. One call is one micro-batch or slice.

    run(lane) --slot--> choose -> (load) -> claim -> collate --device--> predict -> encode -> finish -> announce
                |-- one thread at a time --------------------||-- one --||-- as many as there are threads ------|

While one thread predicts, another claims the next and a third writes the last. Slices take another way: `workers.bulk`.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from batchline import failpoints
from batchline.errors import ModelError, RuntimeMissingError, SourceUnavailableError, StoreUnavailableError
from batchline.job import ClaimedJob, Lane
from batchline.metrics import STAGE_SECONDS
from batchline.queue.contract import Nudger
from batchline.queue.hints import Hints
from batchline.rows import unpack
from batchline.settings import Settings
from batchline.store.contract import Claims, Head
from workers.bulk import Bulk, BulkTurn, RunSlice
from workers.claiming import Claimer, Gathered
from workers.collate import MicroBatch, collate
from workers.finishing import Finisher, encode
from workers.leaving import Leave, give_back
from workers.models import LoadedModel, Models
from workers.predict import Predicted, Predictor, Sizes
from workers.turns import Slot, Turns

log = logging.getLogger("workers")

_STAGE = {s: STAGE_SECONDS.labels(s) for s in ("claim", "collate", "device_wait", "predict", "write")}
_NOTHING: dict[str, Any] = {"jobs": 0, "rows": 0}
_EMPTY_CLAIMS = 2
_UNLOADABLE_ROWS = 1000


class _DrainingError(Exception):
    """The drain began before the device was ours."""


@dataclass(frozen=True, slots=True)
class _Hand:
    """A claim on its way."""

    worker_id: uuid.UUID
    model: LoadedModel
    gathered: Gathered
    claimed_at: float
    claim_s: float
    load_ms: float


class Engine:
    """All stations in one process. `run` may be called from any number of threads."""

    def __init__(
        self,
        settings: Settings,
        *,
        claims: Claims,
        models: Models,
        predictor: Predictor,
        sizes: Sizes,
        turns: Turns,
        hints: Hints,
        nudger: Nudger,
        worker_id: Callable[[], uuid.UUID],
        run_slice: RunSlice,
        leave: Leave,
        on_empty: Callable[[], None],
    ) -> None:
        """All parts are shared with the rest of the process.

        `on_empty` is called when claims brought nothing though there was work: others were first, or Postgres has this
        worker drain, which a heartbeat tells.
        """
        self._settings = settings
        self._claims = claims
        self._models = models
        self._predictor = predictor
        self._sizes = sizes
        self._hints = hints
        self._nudger = nudger
        self._worker_id = worker_id
        self._finisher = Finisher(claims, hints, lease_s=settings.lease_s, max_failures=settings.max_failures)
        self._turns = turns
        self._claimer = Claimer(claims, settings.pool, self._turns.held)
        self._bulk = Bulk(run_slice, claimer=self._claimer, turns=turns, nudger=nudger, pool=settings.pool)
        self._leave = leave
        self._on_empty = on_empty
        self._claimed_at = dict.fromkeys(Lane, time.monotonic())

    @property
    def closing(self) -> threading.Event:
        """Set when this process leaves: it claims nothing more."""
        return self._leave.closing

    def run(self, lane: Lane) -> dict[str, Any]:
        """Make one claim and see it through.

        Returns:
            What happened, for Flower: model, jobs, rows, flush_reason, predict_ms; `jobs` is 0 when there was nothing,
            or when another thread does bulk already.
        """
        try:
            if lane is Lane.ONLINE:
                return self._run(lane)
            with self._bulk.turn() as turn:
                return self._run(lane, turn) if turn else _NOTHING
        except StoreUnavailableError as e:
            log.warning("no work could be claimed", extra={"error": e.detail})
            self._claimer.doubt()
            return _NOTHING | {"error": e.code}
        except Exception:
            self._claimer.doubt()
            raise

    def idle_s(self, lane: Lane) -> float:
        """Seconds since something was claimed."""
        return time.monotonic() - self._claimed_at[lane]

    def _run(self, lane: Lane, turn: BulkTurn | None = None) -> dict[str, Any]:
        load_ms = 0.0
        empty = 0
        while empty < _EMPTY_CLAIMS and not self._leave.closing.is_set():
            with self._turns.slot() as slot:
                self._hints.unmark(self._settings.pool, lane)
                head = self._claimer.choose(self._worker_id(), lane, self._models.has, may_load=not self._models.busy)
                if head is None or self._leave.closing.is_set():
                    break
                model = self._models.get(head.model_id)
                if model is not None:
                    done = self._take(model, head, slot, turn, load_ms)
                    if done is not None:
                        return done
                    empty += 1
                    continue
            try:
                load_ms = self._models.load(head.model_id).load_ms
            except RuntimeMissingError as e:
                log.warning("model passed over", extra={"model_id": head.model_id, "error": e.detail})
                self._claimer.pass_over(head.model_id)
            except ModelError as e:
                return self._unloadable(head, lane, e)
            except SourceUnavailableError as e:
                log.warning("model cannot be fetched now", extra={"model_id": head.model_id, "error": e.detail})
                return _NOTHING | {"error": e.code}
        if empty == _EMPTY_CLAIMS:
            self._on_empty()
        return _NOTHING

    def _take(
        self, model: LoadedModel, head: Head, slot: Slot, turn: BulkTurn | None, load_ms: float
    ) -> dict[str, Any] | None:
        """Claim under the slot and see it through; None when somebody else had it."""
        if turn is not None:
            self._claimed_at[Lane.BULK] = time.monotonic()
            return self._bulk.claim(self._worker_id(), model, head, slot, turn)
        return self._suspect(model, load_ms) if head.suspect else self._claim(model, slot, load_ms)

    def _claim(self, model: LoadedModel, slot: Slot, load_ms: float) -> dict[str, Any] | None:
        """Normal online work, under the slot; None when somebody else had it."""
        worker_id = self._worker_id()
        at = time.monotonic()
        gathered = self._gather(worker_id, model)
        if not gathered.jobs:
            return None
        self._claimed_at[Lane.ONLINE] = now = time.monotonic()
        hand = _Hand(worker_id, model, gathered, now, now - at, load_ms)
        with self._turns.hold(gathered.jobs):
            failpoints.hit("worker.after_claim")
            if gathered.more or self._claimer.others_wait(Lane.ONLINE, model.id):
                self._nudger.nudge(self._settings.pool, Lane.ONLINE)
            return self._see_through(hand, slot.release)

    def _gather(self, worker_id: uuid.UUID, model: LoadedModel) -> Gathered:
        """Claim until the micro-batch is full or the model's delay is over; a delay of 0 takes what is there."""
        most = self._sizes.limit(model)
        claim = self._claimer.claim(worker_id, model, Lane.ONLINE, rows=most)
        jobs, more = claim.jobs, claim.more
        rows = sum(job.rows for job in jobs)
        delay_s = model.spec.policy.max_queue_delay_microseconds / 1e6
        reason = "full" if more or rows >= most else "drained"
        if not delay_s or not jobs or reason == "full":
            return Gathered(jobs, rows, reason, more)
        until = time.monotonic() + delay_s
        while rows < most and not more and (left := until - time.monotonic()) > 0:
            if self._leave.closing.wait(min(left, max(delay_s / 4, 0.001))):
                break
            try:
                claim = self._claimer.claim(worker_id, model, Lane.ONLINE, rows=most - rows)
            except StoreUnavailableError:
                break
            jobs, more = jobs + claim.jobs, claim.more
            rows = sum(job.rows for job in jobs)
        return Gathered(jobs, rows, "full" if more or rows >= most else "delay", more)

    def _suspect(self, model: LoadedModel, load_ms: float) -> dict[str, Any] | None:
        """A job that crashed in company, alone in the process: the slot is ours, and all hands are empty."""
        worker_id = self._worker_id()
        with self._turns.alone(self._leave.closing) as alone:
            if not alone:
                return _NOTHING
            at = time.monotonic()
            jobs = self._claimer.claim_suspect(worker_id, model.id, Lane.ONLINE)
            if not jobs:
                return None
            self._claimed_at[Lane.ONLINE] = now = time.monotonic()
            hand = _Hand(worker_id, model, Gathered(jobs, jobs[0].rows, "suspect", more=True), now, now - at, load_ms)
            with self._turns.hold(jobs):
                self._nudger.nudge(self._settings.pool, Lane.ONLINE)
                if not self._claims.expose(worker_id, jobs[0]):
                    return _NOTHING
                return self._see_through(hand, lambda: None)

    def _see_through(self, hand: _Hand, on_device: Callable[[], None]) -> dict[str, Any]:
        """Collate, predict, write. `on_device` is called when the device is ours."""
        jobs = hand.gathered.jobs

        def begin(passes: int) -> None:
            if not passes and self._leave.draining.is_set():
                raise _DrainingError
            on_device()

        model = hand.model
        at = time.monotonic()
        try:
            batches, faults = self._collated(jobs, model)
            collated = time.monotonic()
            done = self._predictor.run(model, batches, begin)
            done.faults.update(faults)
            predicted = time.monotonic()
            summary = self._write(hand, done, collated - at)
        except _DrainingError:
            return self._give_back(hand)
        except Exception as e:
            log.exception("claim failed", extra={"model": model.spec.ref, "jobs": len(jobs)})
            return self._failed(hand, "internal", f"The worker could not run this job ({type(e).__name__}).")
        written = time.monotonic()
        self._turns.count(hand.gathered.rows, model.id)
        for stage, seconds in (
            ("claim", hand.claim_s),
            ("collate", collated - at),
            ("device_wait", done.wait_s),
            ("predict", done.predict_s),
            ("write", written - predicted),
        ):
            _STAGE[stage].observe(seconds)
        if log.isEnabledFor(logging.DEBUG):
            spent = {"claim_ms": hand.claim_s, "write_ms": written - predicted}
            log.debug("micro-batch", extra=summary | {k: round(v * 1000, 2) for k, v in spent.items()})
        return summary

    def _collated(self, jobs: list[ClaimedJob], model: LoadedModel) -> tuple[list[MicroBatch], dict[int, str]]:
        """Micro-batches of all rows but those of jobs that cannot be collated; their rows are faults."""
        most = self._sizes.limit(model)
        text = model.tokenizer.encode if model.tokenizer else None
        try:
            blocks = [unpack(job.payload) for job in jobs]
            return collate(blocks, model.spec, max_rows=most, encode=text), {}
        except Exception:
            log.warning("claim cannot be collated as one; trying each job", extra={"model": model.spec.ref})
        return _one_by_one(jobs, lambda job: collate([unpack(job.payload)], model.spec, max_rows=most, encode=text))

    def _write(self, hand: _Hand, done: Predicted, collate_s: float) -> dict[str, Any]:
        """Encode and finish; jobs with rows that found no memory go back to the queue.

        The timings travel with the result, so `write` in them is what is known before the commit: the encoding; and
        `busy`, the job's part of this process's time, is up to its beginning.
        """
        jobs, ref = hand.gathered.jobs, hand.model.spec.ref
        at = time.monotonic()
        busy_ms = self._turns.spent_s(jobs[0].id) * 1000 / hand.gathered.rows
        again = _owners(jobs, done.no_room) if done.no_room else []
        shared = (
            f'"batch_wait":{(collate_s + done.wait_s) * 1000:.2f},"load":{hand.load_ms:.2f}'
            f',"predict":{done.predict_s * 1000:.2f},"write":%.2f,"busy":%.3f,"micro_batch":'
            f'{{"rows":{hand.gathered.rows},"flush_reason":"{hand.gathered.flush_reason}"}}}}'
        )

        def timings(job: ClaimedJob) -> str:
            told = shared % ((time.monotonic() - at) * 1000, busy_ms * job.rows)
            return f'{{"queued":{job.queued_ms:.2f},{told}'

        finished = encode(jobs, done, timings)
        if again:
            ids = {job.id for job in again}
            finished = [job for job in finished if job.id not in ids]
            self._again(hand, again, "out_of_memory", "The device had no room for a row of this job.")
        if finished and not self._finisher.finish(hand.worker_id, ref, finished):
            self._claimer.doubt()
        return {
            "model": ref,
            "jobs": len(jobs),
            "rows": hand.gathered.rows,
            "flush_reason": hand.gathered.flush_reason,
            "predict_ms": round(done.predict_s * 1000, 2),
            "passes": len(done.passes),
        }

    def _again(self, hand: _Hand, jobs: list[ClaimedJob], code: str, message: str) -> None:
        if not self._finisher.try_again(hand.worker_id, jobs, code, message):
            self._claimer.doubt()

    def _failed(self, hand: _Hand, code: str, message: str) -> dict[str, Any]:
        self._again(hand, hand.gathered.jobs, code, message)
        return {"model": hand.model.spec.ref, "jobs": len(hand.gathered.jobs), "error": code}

    def _give_back(self, hand: _Hand) -> dict[str, Any]:
        give_back(self._claims, hand.worker_id, hand.gathered.jobs)
        return {"model": hand.model.spec.ref, "jobs": 0, "given_back": len(hand.gathered.jobs)}

    def _unloadable(self, head: Head, lane: Lane, error: ModelError) -> dict[str, Any]:
        """The jobs of a model that cannot be loaded wait, and fail when their budget is spent; others go on."""
        log.warning("model cannot be loaded", extra={"model_id": head.model_id, "error": error.detail})
        with self._turns.slot():
            worker_id = self._worker_id()
            jobs = self._claimer.take(worker_id, head, lane, rows=_UNLOADABLE_ROWS)
            with self._turns.hold(jobs):
                if jobs and not self._finisher.try_again(worker_id, jobs, error.code, error.detail):
                    self._claimer.doubt()
        self._nudger.nudge(self._settings.pool, lane)
        return {"model_id": head.model_id, "jobs": len(jobs), "error": error.code}


def _one_by_one(
    jobs: list[ClaimedJob], collate_one: Callable[[ClaimedJob], list[MicroBatch]]
) -> tuple[list[MicroBatch], dict[int, str]]:
    batches: list[MicroBatch] = []
    faults: dict[int, str] = {}
    start = 0
    for job in jobs:
        try:
            batches += [replace(b, rows=[start + n for n in b.rows]) for b in collate_one(job)]
        except Exception as e:
            log.info("job cannot be collated", extra={"error": str(e)[:300]})
            faults |= dict.fromkeys(range(start, start + job.rows), "The row cannot be made into the model's input.")
        start += job.rows
    return batches, faults


def _owners(jobs: list[ClaimedJob], rows: set[int]) -> list[ClaimedJob]:
    """The jobs that these row numbers belong to."""
    owners: list[ClaimedJob] = []
    start = 0
    for job in jobs:
        if any(start <= n < start + job.rows for n in rows):
            owners.append(job)
        start += job.rows
    return owners
