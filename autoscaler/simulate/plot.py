"""Draws a simulation: queue, workers and cost over time, as PNG or SVG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoscaler.simulate.engine import Result
from autoscaler.simulate.fluid import Bound
from autoscaler.simulate.trace import Floats, Trace
from batchline.errors import InvalidRequestError, SettingsError

_FORMATS = (".png", ".svg")
_POINTS = 2000
"""More than this along the time axis nobody can see."""


def draw(trace: Trace, results: list[Result], path: Path, least: Bound | None = None) -> None:
    """Four panels over hours: arrivals, queue, workers (dashed: with pending ones), cost.

    Args:
        trace: what arrived.
        results: a line each.
        path: ends in .png or .svg.
        least: the clairvoyant's workers, if known.

    Raises:
        InvalidRequestError: another kind of file.
        SettingsError: matplotlib is not installed.
    """
    if path.suffix not in _FORMATS:
        raise InvalidRequestError(f"cannot draw {path}: name a file that ends in {' or '.join(_FORMATS)}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as e:
        raise SettingsError("plots need matplotlib: pip install 'batchline[simulate]'") from e
    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    arriving, queue, workers, cost = figure.subplots(4, 1, sharex=True)
    arriving.plot(*_thin(trace.online / trace.step_s, trace.step_s), color="grey", linewidth=0.8)
    for batch in trace.batches:
        arriving.axvspan(batch.at_s / 3600, batch.due_s / 3600, alpha=0.15)
    for result in results:
        (line,) = queue.plot(*_thin(result.queue, result.step_s), label=result.policy, linewidth=0.9)
        colour = line.get_color()
        workers.plot(*_thin(result.live, result.step_s), color=colour, label=result.policy, linewidth=0.9)
        every = _thin(result.live + result.pending, result.step_s)
        workers.plot(*every, color=colour, linestyle="--", linewidth=0.5)
        cost.plot(*_thin(result.spent, result.step_s), color=colour, label=f"{result.policy}: {result.cost:.2f}")
    if least:
        workers.plot(*_thin(least.workers, least.step_s), color="black", label="lower bound", linewidth=0.7)
    arriving.set_title(f"{trace.name}: {trace.rows:,.0f} rows")
    for panel, label in ((arriving, "online rows/s"), (queue, "queued rows"), (workers, "workers"), (cost, "cost")):
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    workers.legend(loc="upper right", fontsize="small")
    cost.legend(loc="upper left", fontsize="small")
    cost.set_xlabel("hours")
    figure.savefig(path, dpi=110)


def _thin(values: Floats, step_s: float) -> tuple[Floats, Floats]:
    """Hours and means of so many steps that a plot can show them."""
    each = max(1, len(values) // _POINTS)
    kept = values[: len(values) // each * each].reshape(-1, each).mean(axis=1)
    return (np.arange(len(kept)) + 0.5) * each * step_s / 3600, kept
