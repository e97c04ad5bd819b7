"""Cuts connections on which Postgres has been silent for too long.

libpq waits for an answer without end, and the server's own timeouts say nothing of a server, or of a proxy before it,
that hangs with its connections open: a process would never notice that there is a well one again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import psycopg2
from psycopg2.extensions import connection as Driver  # noqa: N812

_LOOK_S = 1.0


class Patience:
    """The waits of one pool, each with a limit; what is cut fails in the thread that waits, as any lost connection."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._due: dict[Driver, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, driver: Driver) -> None:
        """From now on this connection has the limit to answer; called again, it has it anew."""
        due = time.monotonic() + self._limit_s
        with self._lock:
            self._due[driver] = due
            if self._thread is None:
                self._closed.clear()
                self._thread = threading.Thread(target=self._watch, name="patience", daemon=True)
                self._thread.start()

    def end(self, driver: Driver) -> None:
        """It has answered, or failed. From then on it may be closed."""
        with self._lock:
            self._due.pop(driver, None)

    def close(self) -> None:
        """Watch no more, until there is something to watch again."""
        self._closed.set()
        with self._lock:
            self._thread = None

    def _watch(self) -> None:
        while not self._closed.wait(min(_LOOK_S, self._limit_s / 4)):
            now = time.monotonic()
            with self._lock:  # who waits cannot close it meanwhile, so the number is that of no other socket
                for driver in [d for d, due in self._due.items() if due < now]:
                    del self._due[driver]
                    _cut(driver)


def _cut(driver: Driver) -> None:
    with contextlib.suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(driver.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
