"""What was worked out of a version of a file that lies far away: kept for whoever asks for the same version again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from batchline.data.places import OpenFile

T = TypeVar("T")


def _one(_: object) -> int:
    return 1


class Remembered(Generic[T]):
    """Bounded, what was asked for longest ago goes first; safe to share among threads.

    A version never changes, so nothing here is ever stale: whoever reads another version asks under another identity.
    """

    def __init__(self, most: int, cost: Callable[[T], int] = _one) -> None:
        """Keep things whose costs are at most `most` together."""
        self._most = most
        self._cost = cost
        self._lock = threading.Lock()
        self._held: OrderedDict[str, T] = OrderedDict()
        self._spent = 0

    def of(self, file: OpenFile, make: Callable[[], T]) -> T:
        """What is known of this version, made now if it is not; of a file at hand it is always made.

        Raises: what `make` does, and then nothing is kept.
        """
        key = file.identity
        if key is None:
            return make()
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        made = make()
        with self._lock:
            if key not in self._held:
                self._held[key] = made
                self._spent += self._cost(made)
            while self._spent > self._most:
                _, gone = self._held.popitem(last=False)
                self._spent -= self._cost(gone)
        return made
