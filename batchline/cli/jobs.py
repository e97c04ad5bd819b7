"""submit, wait, jobs, cancel: work through the API."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from batchline.cli.output import Json, note, seconds, tell, tell_json, tell_table
from batchline.cli.places import open_client
from batchline.cli.webhooks import Events, Url, asked
from batchline.job import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchline.client import Client, Job

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0.0, help="Seconds to wait at most.")]


def submit(
    model: Annotated[str, typer.Argument(help="The model's name, or NAME@VERSION.")],
    *,
    rows: Annotated[str, typer.Option("--rows", help="A JSON array of rows, or - to read it from stdin.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and show it.")] = False,
    timeout_s: Timeout = None,
    priority: Annotated[int, typer.Option(min=0, max=9, help="0 is first, 9 is last.")] = 5,
    ttl_s: Annotated[float | None, typer.Option("--ttl", min=0.001, help="Seconds; not run if still queued.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Two submits with one key are one job.")] = None,
    webhook: Url = None,
    event: Events = None,
    as_json: Json = False,
) -> None:
    """Submit a job.

    Prints its id; with --wait its rows, one JSON value a line, and exit 1 if it failed. For example:

    batchline submit digits --rows '[[0, 5, ...]]' --wait
    """
    name, _, version = model.partition("@")
    inputs, told = read_rows(rows), asked(webhook, event)
    with open_client() as client:
        job = client.submit(
            name, inputs, version=version or None, priority=priority, ttl_s=ttl_s, idempotency_key=idempotency_key,
            webhook=told,
        )  # fmt: skip
        if not wait:
            tell_json(job) if as_json else tell(job.id)
            return
        done = _wait(client, [job.id], timeout_s)
        tell_json(done[0]) if as_json else _tell_result(client, done[0])
    _exit(done)


def read_rows(text: str) -> list[object]:
    """The rows of --rows, from stdin if it is `-`."""
    import msgspec

    try:
        inputs = msgspec.json.decode(sys.stdin.buffer.read() if text == "-" else text)
    except (msgspec.DecodeError, UnicodeError) as e:
        raise typer.BadParameter(f"this is no JSON: {e}", param_hint="--rows") from None
    if not isinstance(inputs, list):
        raise typer.BadParameter("give an array of rows, also for one row: '[ROW]'", param_hint="--rows")
    return inputs


def wait(ids: Ids, *, timeout_s: Timeout = None, as_json: Json = False) -> None:
    """Wait for jobs and show their rows.

    Exit 1 unless all succeeded.
    """
    with open_client() as client:
        done = _wait(client, ids, timeout_s)
        if as_json:
            tell_json(done)
        else:
            for job in done:
                _tell_result(client, job)
    _exit(done)


def jobs(
    *,
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    with open_client() as client:
        found = list(client.jobs(status=status, model=model, limit=limit))
    if as_json:
        tell_json(found)
        return
    tell_table(
        ["id", "status", "model", "rows", "failed", "created", "took"],
        [(j.id, j.status, f"{j.model}@{j.version}", j.rows, j.row_counts.failed or "",
          f"{j.created_at.astimezone():%Y-%m-%d %H:%M:%S}", _took(j)) for j in found],
    )  # fmt: skip


def cancel(ids: Ids, *, as_json: Json = False) -> None:
    """Cancel jobs.

    One that has ended already is an error.
    """
    from batchline.cli.output import tell_error
    from batchline.errors import BatchlineError

    cancelled: list[Job] = []
    with open_client() as client:
        for job_id in ids:
            try:
                cancelled.append(client.cancel(job_id))
            except BatchlineError as e:
                note(f"{job_id}:")
                tell_error(e)
    if as_json:
        tell_json(cancelled)
    else:
        for job in cancelled:
            tell(f"{job.id} {job.status}")
    if len(cancelled) < len(ids):
        raise typer.Exit(1)


def _wait(client: Client, ids: Sequence[str], timeout_s: float | None) -> list[Job]:
    """Wait for all of them; with a progress bar on a terminal."""
    import time

    until = None if timeout_s is None else time.monotonic() + timeout_s
    done: list[Job] = []
    # Waiting outlives a server that is away, so what is wrong from the start is looked for first.
    for job_id in ids:
        client.get(job_id)
    with _progress(len(ids)) as advance:
        for job_id in ids:
            left_s = None if until is None else max(0.0, until - time.monotonic())
            done.append(client.wait(job_id, left_s))
            advance()
    return done


@contextmanager
def _progress(total: int) -> Generator[Callable[[], object]]:
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("waiting for jobs"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _tell_result(client: Client, job: Job) -> None:
    """A line about the job on stderr, then one JSON value a row on stdout."""
    from batchline.client import RowError

    counts = job.row_counts
    why = f" ({job.code})" if job.code else ""
    note(f"{job.id} {job.status}{why}: {counts.succeeded} of {counts.total} rows, {_took(job)}")
    for row in client.rows(job):
        tell_json({"error": row} if isinstance(row, RowError) else row)


def _took(job: Job) -> str:
    return seconds((job.finished_at - job.created_at).total_seconds()) if job.finished_at else ""


def _exit(done: Sequence[Job]) -> None:
    if any(job.status is not Status.SUCCEEDED for job in done):
        raise typer.Exit(1)
