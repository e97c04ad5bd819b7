"""Traces: rows that arrive over time, batches with deadlines; from CSV or made by seeded generators."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from batchline.errors import InvalidRequestError

Floats = NDArray[np.float64]
DAY_S = 86_400
STEP_S = 5.0
_JOB_ROWS = 20.0
"""Rows of a job: what makes generated arrivals rougher than Poisson's."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Bulk rows, submitted at once, due at a time; seconds since the start of the trace."""

    at_s: float
    rows: float
    due_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """What arrives.

    Attributes:
        name: for tables.
        step_s: length of a step.
        online: [S] rows of the online lane that arrive within each step.
        batches: bulk work with deadlines, by time.
    """

    name: str
    step_s: float
    online: Floats
    batches: tuple[Batch, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.online) * self.step_s

    @property
    def rows(self) -> float:
        return float(self.online.sum()) + sum(b.rows for b in self.batches)

    def peak_rows_per_s(self, over_s: float = 300.0) -> float:
        """The highest rate of the online lane, averaged over some time."""
        n = max(1, round(over_s / self.step_s))
        return float(np.convolve(self.online, np.ones(n) / n, "valid").max() / self.step_s)


def load(path: Path, step_s: float = STEP_S) -> Trace:
    """A trace from CSV with the columns at_s, rows and due_s.

    at_s and due_s are seconds since any common start; due_s is empty for the online lane.

    Raises:
        InvalidRequestError: not such a file; says which line.
    """
    try:
        lines = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidRequestError(f"cannot read the trace {path}: {e}") from e
    online, batches = list[tuple[float, float]](), list[Batch]()
    try:
        for line in lines:
            at, rows, due = float(line["at_s"]), float(line["rows"]), line.get("due_s")
            if not (math.isfinite(at) and 0 <= rows < math.inf):
                raise ValueError
            if due:
                batches.append(Batch(at, rows, float(due)))
            else:
                online.append((at, rows))
    except (KeyError, ValueError, TypeError, csv.Error) as e:
        message = f"{path}, line {lines.line_num}: no numbers in columns at_s, rows and due_s"
        raise InvalidRequestError(message) from e
    if not online and not batches:
        raise InvalidRequestError(f"{path}: the trace is empty")
    start = min([at for at, _ in online] + [b.at_s for b in batches])
    end = max([at for at, _ in online] + [b.at_s for b in batches]) - start
    steps = np.zeros(math.floor(end / step_s) + 1)
    for at, rows in online:
        steps[math.floor((at - start) / step_s)] += rows
    moved = sorted((Batch(b.at_s - start, b.rows, b.due_s - start) for b in batches), key=lambda b: b.at_s)
    return Trace(path.stem, step_s, steps, tuple(moved))


def _arrivals(rates: Floats, rng: np.random.Generator) -> Floats:
    """Rows by step from [S] expected rows/s: a drift of ±10 % over about two minutes, and jobs at random."""
    noise, drift = rng.standard_normal(len(rates)), np.empty(len(rates))
    keep = math.exp(-STEP_S / 120.0)
    level = 0.0
    for n in range(len(rates)):
        level = keep * level + math.sqrt(1 - keep * keep) * float(noise[n])
        drift[n] = level
    jobs = rng.poisson(np.maximum(rates * (1 + 0.1 * drift), 0.0) * STEP_S / _JOB_ROWS)
    return jobs.astype(np.float64) * _JOB_ROWS


def _times() -> Floats:
    return np.arange(int(DAY_S / STEP_S), dtype=np.float64) * STEP_S


def day(load: float, seed: int) -> Trace:
    """A day of people: quiet at 4 h, busy at 16 h, five times as much."""
    rates = load * (1 + 2 / 3 * np.sin((_times() / DAY_S - 10 / 24) * 2 * math.pi))
    return Trace("day", STEP_S, _arrivals(rates, np.random.default_rng(seed)))


def flash(load: float, seed: int) -> Trace:
    """Steady, and six times a day ten times as much within a minute, fading with a time constant of eight minutes."""
    rng = np.random.default_rng(seed)
    at = _times()
    rates = np.full(len(at), 0.3 * load)
    for start in np.sort(rng.uniform(0.02, 0.95, 6)) * DAY_S:
        since = at - start
        rates += np.where(since >= 0, 3.0 * load * np.minimum(since / 60.0, np.exp(-(since - 60.0) / 480.0)), 0.0)
    return Trace("flash", STEP_S, _arrivals(rates, rng))


def nightly(load: float, seed: int) -> Trace:
    """A quiet day, a large batch at 1 h due at 5 h, a smaller one at 12 h due at 14 h."""
    rng = np.random.default_rng(seed)
    rates = 0.25 * load * (1 + 0.5 * np.sin((_times() / DAY_S - 10 / 24) * 2 * math.pi))
    hour = 3600.0
    batches = (Batch(hour, 1.5 * load * hour, 5 * hour), Batch(12 * hour, 0.6 * load * hour, 14 * hour))
    return Trace("nightly", STEP_S, _arrivals(rates, rng), batches)


def sawtooth(load: float, seed: int) -> Trace:
    """From a little up to the peak within 40 minutes, down at once, and again."""
    phase = (_times() % 2400.0) / 2400.0
    return Trace("sawtooth", STEP_S, _arrivals(load * (0.1 + 1.8 * phase), np.random.default_rng(seed)))


def bursty(load: float, seed: int) -> Trace:
    """On and off: bursts of about 8 minutes, nothing for about 12, both at random (exponential)."""
    rng = np.random.default_rng(seed)
    at = _times()
    rates = np.zeros(len(at))
    start = 0.0
    while start < DAY_S:
        start += rng.exponential(720.0)
        end = start + rng.exponential(480.0)
        rates[(at >= start) & (at < end)] = 1.5 * load
        start = end
    return Trace("bursty", STEP_S, _arrivals(rates, rng))


SHAPES: dict[str, Callable[[float, int], Trace]] = {
    "day": day,
    "flash": flash,
    "nightly": nightly,
    "sawtooth": sawtooth,
    "bursty": bursty,
}
"""Generators by name: (load in rows/s, about the mean of a busy day; seed) -> a day."""
