"""A bar on a terminal while a batch runs: rows done, rows/s, what is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from batchline.client.batch_results import BatchInfo


@contextmanager
def watching(progress: bool | Callable[[BatchInfo], object]) -> Generator[Callable[[BatchInfo], object]]:
    """What to call with each news of a batch: the caller's own, a bar on stderr if that is a terminal, or nothing."""
    if callable(progress):
        yield progress
    elif progress and sys.stderr.isatty():
        with _bar() as tell:
            yield tell
    else:
        yield lambda _: None


@contextmanager
def _bar() -> Generator[Callable[[BatchInfo], object]]:
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - as above

    columns = (
        TextColumn("{task.fields[status]}"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.fields[shown]} rows"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, status="", shown="?", rate="")

        def tell(info: BatchInfo) -> None:
            rows = info.rows
            done = rows.total - rows.queued - rows.running
            total, shown = (rows.total, f"{rows.total:,}") if rows.total else (None, "?")
            status = "paused" if info.paused_at and not info.is_finished else info.status.value
            bar.update(task, completed=done, total=total, status=status, shown=shown, rate=rate(info))

        yield tell


def rate(info: BatchInfo) -> str:
    """`12,000 rows/s, 40 s left`; empty while nothing is measured."""
    if not info.rows_per_s:
        return ""
    left = "" if info.eta_s is None else f", {_left(info.eta_s)} left"
    return f"{info.rows_per_s:,.0f} rows/s{left}"


def _left(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
