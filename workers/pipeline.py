"""Stages in threads of their own, bounded channels between them, and errors that travel with the data."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

log = logging.getLogger("workers")

T = TypeVar("T")
R = TypeVar("R")

_NICE = 10
_JOIN_S = 5.0
"""A thread that hangs in a read or write longer than this is left to end by itself."""


class ClosedError(Exception):
    """The other side has gone."""


class Channel(Generic[T]):
    """A bounded queue from one thread to another; either side may end it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: deque[T] = deque()
        self._change = threading.Condition()
        self._finished = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Wait for room and leave an item.

        Raises:
            ClosedError: nobody takes it any more.
        """
        with self._change:
            self._change.wait_for(lambda: self._closed or len(self._items) < self._most)
            if self._closed:
                raise ClosedError
            self._items.append(item)
            self._change.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Nothing more comes; an error is raised where the items are taken, behind the last one."""
        with self._change:
            self._finished, self._error = True, error
            self._change.notify_all()

    def close(self) -> None:
        """End both sides at once, whatever is in between."""
        with self._change:
            self._closed = True
            self._items.clear()
            self._change.notify_all()

    def __iter__(self) -> Iterator[T]:
        """The items, in order.

        Raises:
            ClosedError: it was closed.
            Exception: what the giver finished with.
        """
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._items or self._finished)
                if self._closed:
                    raise ClosedError
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._change.notify_all()
            yield item


def stand_back() -> None:
    """Let this thread, and those that it starts, have the cores that others leave.

    Linux has a class for it, of a thread's own: whatever else wakes up goes first, at once. A nice thread would keep
    its core until its time is up, some ms. Where there is no such class, it is nice; elsewhere it is as others.
    """
    thread = threading.get_native_id()
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        return
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, _NICE)


@contextmanager
def ahead(items: Iterable[T], channel: Channel[T]) -> Generator[Iterator[T]]:
    """Take items from an iterable in a thread of its own, ahead of whoever needs them."""

    def run() -> None:
        stand_back()
        try:
            for item in items:
                channel.put(item)
            channel.finish()
        except ClosedError:
            pass
        except BaseException as e:
            channel.finish(e)

    thread = threading.Thread(target=run, name="reader", daemon=True)
    thread.start()
    try:
        yield iter(channel)
    finally:
        channel.close()
        _join(thread)


class Behind(Generic[T, R]):
    """A thread that works off what is put, behind whoever puts it, and comes to a result."""

    def __init__(self, work: Callable[[Iterator[T]], R], channel: Channel[T]) -> None:
        self._work = work
        self._channel = channel
        self._result: R | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Behind[T, R]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        _join(self._thread)

    def put(self, item: T) -> None:
        """Leave an item.

        Raises:
            Exception: what the work failed with; ClosedError when it was ended from outside.
        """
        try:
            self._channel.put(item)
        except ClosedError:
            if self._error is not None:
                raise self._error from None
            raise

    def result(self) -> R:
        """Wait for the end of the work; raises as `put` does."""
        self._channel.finish()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result  # pyright: ignore[reportReturnType]

    def _run(self) -> None:
        stand_back()
        try:
            self._result = self._work(iter(self._channel))
        except BaseException as e:
            self._error = e
            self._channel.close()


def _join(thread: threading.Thread) -> None:
    thread.join(_JOIN_S)
    if thread.is_alive():
        log.warning("a stage hangs; left to end by itself", extra={"stage": thread.name})
