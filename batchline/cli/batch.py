"""batch create, status, wait, results, cancel, pause, resume, retry, list."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from batchline.batch import BatchStatus
from batchline.cli.output import Json, group, note, seconds, tell, tell_json, tell_table
from batchline.cli.places import open_client
from batchline.cli.webhooks import Events, Url, asked

if TYPE_CHECKING:
    from batchline.client import Batch, BatchInfo
    from batchline.client.batch_calls import BatchOptions

app = group("Score whole data sets: files, S3, tables.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0.0, help="Seconds to wait at most.")]
Format = Literal["jsonl", "csv", "parquet"]
TABLE = "table:"


@app.command()
def create(
    model: Annotated[str, typer.Argument(help="The model's name, or NAME@VERSION.")],
    *,
    source: Annotated[str, typer.Option("--input", help="A URI, table:NAME, a file here, or - for stdin.")],
    form: Annotated[Format | None, typer.Option("--format", help="Of the input, where its name does not tell.")] = None,
    key: Annotated[str | None, typer.Option(help="The column that names a row.")] = None,
    columns: Annotated[str | None, typer.Option(help="What the model reads: A,B,C in this order.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="'COLUMN OP VALUE', for a table; may be repeated, all must hold.")
    ] = None,
    database: Annotated[str | None, typer.Option(help="The operator's name for the tables' database.")] = None,
    output: Annotated[str | None, typer.Option(help="A folder's URI, or table:NAME; else see `batch results`.")] = None,
    output_format: Annotated[Format | None, typer.Option(help="Of the files in the folder.")] = None,
    mode: Annotated[
        Literal["upsert", "append", "replace"] | None, typer.Option(help="How a table is written to.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Columns of the input that are joined to the output: A,B.")] = None,
    error_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of bad rows that fails it.")
    ] = None,
    priority: Annotated[int, typer.Option(min=0, max=9, help="0 is first, 9 is last.")] = 5,
    ttl_s: Annotated[float | None, typer.Option("--ttl", min=0.001, help="Seconds; then what is left expires.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Two batches with one key are one.")] = None,
    webhook: Url = None,
    event: Events = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit 1 unless it completed.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a batch.

    Prints its id. For example:

    batchline batch create churn --input users.parquet --key user_id --wait

    batchline batch create churn --input table:users --key id --output table:scores --mode upsert
    """
    name, _, version = model.partition("@")
    given: dict[str, object] = {
        "key": key, "columns": _names(columns), "keep": _names(keep), "version": version or None, "ttl_s": ttl_s,
        "error_threshold": error_threshold, "idempotency_key": idempotency_key, "priority": priority, "format": form,
        "where": [_condition(text) for text in where or ()] or None, "output_format": output_format,
        "output": _table(output, database, mode) if output and output.startswith(TABLE) else output,
        "webhook": asked(webhook, event),
    }  # fmt: skip
    if mode and not (output or "").startswith(TABLE):
        raise typer.BadParameter("belongs to a table: --output table:NAME", param_hint="--mode")
    options: BatchOptions = {n: value for n, value in given.items() if value is not None}  # pyright: ignore[reportAssignmentType]
    with open_client() as client, _read(source, form, database) as data:
        batch = client.batch(name, data, **options)
        if not wait:
            tell_json(batch.info) if as_json else tell(batch.id)
            return
        note(batch.id)
        _wait(batch, None, as_json=as_json)


@app.command()
def status(batch_id: Id, *, as_json: Json = False) -> None:
    """Show how far a batch is."""
    with open_client() as client:
        _tell(client.get_batch(batch_id).info, as_json=as_json)


@app.command()
def wait(batch_id: Id, *, timeout_s: Timeout = None, as_json: Json = False) -> None:
    """Wait for a batch to end.

    On a terminal with a bar, rows/s and the time that is left. Exit 1 unless it completed.
    """
    with open_client() as client:
        _wait(client.get_batch(batch_id), timeout_s, as_json=as_json)


@app.command()
def results(batch_id: Id, *, as_json: Json = False) -> None:
    """Print the rows, one JSON value a line.

    Follows a batch that runs to its end. Rows without an output are {"row", "error": {"code", "message"}}.
    """
    with open_client() as client:
        rows = (_row(row) for row in client.get_batch(batch_id).results())
        try:
            if as_json:
                tell_json(list(rows))
            else:
                for row in rows:
                    tell_json(row)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command()
def cancel(batch_id: Id, *, as_json: Json = False) -> None:
    """Cancel what has not run; finished rows stay."""
    with open_client() as client:
        _tell(client.get_batch(batch_id).cancel(), as_json=as_json)


