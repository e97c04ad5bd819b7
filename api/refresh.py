"""The thread that keeps the catalogue and the backlog fresh."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from batchline.errors import StoreUnavailableError

log = logging.getLogger("api.refresh")

EVERY_S = 1.0


class Refresh:
    """Runs each task once a second, one after the other, until closed."""

    def __init__(self, tasks: Sequence[Callable[[], None]]) -> None:
        self._tasks = tasks
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refresh", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End (blocking, for at most `timeout_s`)."""
        self._closed.set()
        self._thread.join(timeout=timeout_s)

    def _run(self) -> None:
        while True:
            for task in self._tasks:
                try:
                    task()
                except StoreUnavailableError as e:
                    log.warning("not refreshed", extra={"error": e.detail})
                except Exception:
                    log.exception("not refreshed")
            if self._closed.wait(EVERY_S):
                return
