"""api, worker, scheduler, autoscaler: become one of the processes, as containers run them."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from batchline.cli.output import Json, group, tell_json
from batchline.cli.places import open_client


def _become(module: str) -> NoReturn:
    # -P: a folder `api/` where the command is typed must not be taken for ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module])  # noqa: S606 - no shell is the point


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
    """Run the autoscaler here; `autoscaler status` asks what it decided last."""
    if context.invoked_subcommand is None:
        _become("autoscaler")


@autoscaler.command()
def status(*, as_json: Json = False) -> None:
    """What the autoscaler saw and decided last, and why."""
    with open_client() as client:
        answer = client.request("GET", "/v1/autoscaler")
    if not as_json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer)).decode() + "\n")
    else:
        tell_json(answer)
