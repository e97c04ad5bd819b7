"""The load generator: a closed loop of clients in a process of its own, the same for every side.

`python -m benchmarks.load` reads one Load as JSON from stdin and prints one Outcome as JSON. Every answer that ends
within the measured time is checked against ONNX Runtime's own.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from benchmarks.connection import Connection, message
from benchmarks.processes import ROOT, BenchmarkError

BODIES = 256
TOLERANCE = 1e-5
JOB_S = 60.0


class Load(msgspec.Struct, kw_only=True):
    """What to send where.

    Attributes:
        side: `peer` or `product`.
        ports: API processes on loopback; clients are dealt out to them in turn.
        data: the JSON file of benchmarks.digits.
        manner: which of the peer's endpoints, `loop` or `threads`.
        poll_s: the peer's pause before each look at a result.
        warm_s: left out of the figures. Closed loop: a client's next job follows its last.
        gap_s: a client's pause between two jobs; 0 for a closed loop without one.
    """

    side: str
    ports: list[int]
    data: str
    key: str = ""
    model: str = "digits"
    clients: int = 64
    rows: int = 1
    manner: str = "loop"
    poll_s: float = 0.01
    gap_s: float = 0.0
    warm_s: float = 2.0
    measured_s: float = 8.0


class Outcome(msgspec.Struct, kw_only=True):
    """What came of it: whole jobs, from submit to checked result, that ended within measured_s."""

    jobs: int
    jobs_per_s: float
    rows_per_s: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    requests_per_job: float
    client_cpu_ms_per_job: float
    timings_ms: dict[str, float] = {}


@dataclass
class Job:
    """One ready-made submit and its right answer: label [B], probabilities [B, 10]."""

    submit: bytes
    label: np.ndarray
    probabilities: np.ndarray


@dataclass
class Tally:
    latencies_s: list[float] = field(default_factory=list)
    requests: int = 0
    timings: list[dict[str, Any]] = field(default_factory=list)


Run = Callable[[Connection, Job, Tally], Awaitable[None]]


def _jobs(load: Load, path: str, headers: dict[str, str], extra: dict[str, Any]) -> list[Job]:
    data = orjson.loads(Path(load.data).read_bytes())
    rows, total = data["rows"], len(data["rows"])
    made: list[Job] = []
    for n in range(BODIES if load.rows == 1 else 16):
        picked = [(n * load.rows + i) % total for i in range(load.rows)]
        body = orjson.dumps({**extra, "inputs": [rows[i] for i in picked]})
        made.append(
            Job(
                message("POST", path, headers=headers, body=body),
                np.array([data["labels"][i] for i in picked]),
                np.array([data["probabilities"][i] for i in picked]),
            )
        )
    return made


def _check(job: Job, results: list[dict[str, Any]]) -> None:
    label = [r["label"] for r in results]
    probabilities = np.array([r["probabilities"] for r in results])
    if label != job.label.tolist() or np.abs(probabilities - job.probabilities).max() > TOLERANCE:
        raise BenchmarkError(f"a result differs from ONNX Runtime's: {results[0]}")


def _peer(load: Load) -> tuple[list[Job], Run]:
    async def run(connection: Connection, job: Job, tally: Tally) -> None:
        answer = await connection.request(job.submit)
        tally.requests += 1
        if answer.status != 202:
            raise BenchmarkError(f"the peer answered {answer.status}: {answer.body[:300]!r}")
        read = message("GET", f"/{load.manner}/result/{orjson.loads(answer.body)['id']}")
        until = time.monotonic() + JOB_S
        while time.monotonic() < until:
            await asyncio.sleep(load.poll_s)
            answer = await connection.request(read)
            tally.requests += 1
            if answer.status != 200:
                raise BenchmarkError(f"the peer answered {answer.status}: {answer.body[:300]!r}")
            if b'"SUCCESS"' in answer.body:
                _check(job, orjson.loads(answer.body)["result"])
                return
        raise BenchmarkError(f"a job of the peer took more than {JOB_S:.0f} s")

    return _jobs(load, f"/{load.manner}/predict", {}, {}), run


def _product(load: Load) -> tuple[list[Job], Run]:
    headers = {"Authorization": f"Bearer {load.key}", "Prefer": "wait=10"}

    async def run(connection: Connection, job: Job, tally: Tally) -> None:
        answer = await connection.request(job.submit)
        tally.requests += 1
        until = time.monotonic() + JOB_S
        while answer.status in (200, 202) and time.monotonic() < until:
            found = orjson.loads(answer.body)
            if found["status"] not in ("queued", "running"):
                if found["status"] != "succeeded":
                    raise BenchmarkError(f"a job ended as {found['status']}: {found['errors']}")
                _check(job, found["outputs"])
                tally.timings.append(found.get("timings_ms") or {})
                return
            answer = await connection.request(message("GET", f"/v1/jobs/{found['id']}", headers=headers))
            tally.requests += 1
        raise BenchmarkError(f"answered {answer.status}: {answer.body[:300]!r}")

    return _jobs(load, "/v1/jobs", headers, {"model": load.model}), run


async def _client(n: int, load: Load, side: tuple[list[Job], Run], tally: Tally, times: tuple[float, float]) -> None:
    jobs, run = side
    connection = await Connection.open(load.ports[n % len(load.ports)])
    start, end = times
    try:
        while time.perf_counter() < end:
            job = jobs[n % len(jobs)]
            n += load.clients
            mine = Tally()
            begun = time.perf_counter()
            await run(connection, job, mine)
            done = time.perf_counter()
            if start <= done < end:
                tally.latencies_s.append(done - begun)
                tally.requests += mine.requests
                tally.timings += mine.timings
            if load.gap_s:
                await asyncio.sleep(load.gap_s)
    finally:
        connection.close()


async def _drive(load: Load) -> Outcome:
    side = (_peer if load.side == "peer" else _product)(load)
    tally = Tally()
    start = time.perf_counter() + load.warm_s
    cpu = 0.0

    async def mark() -> None:
        nonlocal cpu
        await asyncio.sleep(load.warm_s)
        cpu = _cpu_s()
        await asyncio.sleep(load.measured_s)
        cpu = _cpu_s() - cpu

    async with asyncio.TaskGroup() as group:
        group.create_task(mark())
        for n in range(load.clients):
            group.create_task(_client(n, load, side, tally, (start, start + load.measured_s)))
    return _outcome(load, tally, cpu)


def _outcome(load: Load, tally: Tally, cpu_s: float) -> Outcome:
    done = len(tally.latencies_s)
    if not done:
        raise BenchmarkError(f"no job of {load.side} ended within {load.measured_s} s")
    p50, p90, p95, p99 = (float(v) for v in np.percentile(np.array(tally.latencies_s) * 1e3, [50, 90, 95, 99]))
    stages = {k for t in tally.timings for k, v in t.items() if isinstance(v, int | float)}
    return Outcome(
        jobs=done,
        jobs_per_s=done / load.measured_s,
        rows_per_s=done * load.rows / load.measured_s,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        requests_per_job=tally.requests / done,
        client_cpu_ms_per_job=cpu_s * 1e3 / done,
        timings_ms={k: float(np.median([t.get(k) or 0.0 for t in tally.timings])) for k in sorted(stages)},
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def drive(load: Load) -> Outcome:
    """Run the load in a process of its own and give its outcome.

    Raises:
        BenchmarkError: an answer was an error or wrong, or none came.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"], input=msgspec.json.encode(load), capture_output=True, cwd=ROOT,
        timeout=load.warm_s + load.measured_s + JOB_S + 30, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"the load on {load.side} failed:\n{done.stderr.decode(errors='replace')[-1500:]}")
    return msgspec.json.decode(done.stdout, type=Outcome)


def main() -> None:
    import uvloop

    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_drive(load))))


if __name__ == "__main__":
    main()
