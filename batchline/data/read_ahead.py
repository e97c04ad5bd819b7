"""Reading a file that lies far away: what will be needed is asked for early, a few requests at a time.

The order in which a format's reader comes for its bytes is known before it does: windows in that order, of some size,
are fetched in threads of their own while the ones before are used, and are let go once they have been.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

AT_ONCE = 8
"""Requests on their way for one reader."""
HOLE_BYTES = 64 << 10
"""Bytes that nobody wants are fetched too if there are so few between two wanted ranges: a request costs more."""
WINDOW_BYTES = 4 << 20
AHEAD_BYTES = 32 << 20
"""Of windows fetched and not used yet."""

A = TypeVar("A")
T = TypeVar("T")


class Readable(Protocol):
    """The part of `batchline.data.places.OpenFile` that is needed here."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, count: int) -> bytes: ...


class Window(NamedTuple):
    """Bytes [start, end) that are fetched by one request."""

    start: int
    end: int
    wanted: int
    """How many of them will be asked for."""


class Later(Generic[T]):
    """Work in a thread of its own, which ends with the process whatever it hangs in."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._made.append(self._make())
        except BaseException as e:
            self._error = e

    @property
    def done(self) -> bool:
        """Whether `get` would not wait."""
        return not self._thread.is_alive()

    def get(self) -> T:
        """Wait for the result; raises what the work raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._made[0]


def mapped(make: Callable[[A], T], items: Iterable[A], *, at_once: int = AT_ONCE) -> Generator[T]:
    """What `make` makes of each item, in order, of so many at once."""
    waiting: deque[Later[T]] = deque()
    for item in items:
        waiting.append(Later(lambda item=item: make(item)))
        if len(waiting) >= at_once:
            yield waiting.popleft().get()
    while waiting:
        yield waiting.popleft().get()


def together(ranges: Iterable[tuple[int, int]]) -> list[Window]:
    """Ranges [start, end) as windows in the same order: neighbours are one, long ones several."""
    merged: list[Window] = []
    for start, end in ranges:
        last = merged[-1] if merged else None
        if last and 0 <= start - last.end <= HOLE_BYTES and end - last.start <= WINDOW_BYTES:
            merged[-1] = Window(last.start, end, last.wanted + end - start)
        else:
            merged += cut(start, end)
    return merged


def cut(start: int, end: int, step: int = WINDOW_BYTES) -> list[Window]:
    """A range as windows of at most so many bytes, all of them wanted."""
    return [Window(at, min(at + step, end), min(at + step, end) - at) for at in range(start, end, step)]


class ReadAhead:
    """A file whose windows are fetched ahead; safe for one thread at a time. The rest is read when asked for."""

    def __init__(self, file: Readable, windows: Sequence[Window], *, ahead_bytes: int = AHEAD_BYTES) -> None:
        """`windows` do not overlap, and come in the order in which they will be needed."""
        self._file = file
        self._windows = windows
        self._ahead_bytes = ahead_bytes
        self._by_start = sorted(range(len(windows)), key=lambda at: windows[at].start)
        self._starts = [windows[at].start for at in self._by_start]
        self._next = 0
        self._begun: set[int] = set()
        self._fetched: dict[int, Later[bytes]] = {}
        self._left: dict[int, int] = {}
        self._held_bytes = 0

    @property
    def size(self) -> int:
        """Of the file."""
        return self._file.size

    def read_at(self, offset: int, count: int) -> bytes:
        """See `batchline.data.places.OpenFile.read_at`."""
        pieces: list[bytes] = []
        while count > 0:
            at = self._window_of(offset)
            if at is None:
                pieces.append(self._file.read_at(offset, count))
                break
            data = self._fetched[at].get()
            low = offset - self._windows[at].start
            piece = data if not low and count >= len(data) else data[low : low + count]
            self._used(at, len(piece))
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _window_of(self, offset: int) -> int | None:
        """The window that an offset is in, on its way, and those behind it too; None if there is none any more."""
        found = bisect_right(self._starts, offset) - 1
        at = self._by_start[found] if found >= 0 else None
        if at is None or offset >= self._windows[at].end:
            return None
        if at not in self._begun:
            self._begin(at)
        if at not in self._fetched:
            return None
        self._top_up()
        return at

    def _top_up(self) -> None:
        running = sum(not fetch.done for fetch in self._fetched.values())
        while running < AT_ONCE and self._next < len(self._windows) and self._held_bytes < self._ahead_bytes:
            if self._next not in self._begun:
                self._begin(self._next)
                running += 1
            self._next += 1

    def _begin(self, at: int) -> None:
        self._begun.add(at)
        start, end, wanted = self._windows[at]
        self._fetched[at] = Later(lambda: self._file.read_at(start, end - start))
        self._left[at] = wanted
        self._held_bytes += end - start
        while self._held_bytes > 2 * self._ahead_bytes and len(self._fetched) > 1:
            self._let_go(next(iter(self._fetched)))  # nobody has come for all of it

    def _used(self, at: int, count: int) -> None:
        self._left[at] -= count
        if self._left[at] <= 0:
            self._let_go(at)
            self._top_up()

    def _let_go(self, at: int) -> None:
        del self._fetched[at], self._left[at]
        self._held_bytes -= self._windows[at].end - self._windows[at].start
