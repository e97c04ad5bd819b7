"""The `batchline` command.

Commands import what they need when they run, so that `--help` and completion are quick. Exit codes: 0 ok, 1 failed,
2 wrong usage. With --json one JSON document goes to stdout and nothing else does; errors always go to stderr.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from batchline.cli import (
    autoscaler,
    batch,
    costs,
    doctor,
    init,
    jobs,
    keys,
    load,
    models,
    operate,
    processes,
    schedules,
    stack,
    webhooks,
)
from batchline.cli.output import group, tell, tell_error
from batchline.errors import BatchlineError

app = group("Asynchronous batch inference: submit rows, get an id at once, poll the result.", name="batchline")


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        tell(f"batchline {version('batchline')}")
        raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
]


@app.callback()
def _options(*, version: _Version = False) -> None: ...


for _command in (
    *(stack.up, stack.down, stack.status, doctor.doctor),
    *(jobs.submit, jobs.wait, jobs.jobs, jobs.cancel),
    *(operate.workers, costs.costs, init.migrate, load.load),
    *(processes.api, processes.worker, processes.scheduler),
):
    app.command()(_command)
app.add_typer(autoscaler.app, name="autoscaler")
app.add_typer(batch.app, name="batch")
app.add_typer(schedules.app, name="schedules")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(init.app, name="init")


def main() -> None:
    """The entry point."""
    # A library's warning on stderr is no help to whoever typed a command; `tell_error` speaks for all.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        app(prog_name="batchline")
    except BatchlineError as e:
        tell_error(e)
        sys.exit(1)
