"""The lease of this process: who we are, renewed by a thread with a connection of its own."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from batchline.errors import StoreUnavailableError
from batchline.job import Lane
from batchline.metrics import LEASES_LOST
from batchline.settings import Settings
from batchline.store.contract import Pulse, Speed, Workers

log = logging.getLogger("workers")

_RATE_S = 45.0
_FORGOTTEN_S = 1e-9
"""Busy time that has faded to less says no more how fast it was."""
_MODELS = 64
"""Speeds of so many models are told at most, of those served last."""
_RETRY_S = 1.0
_SOON = 0.25
"""Part of the time between two beats after which the next one may come, when it is asked for."""


def host_identity() -> str:
    """This machine as far as process ids mean anything: host name, pid namespace and run.

    Machines of one image, or of two networks, may have the same name, and all have the same first namespace.
    """
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = "pid"
    return f"{socket.gethostname()}/{namespace}/{_boot_id()[:8]}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Rate:
    """Rows per busy second, older ones counting less and less; what a queue drains at when there is one."""

    def __init__(self) -> None:
        self._rows = 0.0
        self._busy_s = 0.0
        self._rate = 0.0

    def add(self, rows: int, busy_s: float, elapsed_s: float) -> float:
        """Count what was done in the last `elapsed_s` and return rows/s."""
        decay = math.exp(-elapsed_s / _RATE_S)
        self._rows = self._rows * decay + rows
        self._busy_s = self._busy_s * decay + busy_s
        if self._busy_s > _FORGOTTEN_S:  # after hours without work there is nothing left to divide
            self._rate = self._rows / self._busy_s
        return self._rate


class Speeds:
    """The rates of each model lately served, by lane."""

    def __init__(self) -> None:
        self._rates: dict[int, dict[Lane, Rate]] = {}
        """The one that has not been served for longest comes first."""

    def add(self, worked: Mapping[tuple[Lane, int], tuple[int, float]], elapsed_s: float) -> dict[int, Speed]:
        """Count rows and busy seconds of the last `elapsed_s`, by lane and model, and return what is to be told."""
        for _, model_id in worked:
            self._rates[model_id] = self._rates.pop(model_id, None) or {lane: Rate() for lane in Lane}
        while len(self._rates) > _MODELS:
            del self._rates[next(iter(self._rates))]
        found = {
            model_id: Speed(
                *(
                    _six_digits(rates[lane].add(*worked.get((lane, model_id), (0, 0.0)), elapsed_s))
                    for lane in (Lane.ONLINE, Lane.BULK)
                )
            )
            for model_id, rates in self._rates.items()
        }
        return {model_id: speed for model_id, speed in found.items() if any(speed)}


class Heart:
    """Keeps the lease. Whose lease has run out comes back under a new id; the fence drops the results of the old."""

    def __init__(
        self,
        workers: Workers,
        settings: Settings,
        *,
        loaded: Callable[[], str],
        done: Callable[[Lane], tuple[int, float]],
        worked: Callable[[], Mapping[tuple[Lane, int], tuple[int, float]]],
        on_drain: Callable[[], None],
        report: Callable[[uuid.UUID], None],
    ) -> None:
        """Nothing happens before `bury_the_dead` and `start`.

        Args:
            workers: on a connection that nobody else uses.
            settings: of the process.
            loaded: the refs of the loaded models.
            done: rows of a lane predicted and its busy seconds since the process began.
            worked: the same by lane and model, since it was last asked; see `Turns.worked`.
            on_drain: called at every beat that tells this worker to drain; it must not wait.
            report: called with our id after every beat; it must not raise.
        """
        self._workers = workers
        self._settings = settings
        self._loaded = loaded
        self._done = done
        self._worked = worked
        self._on_drain = on_drain
        self._report = report
        self._rates = {lane: Rate() for lane in Lane}
        self._rate = self._bulk_rate = 0.0
        self._by_model, self._speeds = Speeds(), dict[int, Speed]()
        self._rows_told, self._rows_before = 0, 0
        """Rows that this process has told of, and those of them that it told under former ids."""
        self._closed, self._soon = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.worker_id = uuid.uuid4()

    def bury_the_dead(self) -> None:
        """Processes of this host that are no more need not be waited for: their jobs are taken back at once."""
        here = host_identity()
        dead = [w.id for w in self._workers.list() if w.live and w.host == here and _is_gone(w.pid)]
        if dead:
            self._workers.bury(dead)
            log.info("former lives buried", extra={"workers": len(dead)})

    def start(self) -> None:
        """Register and keep beating; from then on this worker counts as capacity."""
        self._register()
        self._thread.start()

    def soon(self) -> None:
        """Do not wait long for the next beat: claims that bring nothing may mean that this worker is to drain."""
        self._soon.set()

    def stop(self) -> None:
        """Tell the last rows and end the lease now: what is still in hand is for others. Harmless before `start`."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        try:
            self._tell()
            self._workers.bury([self.worker_id])
        except StoreUnavailableError as e:
            log.info("lease not ended; it runs out by itself", extra={"error": e.detail})

    def _register(self) -> None:
        s = self._settings
        self._workers.register(
            self.worker_id,
            host=host_identity(),
            pid=os.getpid(),
            pool=s.pool,
            device=s.device,
            lease_s=s.lease_s,
            instance=s.instance,
        )
        log.info("worker registered", extra={"worker_id": str(self.worker_id), "pool": s.pool, "device": s.device})

    def _run(self) -> None:
        wait_s = 0.0  # on an instance that is given up it drains from the start, and learns it by a beat
        before, counted = time.monotonic(), {lane: self._done(lane) for lane in Lane}
        while not self._wait(wait_s):
            now = time.monotonic()
            rates: dict[Lane, float] = {}
            for lane, (rows, busy_s) in counted.items():
                rows_now, busy_now = counted[lane] = self._done(lane)
                rates[lane] = self._rates[lane].add(rows_now - rows, busy_now - busy_s, now - before)
            self._speeds = self._by_model.add(self._worked(), now - before)
            before = now
            try:
                # What jobs wait for is the online rate: slices, a hundred times as fast, must not brighten it.
                self._rate, self._bulk_rate = rates[Lane.ONLINE] or rates[Lane.BULK], rates[Lane.BULK]
                self._beat()
                wait_s = self._settings.heartbeat_s
            except StoreUnavailableError as e:
                log.warning("heartbeat failed", extra={"error": e.detail})
                wait_s = min(_RETRY_S, self._settings.heartbeat_s)
            except Exception:  # a worker without a heart would go on for ever and claim nothing
                log.exception("heartbeat failed")
                wait_s = min(_RETRY_S, self._settings.heartbeat_s)

    def _wait(self, seconds: float) -> bool:
        """Wait for the next beat, less long when it is asked for; True at the end."""
        since = time.monotonic()
        self._soon.clear()
        while (waited_s := time.monotonic() - since) < seconds and not self._closed.is_set():
            if self._soon.is_set() and waited_s > seconds * _SOON:
                break
            self._closed.wait(min(seconds * _SOON, seconds - waited_s))
        return self._closed.is_set()

    def _beat(self) -> None:
        pulse = self._tell()
        if pulse is Pulse.DRAINING:
            self._on_drain()
        if pulse is not Pulse.LOST:
            return
        LEASES_LOST.inc()
        log.warning("lease ran out; coming back under a new id", extra={"worker_id": str(self.worker_id)})
        self._rows_before = self._rows_told
        self.worker_id = uuid.uuid4()
        self._register()

    def _tell(self) -> Pulse:
        rows = sum(self._done(lane)[0] for lane in Lane)
        pulse = self._workers.heartbeat(
            self.worker_id,
            lease_s=self._settings.lease_s,
            models=self._loaded(),
            rows_per_s=self._rate,
            bulk_rows_per_s=self._bulk_rate,
            rows_done=rows - self._rows_before,
            speeds=self._speeds,
        )
        if pulse is not Pulse.LOST:
            self._rows_told = rows
        self._report(self.worker_id)
        return pulse


def _six_digits(rate: float) -> float:
    return float(f"{rate:.6g}")


def _is_gone(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
