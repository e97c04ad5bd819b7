"""Nudges are bounded: a queue that nobody serves does not grow in Redis for as long as its jobs wait."""

from __future__ import annotations

from typing import Any

from batchline.queue import celery_queue
from batchline.queue.celery_queue import CeleryNudger


class Hints:
    def __init__(self) -> None:
        self.length: int | None = 0
        self.asked = 0

    def waiting(self, queue: str) -> int | None:
        self.asked += 1
        return self.length


def sends(nudger: CeleryNudger, hints: Hints, times: int, *, grow: bool) -> int:
    sent = 0
    for _ in range(times):
        if not nudger._enough("q"):
            sent += 1
            if grow and hints.length is not None:
                hints.length += 1
    return sent


def test_a_queue_that_nobody_serves_stops_growing():
    hints: Any = Hints()
    nudger = CeleryNudger("redis://127.0.0.1:1", hints)
    assert sends(nudger, hints, 10_000, grow=True) < celery_queue._ENOUGH + celery_queue._LOOK_EVERY
    hints.length = 0
    assert sends(nudger, hints, 1, grow=True) == 1
    nudger.close()


def test_a_served_queue_is_looked_at_now_and_then_only():
    """The look is a round trip; it must not double what a nudge costs."""
    hints: Any = Hints()
    nudger = CeleryNudger("redis://127.0.0.1:1", hints)
    assert sends(nudger, hints, 1000, grow=False) == 1000
    assert hints.asked <= 1000 / celery_queue._LOOK_EVERY
    nudger.close()


def test_without_an_answer_nudges_are_sent():
    """Redis that does not answer is no reason to be silent."""
    hints: Any = Hints()
    hints.length = None
    nudger = CeleryNudger("redis://127.0.0.1:1", hints)
    assert sends(nudger, hints, 100, grow=False) == 100
    nudger.close()
