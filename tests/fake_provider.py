"""A provider for tests: a cloud in a file, idempotent by launch id, with the faults that clouds have.

It keeps book of what must never happen: how many ever ran at once. `Crew` plays the workers on its instances.
"""

from __future__ import annotations

import fcntl
import json
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import stack

from autoscaler.providers.contract import Found, ProviderError, Trouble
from batchline.errors import SettingsError
from batchline.job import Lane
from batchline.store import Store
from batchline.store.contract import Pulse
from batchline.store.instance_contract import Launch, NewInstance


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [pools.NAME.fake]; faults as shares of calls."""

    path: str
    stale_s: float = 0.0
    throttled: float = 0.0
    lost: float = 0.0
    """Replies that are lost after the effect."""
    capacity: float = 0.0
    """Launches for which there is none; as many bring only a part."""
    seed: int = 1


class Cloud:
    """What really runs, in a file that outlives every process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """Read, change and keep, alone."""
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            state = json.loads(text) if text else {"instances": {}, "launches": {}, "peak": 0, "calls": {}}
            yield state
            running = sum(i["ended_at"] is None for i in state["instances"].values())
            state["peak"] = max(state["peak"], running)
            file.seek(0)
            file.truncate()
            file.write(json.dumps(state))

    def read(self) -> dict[str, Any]:
        with self.state() as state:
            return state

    def live(self) -> set[str]:
        return {id_ for id_, i in self.read()["instances"].items() if i["ended_at"] is None}

    def start(self, id_: str, launch: str | None, *, pool: str = "cpu", age_s: float = 0.0) -> None:
        """Something that nobody asked for through the provider."""
        with self.state() as state:
            state["instances"][id_] = {"launch": launch, "pool": pool, "at": time.time() - age_s, "ended_at": None}

    def vanish(self, id_: str) -> None:
        with self.state() as state:
            state["instances"][id_]["ended_at"] = time.time()


class FakeProvider:
    """See `autoscaler.providers.contract.Provider`."""

    name = "fake"

    def __init__(self, pool: str, options: Options, *, stack: str = "") -> None:
        self.stale_s = options.stale_s
        self.cloud = Cloud(Path(options.path))
        self.refused: set[str] = set()
        """Ids with which a call to end is refused as a whole."""
        self._pool = pool
        self._options = options
        self._rng = random.Random(options.seed)

    def heal(self) -> None:
        """No faults from now on."""
        self._options = Options(self._options.path, self._options.stale_s)

    def check(self) -> None:
        if not Path(self._options.path).parent.is_dir():
            raise SettingsError(f"there is no cloud at {self._options.path}; name another path")

    def launch(self, launch: Launch) -> Sequence[NewInstance]:
        self._throttle("launch")
        with self.cloud.state() as state:
            known = state["launches"].get(str(launch.id))
            count = launch.count
            if known is None and self._happens(self._options.capacity):
                raise ProviderError(Trouble.CAPACITY, "there is none left")
            if known is None and self._happens(self._options.capacity):
                count = max(1, count // 2)
            ids = known or [f"i-{uuid.uuid4().hex[:12]}" for _ in range(count)]
            if known is None:
                state["launches"][str(launch.id)] = ids
                for id_ in ids:
                    state["instances"][id_] = {
                        "launch": str(launch.id),
                        "pool": launch.pool,
                        "at": time.time(),
                        "ended_at": None,
                    }
        self._lose()
        return [NewInstance(id_, kind="fake", price_per_hour=1.0) for id_ in ids]

    def list(self) -> Sequence[Found]:
        self._throttle("list")
        then = time.time() - self._options.stale_s
        return [
            Found(
                NewInstance(id_, kind="fake", price_per_hour=1.0),
                i["pool"],
                uuid.UUID(i["launch"]) if i["launch"] else None,
                ending=False,
                age_s=time.time() - i["at"],
            )
            for id_, i in self.cloud.read()["instances"].items()
            if i["at"] <= then and (i["ended_at"] is None or i["ended_at"] > then)
        ]

    def end(self, instance_ids: Sequence[str]) -> None:
        self._throttle("end")
        if bad := self.refused & set(instance_ids):
            raise ProviderError(Trouble.REFUSED, f"{bad} are no ids")
        with self.cloud.state() as state:
            for id_ in instance_ids:
                found = state["instances"].get(id_)
                if found and found["ended_at"] is None:
                    found["ended_at"] = time.time()
        self._lose()

    def _happens(self, share: float) -> bool:
        return self._rng.random() < share

    def _throttle(self, call: str) -> None:
        with self.cloud.state() as state:
            state["calls"][call] = state["calls"].get(call, 0) + 1
        if self._happens(self._options.throttled):
            raise ProviderError(Trouble.THROTTLED, "too many calls")

    def _lose(self) -> None:
        if self._happens(self._options.lost):
            raise ProviderError(Trouble.UNKNOWN, "no reply")


class Crew:
    """Workers as they would be on the cloud's instances: they register, claim, finish, drain and exit."""

    def __init__(self, store: Store, cloud: Cloud, model: int, *, seed: int = 1) -> None:
        self.busy_stopped = 0
        """Instances that ended while their worker held jobs."""
        self.leave_alone: set[str] = set()
        """Instances that no worker starts on."""
        self._store, self._cloud, self._model = store, cloud, model
        self._rng = random.Random(seed)
        self._workers: dict[str, uuid.UUID] = {}
        self._held: dict[str, list[Any]] = {}
        self._left: set[str] = set()

    def step(self) -> None:
        live = self._cloud.live()
        for id_ in set(self._workers) - live - self._left:
            self.busy_stopped += bool(self._held.get(id_))
            self._leave(id_)
        for id_ in sorted(live - self._left - self.leave_alone):
            if id_ not in self._workers:
                self._workers[id_] = stack.a_worker(self._store, instance=id_)
            self._work(id_)

    def _work(self, id_: str) -> None:
        worker = self._workers[id_]
        pulse = self._store.workers.heartbeat(worker, lease_s=30.0, models="digits@1", rows_per_s=50.0)
        if self._held.get(id_):
            if self._rng.random() < 0.5:
                self._store.claims.finish(worker, [stack.done(job) for job in self._held.pop(id_)])
        elif pulse is Pulse.LIVE:
            self._held[id_] = self._store.claims.claim(worker, self._model, Lane.ONLINE, rows=5).jobs
        else:
            self._leave(id_)

    def _leave(self, id_: str) -> None:
        self._store.workers.bury([self._workers[id_]])
        self._left.add(id_)
