"""Sends webhooks: takes messages that are due, posts each in a thread of its own, tells the store what became of it.

Every scheduler sends, leader or not: the lease of each message keeps them apart. A message whose sender dies, or cannot
reach Postgres after sending, is sent again when the lease ends: at least once, under the same id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC
from typing import Protocol
from urllib.parse import urlsplit

from batchline import webhook
from batchline.errors import BatchlineError
from batchline.logs import Outage
from batchline.metrics import WEBHOOK_ATTEMPTS, WEBHOOKS_IN_FLIGHT, WEBHOOKS_OVERDUE
from batchline.store.webhook_contract import Due, Webhooks
from scheduler.posting import TIMEOUT_S, Answer

log = logging.getLogger("scheduler.webhooks")

THREADS = 128
"""Messages under way at most, in this process. They wait for receivers; a thread is made when it is needed."""
LEASE_S = TIMEOUT_S + 5.0
IDLE_S = 0.5
"""How often it is asked whether a message is due."""
_PORTION = 32
_OVERDUE_S = 5.0
"""How often the metric of what waits is brought up to date."""
_TROUBLE_S = 2.0
_TELL_AGAIN_S = 0.5
_REPORTS = 2
"""Of the process's connections to Postgres, so many tell outcomes: chores need the others."""
_GONE = 410
_GONE_AGAIN_S = 60.0
"""When a message is tried again whose endpoint could not be disabled."""


class Posts(Protocol):
    """Sends one request, as `Poster` does."""

    def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer: ...


class Deliveries:
    """The station of webhooks."""

    def __init__(self, webhooks: Webhooks, poster: Posts, *, threads: int = THREADS, lease_s: float = LEASE_S) -> None:
        self._webhooks = webhooks
        self._poster = poster
        self._threads = threads
        self._lease_s = lease_s
        self._stop = threading.Event()
        self._freed = threading.Event()
        self._lock = threading.Lock()
        self._in_flight = 0
        self._asked_at = -_OVERDUE_S
        self._reports = threading.BoundedSemaphore(_REPORTS)
        self._outage = Outage(log, "webhooks are not sent", "webhooks are sent again")
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, wait_s: float) -> None:
        """Take nothing new; what is under way has `wait_s` to end, then it is left, and its lease runs out."""
        until = time.monotonic() + wait_s
        self._stop.set()
        self._freed.set()
        self._thread.join(wait_s)
        while self._in_flight and time.monotonic() < until:
            self._freed.clear()
            self._freed.wait(0.1)

    def step(self) -> int:
        """Take what is due and there are threads for, and begin to send it; returns how many."""
        free = self._threads - self._in_flight
        if free <= 0:
            return 0
        taken_at = time.monotonic()
        due = self._webhooks.take_due(
            limit=min(free, _PORTION), per_endpoint=share(self._in_flight, self._threads), lease_s=self._lease_s
        )
        for message in due:
            self._count(1)
            try:
                threading.Thread(
                    target=self._see_through, args=(message, taken_at), name="webhook", daemon=True
                ).start()
            except RuntimeError:  # no thread more on this machine: the message is left to its lease
                self._count(-1)
                raise
        return len(due)

    def _count(self, change: int) -> None:
        with self._lock:
            self._in_flight += change
            WEBHOOKS_IN_FLIGHT.set(self._in_flight)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._freed.clear()
            try:
                taken = self.step()
                self._tell_overdue()
            except Exception as e:
                self._outage.fails(error=str(e))
                self._stop.wait(_TROUBLE_S)
                continue
            self._outage.well()
            if taken < _PORTION:
                self._freed.wait(IDLE_S)

    def _tell_overdue(self) -> None:
        if time.monotonic() - self._asked_at >= _OVERDUE_S:
            self._asked_at = time.monotonic()
            WEBHOOKS_OVERDUE.set(self._webhooks.overdue_s())

    def _see_through(self, due: Due, taken_at: float) -> None:
        try:
            body = body_of(due)
            headers = webhook.headers(due.secrets, webhook.show_message_id(due.id), int(time.time()), body)
            answer = self._poster.post(due.url, headers, body)
            self._report(due, answer, taken_at + self._lease_s)
        except Exception:
            log.exception("webhook left to its lease", extra=_about(due))
        finally:
            self._count(-1)
            self._freed.set()

    def _report(self, due: Due, answer: Answer, until: float) -> None:
        """Tell the store, again and again while the lease lasts: what it never hears of is sent twice."""
        outcome, tell = self._outcome(due, answer)
        while True:
            try:
                with self._reports:
                    tell()
                break
            except BatchlineError as e:
                if time.monotonic() >= until or self._stop.wait(_TELL_AGAIN_S):
                    log.warning("outcome of a webhook not stored; it is sent again", extra=_about(due, error=e.detail))
                    return
        WEBHOOK_ATTEMPTS.labels(outcome).inc()
        told = _about(due, outcome=outcome, status=answer.status_code, ms=answer.duration_ms)
        log.info("webhook", extra=told | ({"error": answer.error} if answer.error else {}))

    def _outcome(self, due: Due, answer: Answer) -> tuple[str, Callable[[], object]]:
        """What came of an attempt, in a word, and how the store is told."""
        status, error, took_ms = answer.status_code, answer.error, answer.duration_ms
        if status is not None and error is None:
            return "delivered", lambda: self._webhooks.delivered(
                due.id, due.attempt, status_code=status, duration_ms=took_ms
            )

        def failed(again_in_s: float | None) -> None:
            self._webhooks.failed(
                due.id,
                due.attempt,
                status_code=status,
                error=error or "",
                duration_ms=took_ms,
                again_in_s=again_in_s,
            )

        def gone() -> None:
            failed(_GONE_AGAIN_S)
            self._webhooks.disable(due.endpoint_id, "The receiver answered 410 Gone.")

        if status == _GONE:
            return "gone", gone
        again_in_s = webhook.retry_s(due.tries, retry_after_s=answer.retry_after_s)
        return "given_up" if again_in_s is None else "again", lambda: failed(again_in_s)


def share(in_flight: int, threads: int) -> int:
    """How many messages of one endpoint may be under way: the fewer, the fewer threads are free.

    So a few endpoints that hang have not all threads, and many that hang have one each.
    """
    if in_flight < threads / 2:
        return max(1, threads // 8)
    return max(1, threads // 32) if in_flight < threads * 3 / 4 else 1


def body_of(due: Due) -> bytes:
    """The request's body: the same bytes at every attempt."""
    ended_at = due.created_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return f'{{"type":"{due.event}","timestamp":"{ended_at}","data":{due.data}}}'.encode()


def _about(due: Due, **more: object) -> dict[str, object]:
    """For a log line. Never the URL: receivers put tokens into paths and queries."""
    return {
        "webhook_id": webhook.show_message_id(due.id),
        "event": due.event,
        "host": urlsplit(due.url).hostname,
        "attempt": due.attempt,
        **more,
    }