@app.command()
def pause(batch_id: Id, *, as_json: Json = False) -> None:
    """Begin no further slices of a batch."""
    with open_client() as client:
        _tell(client.get_batch(batch_id).pause(), as_json=as_json)


@app.command()
def resume(batch_id: Id, *, as_json: Json = False) -> None:
    """Let a paused batch go on."""
    with open_client() as client:
        _tell(client.get_batch(batch_id).resume(), as_json=as_json)


@app.command()
def retry(batch_id: Id, *, as_json: Json = False) -> None:
    """Run what failed, was cancelled or expired again.

    Prints the id of the new batch.
    """
    with open_client() as client:
        child = client.get_batch(batch_id).retry()
    tell_json(child.info) if as_json else tell(child.id)


@app.command("list")
def list_batches(
    *, limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20, as_json: Json = False
) -> None:
    """List batches, newest first."""
    with open_client() as client:
        found = list(client.batches(limit=limit))
    if as_json:
        tell_json(found)
        return
    tell_table(
        ["id", "status", "model", "rows", "done", "failed", "created", "took"],
        [(b.id, _status(b), f"{b.model}@{b.version}" if b.model else "", f"{b.rows.total:,}", f"{b.rows.succeeded:,}",
          f"{b.rows.failed:,}" if b.rows.failed else "", _time(b.created_at), _took(b)) for b in found],
    )  # fmt: skip


def _wait(batch: Batch, timeout_s: float | None, *, as_json: bool) -> None:
    done = batch.wait(timeout_s, progress=True)
    _tell(done, as_json=as_json)
    if done.status is not BatchStatus.COMPLETED:
        raise typer.Exit(1)


def _tell(info: BatchInfo, *, as_json: bool) -> None:
    from batchline.client.progress import rate

    if as_json:
        tell_json(info)
        return
    rows = info.rows
    parts = [(n, getattr(rows, n)) for n in ("succeeded", "failed", "cancelled", "expired", "running", "queued")]
    counts = ", ".join(f"{count:,} {name}" for name, count in parts if count)
    took = f" in {_took(info)}" if info.ended_at else ""
    tell(f"{info.id} {_status(info)}{took}")
    tell(f"  rows: {rows.total:,}{f' ({counts})' if counts else ''}")
    if rate(info) and not info.is_finished:
        tell(f"  speed: {rate(info)}")
    if info.cost is not None:
        tell(f"  cost: {info.cost:.4g}")
    for fault in info.faults:
        line = f"line {fault.line}: " if fault.line is not None else ""
        tell(f"  {fault.code}: {line}{fault.message}")


def _status(info: BatchInfo) -> str:
    return "paused" if info.paused_at and info.status is BatchStatus.IN_PROGRESS else info.status.value


def _row(row: object) -> object:
    from batchline.client import RowError

    if isinstance(row, RowError):
        return {"row": row.row, "error": {"code": row.code, "message": row.message}}
    return row


def _time(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def _took(info: BatchInfo) -> str:
    return seconds(info.ended_at - info.created_at) if info.ended_at else ""


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


def _table(text: str, database: str | None, mode: str | None) -> dict[str, object]:
    table: dict[str, object] = {"table": text.removeprefix(TABLE)}
    return table | {n: v for n, v in (("database", database), ("mode", mode)) if v is not None}


_NULLS = ("is not null", "is null")
_OPERATORS = ("<=", ">=", "!=", "=", "<", ">", "in")


def _condition(text: str) -> Sequence[object]:
    """`age >= 3`, `country in AT,DE`, `name is null`; values as texts, which the column's type reads."""
    for operator in _NULLS:
        if text.lower().endswith(f" {operator}"):
            return [text[: -len(operator) - 1].strip(), operator]
    column, _, rest = text.strip().partition(" ")
    operator, _, value = rest.strip().partition(" ")
    if operator not in _OPERATORS or not value:
        raise typer.BadParameter(
            f"{text!r} is no condition: write 'COLUMN OP VALUE', OP one of {' '.join(_OPERATORS)}, or 'COLUMN is null'",
            param_hint="--where",
        )
    return [column, operator, [v.strip() for v in value.split(",")] if operator == "in" else value.strip()]


@contextmanager
def _read(source: str, form: str | None, database: str | None) -> Generator[object]:
    """What the SDK takes for `--input`; stdin goes through a temporary file, whatever its size."""
    import tempfile

    from batchline.client.calls import Upload

    if source.startswith(TABLE):
        yield _table(source, database, None)
    elif source == "-":
        with tempfile.NamedTemporaryFile(prefix="batchline-") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
            yield Upload(f"stdin.{form or 'jsonl'}", Path(file.name))
    else:
        yield source
