"""Memory of API and worker over many jobs: flat once warm."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from typing import Self

import numpy as np

from benchmarks.harness import Bench, Goal, Report, Sample, durability
from benchmarks.load import drive
from benchmarks.processes import BenchmarkError, Process
from benchmarks.product import Product, product

SUMMARY = "RSS of an API and a worker process over 100,000 jobs through HTTP, after a warm-up of 20,000"
LOAD_S = 10.0
SAMPLE_S = 2.0
LIMIT_S = 900.0
WATCHED = ("api0", "worker0")
MIB = 2**20


class Watch:
    """Reads the RSS of processes every SAMPLE_S in a thread of its own, between start and end of the block."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self.samples: list[Sample] = []
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rss", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.perf_counter()
        while not self._over.wait(SAMPLE_S):
            sizes = {p.name: p.rss_bytes() / MIB for p in self._processes}
            self.samples.append({"at_s": time.perf_counter() - start, **sizes})


def growth(sizes: Sequence[float]) -> float:
    """Percent by which the median of the last fifth is above that of the first fifth."""
    fifth = max(1, len(sizes) // 5)
    return (statistics.median(sizes[-fifth:]) / statistics.median(sizes[:fifth]) - 1) * 100


def slope(at_s: Sequence[float], sizes: Sequence[float]) -> float:
    """Least-squares growth, in what sizes are in, per second."""
    return float(np.polyfit(at_s, sizes, 1)[0]) if len(sizes) > 1 else 0.0


def drive_jobs(bench: Bench, ours: Product, jobs: int) -> int:
    """Closed loop of 64 clients until so many jobs have ended; how many did."""
    done, until = 0, time.monotonic() + LIMIT_S
    while done < jobs:
        if time.monotonic() > until:
            raise BenchmarkError(f"only {done:,} of {jobs:,} jobs in {LIMIT_S:.0f} s")
        load = bench.load("product", ours.ports, key=ours.key, warm_s=0.0, measured_s=LOAD_S)
        done += drive(load).jobs
        bench.say(f"  {done:,} of {jobs:,} jobs")
    return done


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    with product(bench.digits, bench.folder / "rss") as ours:
        facts: dict[str, object] = {"postgres": durability(ours.database_url)}
        drive_jobs(bench, ours, bench.jobs // 5)
        processes = [p for p in ours.processes if p.name in WATCHED]
        with Watch(processes) as watch:
            done = drive_jobs(bench, ours, bench.jobs)
    facts |= {"jobs": done, "series": watch.samples}
    at_s = [s["at_s"] for s in watch.samples]
    sides: dict[str, list[Sample]] = {}
    report = Report("rss", sides, ("first_mib", "last_mib", "growth_percent", "kib_per_1000_jobs"), facts=facts)
    for process in processes:
        sizes = [s[process.name] for s in watch.samples]
        a_second = slope(at_s, sizes)
        sides[process.name] = [
            {
                "first_mib": statistics.median(sizes[: max(1, len(sizes) // 5)]),
                "last_mib": statistics.median(sizes[-max(1, len(sizes) // 5) :]),
                "growth_percent": growth(sizes),
                "kib_per_1000_jobs": a_second * at_s[-1] * 1024 / (done / 1000),
            }
        ]
        text = f"RSS of {process.name} over {done:,} jobs, last fifth over first"
        report.goals.append(Goal(text, growth(sizes), 5.0, at_least=False, unit="%"))
    return report
