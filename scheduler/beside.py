"""Chores that wait for foreign places: each in a thread of its own, so that dispatch and rescue stay punctual."""

from __future__ import annotations

import threading
from collections.abc import Callable

from scheduler.chore import Chore
from scheduler.leader import run_chore

_ASK_S = 0.5


class Beside:
    """Runs one chore in its rhythm while this process leads. Two leaders at once do no harm here either."""

    def __init__(self, chore: Chore, leads: Callable[[], bool]) -> None:
        self._chore = chore
        self._leads = leads
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=chore.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, wait_s: float) -> None:
        self._stop.set()
        self._thread.join(wait_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._leads():
                self._stop.wait(_ASK_S)
            elif not run_chore(self._chore):
                self._stop.wait(self._chore.every_s)
