"""The loop: hold the lease, run what is due, survive whatever a chore raises."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence

from batchline.clock import Clock
from batchline.errors import BatchlineError
from batchline.metrics import CHORE_RUNS, LEADER
from batchline.store import Store
from scheduler.chore import Chore

log = logging.getLogger("scheduler")

LEASE = "scheduler"


class Leader:
    """One of possibly several schedulers; only the holder of the lease row works.

    Two leaders at once (a paused process wakes up) do no harm: every chore is guarded statements.
    """

    def __init__(
        self, store: Store, chores: Sequence[Chore], clock: Clock, *, lease_s: float, worker_lease_s: float
    ) -> None:
        self._store = store
        self._chores = chores
        self._clock = clock
        self._lease_s = lease_s
        self._gap_s = worker_lease_s
        self._id = uuid.uuid4()
        self._due: dict[str, float] = {}
        self._leads = False
        self._led = False
        self._renewed_at = -lease_s

    def leads(self) -> bool:
        """Whether this process held the lease when it last asked; for other threads."""
        return self._leads

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then let go of the lease."""
        while not stop.is_set():
            stop.wait(self.tick())
        if self._leads:
            try:
                self._store.workers.resign(LEASE, self._id)
            except BatchlineError as e:
                log.warning("lease not given back; it runs out by itself", extra={"error": e.detail})

    def tick(self) -> float:
        """Renew or try for the lease, run what is due; returns how many seconds to wait."""
        now = self._clock.monotonic()
        if now - self._renewed_at >= self._lease_s / 3 and not self._renew(now):
            return self._lease_s / 3
        for chore in self._chores:
            if now >= self._due.get(chore.name, 0.0):
                again = run_chore(chore)
                self._due[chore.name] = self._clock.monotonic() + (0.0 if again else chore.every_s)
        until = min((self._due[c.name] for c in self._chores), default=now + 1.0)
        return max(0.0, min(until - self._clock.monotonic(), self._lease_s / 3))

    def _renew(self, now: float) -> bool:
        try:
            held_s = self._store.workers.lead(LEASE, self._id, lease_s=self._lease_s)
        except BatchlineError as e:
            log.warning("lease not renewed", extra={"error": e.detail})
            held_s = None
        except Exception:  # as while the database is being restored beneath us
            log.exception("lease not renewed")
            held_s = None
        gap = self._led and now - self._renewed_at > self._gap_s
        if held_s is not None and (not self._leads or gap):
            log.info("leading", extra={"after_gap": gap})
            self._due = {c.name: now + (c.delay_after_gap_s if gap else 0.0) for c in self._chores}
        self._leads = held_s is not None
        LEADER.set(self._leads)
        if self._leads:
            self._led = True
            self._renewed_at = now
        return self._leads


def run_chore(chore: Chore) -> bool:
    """Run one step, whatever it raises; True when it should run again at once."""
    try:
        moved = chore.step()
    except Exception as e:
        CHORE_RUNS.labels(chore.name, "failed").inc()
        level = logging.WARNING if isinstance(e, BatchlineError) else logging.ERROR
        log.log(level, "chore failed", extra={"chore": chore.name, "error": str(e)}, exc_info=level == logging.ERROR)
        return False
    CHORE_RUNS.labels(chore.name, "ok").inc()
    return bool(chore.portion) and moved >= chore.portion
