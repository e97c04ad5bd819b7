"""api, worker, scheduler, autoscaler: become one of the processes, as containers run them."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from batchline.cli.output import Json, group
from batchline.cli.places import load_settings


def _become(module: str, *arguments: str, database_url: str = "") -> NoReturn:
    # -P: a folder `api/` where the command is typed must not be taken for ours.
    known = {"DATABASE_URL": database_url} if database_url else {}
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], os.environ | known)  # noqa: S606 - no shell is the point


def api() -> None:
    """Run an API process here.

    BATCHLINE_HOST and BATCHLINE_PORT say where it listens.
    """
    _become("api")


def worker() -> None:
    """Run a worker here.

    BATCHLINE_POOL, BATCHLINE_DEVICE and BATCHLINE_MODELS say what it serves, on what, from where.
    """
    _become("workers")


def scheduler() -> None:
    """Run a scheduler here; several may run, one leads."""
    _become("scheduler")


autoscaler = group("Run the autoscaler here, or ask it.", alone=True)


@autoscaler.callback()
def run_autoscaler(context: typer.Context) -> None:
    """Run the autoscaler here; `autoscaler status` says what it would do now."""
    if context.invoked_subcommand is None:
        _become("autoscaler")


@autoscaler.command()
def status(*, as_json: Json = False) -> None:
    """How many workers the queue wants now, and why."""
    found = load_settings()
    _become("autoscaler", "status", *(["--json"] if as_json else []), database_url=found.database_url)


@autoscaler.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def simulate(
    context: typer.Context,
    *,
    trace: Annotated[
        str, typer.Option(help="A CSV (at_s, rows, due_s), or day, flash, nightly, sawtooth, bursty.")
    ] = "day",
    policy: Annotated[
        list[str] | None, typer.Option(help="drain_time, queue, target_in_flight, keda; repeat it.")
    ] = None,
    wait_s: Annotated[float, typer.Option(help="Target of the p95 wait in seconds.")] = 60.0,
    plot: Annotated[str, typer.Option(help="Draw queue, workers and cost into this .png or .svg.")] = "",
    compare: Annotated[bool, typer.Option("--compare", help="Rivals at their best, and the lower bound.")] = False,
    as_json: Json = False,
) -> None:
    """What a policy would cost, how long rows would wait.

    More options say what workers are like: `python -m autoscaler.simulate --help`.
    """
    chosen = ["--trace", trace, "--wait-s", str(wait_s)]
    chosen += [word for name in policy or () for word in ("--policy", name)]
    chosen += [*(["--plot", plot] if plot else []), *(["--compare"] if compare else [])]
    _become("autoscaler.simulate", *chosen, *(["--json"] if as_json else []), *context.args)
