"""How this process leaves, whoever asks for it: it claims nothing more, and what it holds has a time to finish.

    working --begin(reason, within_s)--> closing --time is up, or nothing in hand--> draining --> end

While closing, what is in hand goes on: micro-batches, and slices to their published part. When the time is up, what is
on the device is finished and the rest is given back, uncharged. SIGTERM leaves no time; a spot notice leaves two
minutes less a margin.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence

from batchline.errors import StoreUnavailableError
from batchline.job import ClaimedJob
from batchline.retry import backoff_s
from batchline.store.contract import Claims
from workers.turns import Turns

log = logging.getLogger("workers")

GIVE_BACK_S = 30.0
"""The longest that giving back may take; then the process is ended, and its lease brings the jobs back."""
_STEP_S = 0.2
_INSIST_S = 10.0
"""So long is Postgres asked again to take jobs back: it may be restarting, and a lease takes longer to run out."""


def give_back(claims: Claims, worker_id: uuid.UUID, jobs: Sequence[ClaimedJob]) -> None:
    """Have jobs queued again, uncharged.

    Raises:
        StoreUnavailableError: Postgres stays away; the lease brings them back.
    """
    deadline = time.monotonic() + _INSIST_S
    tries = 0
    while True:
        try:
            claims.give_back(worker_id, jobs)
            return
        except StoreUnavailableError:
            tries += 1
            wait_s = backoff_s(tries, base_s=0.1, cap_s=1.0)
            if time.monotonic() + wait_s > deadline:
                raise
            time.sleep(wait_s)


class Leave:
    """The two events that all stations look at, and how long there is between them.

    Any thread may call `begin`; a signal handler may only `ask`.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        """Nothing new is claimed."""
        self.draining = threading.Event()
        """What is not on the device is given back."""
        self.reason = ""
        self._until = math.inf
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()

    def begin(self, reason: str, within_s: float = 0.0) -> None:
        """Claim nothing from now on, and have what is in hand finished within so many seconds, or given back.

        Called again it can only shorten the time.
        """
        until = time.monotonic() + within_s
        if until < self._until:
            self._until, self.reason = until, reason
        if within_s <= 0:
            self.draining.set()
        self.closing.set()

    def ask(self, reason: str) -> None:
        """Have `heed` begin at once, without time. Takes no lock: a signal may interrupt the handler of another."""
        self._asked.put(reason)

    def heed(self) -> None:
        """Begin whenever it is asked for; for a thread of its own, which never ends."""
        while True:
            self.begin(self._asked.get())

    @property
    def left_s(self) -> float:
        """Seconds that what is in hand still has; infinite before `begin`."""
        return max(0.0, self._until - time.monotonic())

    def see_out(
        self, turns: Turns, *, note: Callable[[], None], stop: Callable[[], None], give_back_s: float = GIVE_BACK_S
    ) -> None:
        """The way out, for a thread of its own: wait for the beginning, and see to it that there is an end.

        Args:
            turns: what is in hand.
            note: tells Postgres that this worker drains; must not raise.
            stop: has the process take no more nudges and end once its threads have.
            give_back_s: how long giving back may take; then the process is ended.
        """
        self.closing.wait()
        log.info("leaving", extra={"reason": self.reason, "within_s": round(self.left_s, 1)})
        in_time = threading.Thread(target=self.let_finish, args=(turns,), name="in-time", daemon=True)
        in_time.start()  # the time runs, however long Postgres takes to be told
        note()
        stop()
        in_time.join()
        time.sleep(give_back_s)
        log.error(
            "leaving took too long; ending this process, its jobs will run elsewhere", extra={"limit_s": give_back_s}
        )
        os._exit(1)

    def let_finish(self, turns: Turns) -> None:
        """Wait until nothing is in hand or the time is up; then have the rest given back."""
        while not self.draining.is_set() and not turns.wait_empty(min(_STEP_S, self.left_s)) and self.left_s:
            pass
        self.draining.set()
