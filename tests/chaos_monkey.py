"""Faults for whole systems: a chaos that injects them one after another, and what is asked at the end."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import redis
from ledger import Audit, Ledger, audit, install_audit, open_jobs
from system import System, until

from examples import digits

ROWS = digits.held_out().rows.tolist()


def some_row(rng: random.Random) -> list[float]:
    return rng.choice(ROWS)


def ledger_of(system: System, tmp_path: Path) -> Ledger:
    install_audit(system.postgres.url)
    return Ledger(tmp_path / "ledger.jsonl", system.urls, system.key, "digits", some_row)


def settle(system: System, ledger: Ledger, *, within_s: float) -> Audit:
    """Wait until nothing is open, then count."""
    until(lambda: not open_jobs(system.postgres.url), within_s=within_s, what="all jobs ended", logs=system.logs)
    return audit(system.postgres.url, ledger)


def results_are_right(system: System, ledger: Ledger, model: Path) -> None:
    """Every output equals ONNX Runtime called directly, within 1e-5."""
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    with httpx.Client(base_url=system.urls[0], headers={"Authorization": f"Bearer {system.key}"}) as http:
        for entry in ledger.accepted[:: max(1, len(ledger.accepted) // 500)]:
            job = http.get(f"/v1/jobs/{entry.job_id}").json()
            _, expected = session.run(["label", "probabilities"], {"pixels": np.array([entry.row], "float32")})
            np.testing.assert_allclose(job["outputs"][0]["probabilities"], expected[0], atol=1e-5)


class Chaos:
    """Injects one fault after another until told to stop; counts its kills."""

    def __init__(self, system: System, seed: int, *, pause_s: float) -> None:
        self.kills = 0
        self.faults: list[str] = []
        self._system = system
        self._rng = random.Random(seed)
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop, and see that everything runs again, without failpoints."""
        self._stop.set()
        self._thread.join(60.0)
        for part in self._system.parts.values():
            if part.is_alive():
                part.kill()
            part.start()
        self._system.ready()

    def _run(self) -> None:
        faults = ["worker", "api", "scheduler", "flush", "worker", "postgres", "worker", "valkey", "api", "worker"]
        while not self._stop.wait(self._pause_s):
            fault = faults[len(self.faults) % len(faults)]
            self.faults.append(fault)
            getattr(self, fault)()
            self._revive()

    def _revive(self) -> None:
        """Whatever a failpoint has killed comes back, with a new one."""
        for name, part in self._system.parts.items():
            if not part.is_alive():
                self.kills += 1
                part.start(BATCHLINE_FAILPOINTS=self._failpoint(name))

    def _failpoint(self, name: str) -> str:
        passages = self._rng.randint(100, 300)
        if name.startswith("worker"):
            place = self._rng.choice(["worker.before_finish", "worker.after_claim"])
            return f"{place}=kill:{passages}"
        return f"api.after_commit=kill:{passages}" if name.startswith("api") else ""

    def _kill(self, kind: str) -> None:
        parts = [p for n, p in self._system.parts.items() if n.startswith(kind) and p.is_alive()]
        if parts:
            self._rng.choice(parts).kill()

    def worker(self) -> None:
        self._kill("worker")

    def api(self) -> None:
        self._kill("api")

    def scheduler(self) -> None:
        self._kill("scheduler")

    def flush(self) -> None:
        with redis.Redis.from_url(self._system.valkey.url) as connection:
            connection.flushall()

    def postgres(self) -> None:
        self._system.postgres.stop("immediate")
        self._system.postgres.start()

    def valkey(self) -> None:
        self._system.valkey.stop("immediate")
        self._stop.wait(3.0)
        self._system.valkey.start()


def survive(
    system: System,
    tmp_path: Path,
    model: Path,
    *,
    seed: int,
    pause_s: float,
    threads: int,
    jobs_each: int,
    within_s: float,
) -> Chaos:
    """Submit under chaos, then hold the system to its promise: everything accepted, ended once, right."""
    ledger = ledger_of(system, tmp_path)
    chaos = Chaos(system, seed=seed, pause_s=pause_s)
    ledger.start(threads, jobs_each=jobs_each, pause_s=0.03)
    chaos.start()
    ledger.join(within_s=within_s)
    chaos.end()
    found = settle(system, ledger, within_s=120)
    print(f"faults {len(chaos.faults)}, kills {chaos.kills}, {found}")
    assert found.accepted == threads * jobs_each
    assert not ledger.refused
    assert found.is_clean, found
    results_are_right(system, ledger, model)
    return chaos


def outage_of_redis(system: System, tmp_path: Path, seconds: float) -> None:
    """Stop Redis under load for so long; hold the system to accepting and ending jobs all the while and after."""
    ledger = ledger_of(system, tmp_path)
    ledger.start(4, jobs_each=100_000, pause_s=0.05)
    until(lambda: len(ledger.accepted) > 20, within_s=20, what="jobs flow")
    system.valkey.stop("fast")
    before, began = len(ledger.accepted), time.monotonic()
    until(lambda: time.monotonic() - began > seconds, within_s=seconds + 5, what="the outage is over")
    during = len(ledger.accepted) - before
    ended = audit(system.postgres.url, ledger).statuses.get("succeeded", 0)
    assert during > 2 * seconds, f"{during} jobs accepted in {seconds} s without Redis"
    assert ended >= before + during / 2, f"{ended} of {before + during} jobs done without Redis"
    system.valkey.start()
    ledger.join(within_s=2.0)
    found = settle(system, ledger, within_s=30)
    print(f"{during} jobs accepted and {ended - before} done in {seconds:.0f} s without Redis; {found}")
    assert found.is_clean, found
