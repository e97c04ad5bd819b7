"""Threads that read and write slices have the cores that others leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

import pytest

from workers.pipeline import Behind, Channel, ahead, stand_back

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this class of threads")


def _classes(number: int) -> Iterator[int]:
    for _ in range(number):
        yield os.sched_getscheduler(0)


def test_readers_and_writers_leave_the_cores_to_others() -> None:
    """Reader and writer are in the idle class, whoever started them is not."""

    def write(items: Iterable[int]) -> list[int]:
        return [*items, os.sched_getscheduler(0)]

    with ahead(_classes(2), Channel[int](2)) as read, Behind(write, Channel[int](2)) as writer:
        for item in read:
            writer.put(item)
        assert writer.result() == [os.SCHED_IDLE] * 3
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_kernel_that_refuses_the_class_gets_nice_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the class is forbidden (seccomp) the threads are nice; nobody fails for it."""
    asked = list[int]()

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def nice(_which: int, _who: int, priority: int) -> None:
        asked.append(priority)

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    monkeypatch.setattr(os, "setpriority", nice)
    stand_back()
    assert asked == [10]
