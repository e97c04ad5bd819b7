"""The lease of a worker process: what its beats tell, and what they learn."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
import stack
from system import until

from batchline.job import Lane
from batchline.settings import Settings
from batchline.store import Store
from workers import heartbeat
from workers.heartbeat import Heart


class Told:
    """A heart, what its process has done, and what it has heard."""

    def __init__(self, store: Store, heartbeat_s: float) -> None:
        self.rows = 0
        self.worked: dict[tuple[Lane, int], tuple[int, float]] = {}
        self.drained = threading.Event()
        self.beats = 0
        settings = Settings(instance="one", heartbeat_s=heartbeat_s, lease_s=60.0)
        self.heart = Heart(
            store.workers,
            settings,
            loaded=lambda: "digits@1",
            done=lambda lane: (self.rows if lane is Lane.ONLINE else 0, 1.0),
            worked=self._worked,
            on_drain=self.drained.set,
            report=self._report,
        )

    def _worked(self) -> dict[tuple[Lane, int], tuple[int, float]]:
        worked, self.worked = self.worked, {}
        return worked

    def _report(self, _worker: uuid.UUID) -> None:
        self.beats += 1


@pytest.fixture
def hearts(store: Store) -> Iterator[Callable[[float], Told]]:
    """Hearts by their heartbeat_s, stopped at the end."""
    made: list[Told] = []

    def make(heartbeat_s: float) -> Told:
        made.append(Told(store, heartbeat_s))
        made[-1].heart.bury_the_dead()
        made[-1].heart.start()
        return made[-1]

    yield make
    for told in made:
        told.heart.stop()


def _rows_done(url: str) -> list[int]:
    return [row[0] for row in stack.query(url, "SELECT rows_done FROM workers ORDER BY started_at")]


def test_a_beat_that_is_asked_for_comes_soon(
    store: Store, hearts: Callable[[float], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to drain, a worker learns it long before the next beat would be due."""
    monkeypatch.setattr(heartbeat, "_SOON", 0.005)
    told = hearts(30.0)
    until(lambda: told.beats == 1)
    store.workers.drain(told.heart.worker_id)
    told.heart.soon()
    assert told.drained.wait(15.0)


def test_rows_are_told_with_each_beat_and_the_last_ones_at_the_end(
    store: Store, hearts: Callable[[float], Told], database_url: str
) -> None:
    """The row names the instance, and its lease ends with the process."""
    told = hearts(0.05)
    told.rows = 5
    until(lambda: _rows_done(database_url) == [5])
    told.rows = 7
    told.heart.stop()
    assert _rows_done(database_url) == [7]
    assert [(w.live, w.instance, w.models) for w in store.workers.list()] == [(False, "one", "digits@1")]


def test_speeds_are_told_by_model_also_under_a_new_id(store: Store, hearts: Callable[[float], Told]) -> None:
    """What was measured under the old id holds for the new one; lanes are told apart."""
    told = hearts(0.05)
    told.worked = {(Lane.ONLINE, 7): (10, 1.0), (Lane.BULK, 7): (1000, 2.0), (Lane.BULK, 8): (0, 1.0)}
    until(lambda: store.workers.speeds() == {7: (10.0, 500.0)})
    old = told.heart.worker_id
    store.workers.bury([old])
    until(lambda: told.heart.worker_id != old)
    told.worked = {(Lane.ONLINE, 8): (3, 1.0)}
    until(lambda: store.workers.speeds() == {7: (10.0, 500.0), 8: (3.0, 0.0)})


def test_who_comes_back_under_a_new_id_does_not_tell_its_rows_twice(
    store: Store, hearts: Callable[[float], Told], database_url: str
) -> None:
    """What the old id has told stands; the new one counts from there."""
    told = hearts(0.05)
    told.rows = 5
    until(lambda: _rows_done(database_url) == [5])
    store.workers.bury([told.heart.worker_id])
    until(lambda: _rows_done(database_url) == [5, 0])
    told.rows = 9
    until(lambda: _rows_done(database_url) == [5, 4])


def test_only_former_lives_on_this_very_machine_are_buried(
    store: Store, hearts: Callable[[float], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine of the same image may have the same name: its workers' process ids mean nothing here."""
    gone = 2**22 + 1  # beyond the highest process id

    def register() -> uuid.UUID:
        worker = uuid.uuid4()
        store.workers.register(worker, host=heartbeat.host_identity(), pid=gone, pool="cpu", device="cpu", lease_s=60.0)
        return worker

    here = register()
    with monkeypatch.context() as patch:
        patch.setattr(heartbeat, "_boot_id", lambda: "another-run")
        elsewhere = register()
    hearts(30.0)
    live = {worker.id: worker.live for worker in store.workers.list()}
    assert (live[here], live[elsewhere]) == (False, True)


def test_no_error_stops_the_heart(
    store: Store, hearts: Callable[[float], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose thread had ended would go on without a lease and claim nothing, for ever."""
    told = hearts(0.05)
    until(lambda: told.beats)
    failed = threading.Event()

    def beat(*_: object, **__: object) -> None:
        failed.set()
        raise LookupError("no such column")

    with monkeypatch.context() as patch:
        patch.setattr(type(store.workers), "heartbeat", beat)
        assert failed.wait(15.0)
    beats = told.beats
    until(lambda: told.beats > beats)
