"""A thread beside the event loop: it works on what requests leave for it under a lock, until it is closed."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod


class Beside(ABC):
    """Started once with the loop that its answers go to; whoever changes what it looks at holds `_change`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; answers go to `loop`."""
        self._thread = threading.Thread(target=self._run, args=(loop,), name=self._name, daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Take no more, finish what is open, and end (blocking, for at most `timeout_s`)."""
        with self._change:
            self._closed = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)

    @abstractmethod
    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread's work, until `_closed`."""
