"""A station: takes one batch at a time under a lease and works on it in threads of its own, beside the chores.

What works on batches reads files, buckets and databases of others, and may take minutes. Every scheduler has its
stations, leader or not: the lease of each batch keeps them apart, and every write names its holder.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from batchline.batch import BatchView, show_batch_id
from batchline.errors import BatchlineError
from batchline.metrics import CHORE_RUNS
from batchline.store import Store

log = logging.getLogger("scheduler.station")

LEASE_S = 30.0
IDLE_S = 0.5
"""How often an idle station asks for work."""
_TROUBLE_S = 2.0
_CLOSING_S = 0.02


class Lease:
    """One batch in hand. Its holder's id is new each time: nobody is mistaken for who had it before."""

    def __init__(self, holder: uuid.UUID, batch: BatchView) -> None:
        self.holder = holder
        self.batch = batch
        self.lost = threading.Event()
        """The batch is somebody else's by now: stop."""


class Take(Protocol):
    """Takes a batch for a holder, as `Batches.take_to_plan` does."""

    def __call__(self, holder: uuid.UUID, *, lease_s: float) -> BatchView | None: ...


class Station:
    """Runs `work` for whatever `take` gives, `threads` at a time."""

    def __init__(self, name: str, store: Store, take: Take, work: Callable[[Lease], None], *, threads: int = 2) -> None:
        self._name = name
        self._store = store
        self._take = take
        self._work = work
        self._stop = threading.Event()
        self._free = threading.Semaphore(threads)
        self._in_hand: set[Lease] = set()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, wait_s: float) -> None:
        """Take nothing new; what is in hand has `wait_s` to end, then it is left, and its lease runs out."""
        self._stop.set()
        until = time.monotonic() + wait_s
        while self._in_hand and time.monotonic() < until:
            time.sleep(_CLOSING_S)
        for lease in list(self._in_hand):
            lease.lost.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def step(self) -> bool:
        """Take one batch and work on it, here and now; False if there is none."""
        lease = self._taken()
        if lease is not None:
            self._see_through(lease)
        return lease is not None

    def _run(self) -> None:
        while not self._stop.is_set():
            self._free.acquire()
            try:
                lease = None if self._stop.is_set() else self._taken()
            except Exception as e:
                self._note_failure(e)
                self._free.release()
                self._stop.wait(_TROUBLE_S)
                continue
            if lease is None:
                self._free.release()
                self._stop.wait(IDLE_S)
            else:
                self._pool.submit(self._see_through, lease).add_done_callback(lambda _: self._free.release())

    def _taken(self) -> Lease | None:
        holder = uuid.uuid4()
        batch = self._take(holder, lease_s=LEASE_S)
        return Lease(holder, batch) if batch is not None else None

    def _see_through(self, lease: Lease) -> None:
        done = threading.Event()
        self._in_hand.add(lease)
        renewal = threading.Thread(target=self._renew, args=(lease, done), name=f"{self._name}-lease", daemon=True)
        renewal.start()
        try:
            self._work(lease)
        except Exception as e:
            self._note_failure(e, lease)
        else:
            CHORE_RUNS.labels(self._name, "ok").inc()
        finally:
            done.set()
            renewal.join()
            self._in_hand.discard(lease)

    def _renew(self, lease: Lease, done: threading.Event) -> None:
        while not done.wait(LEASE_S / 3):
            try:
                if self._store.batches.renew(lease.holder, lease.batch.id, lease_s=LEASE_S):
                    continue
            except BatchlineError as e:
                log.warning("lease of a batch not renewed", extra={"station": self._name, "error": e.detail})
                continue
            if not done.is_set():
                lease.lost.set()
            return

    def _note_failure(self, error: Exception, lease: Lease | None = None) -> None:
        CHORE_RUNS.labels(self._name, "failed").inc()
        told = {"station": self._name, "error": str(error)}
        if lease is not None:
            told["batch"] = show_batch_id(lease.batch.id)
        expected = isinstance(error, BatchlineError)
        log.log(logging.WARNING if expected else logging.ERROR, "station failed", extra=told, exc_info=not expected)
