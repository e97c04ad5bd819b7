"""schedules list, create, show, delete, enable, disable, run, backfill, runs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from batchline.cli.output import Json, counted, group, note, tell, tell_json, tell_table
from batchline.cli.places import open_client

if TYPE_CHECKING:
    from batchline.client import Client
    from batchline.client.schedules import Schedule, ScheduleRun

app = group("Batches that run by themselves.")

Which = Annotated[str, typer.Argument(metavar="SCHEDULE", help="The schedule's name or id.")]


@app.command("list")
def list_schedules(*, as_json: Json = False) -> None:
    """List schedules, oldest first."""
    with open_client() as client:
        found = client.schedules.list()
    if as_json:
        tell_json(found)
        return
    tell_table(
        ["id", "name", "cron", "timezone", "enabled", "next", "model"],
        [(s.id, s.name, s.cron, s.timezone, "yes" if s.enabled else "no", _time(s.next_fire_at),
          s.batch.get("model", "")) for s in found],
    )  # fmt: skip


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Unique among your schedules.")],
    *,
    cron: Annotated[str, typer.Option(help="'MINUTE HOUR DAY MONTH WEEKDAY'.")],
    batch: Annotated[str, typer.Option(help="A file with the body of POST /v1/batches, or - for stdin.")],
    timezone: Annotated[str, typer.Option(help="A name like Europe/Berlin.")] = "UTC",
    catch_up: Annotated[
        Literal["none", "last", "all"], typer.Option(help="What of the missed fire times runs.")
    ] = "last",
    overlap: Annotated[
        Literal["skip", "queue", "allow"], typer.Option(help="When a batch before has not ended.")
    ] = "skip",
    disabled: Annotated[bool, typer.Option("--disabled", help="It fires when it is enabled.")] = False,
    as_json: Json = False,
) -> None:
    """Make a schedule.

    Prints its id. Texts in the body may hold {fire_time:%Y-%m-%d}. For example:

    batchline schedules create nightly --cron "30 2 * * *" --timezone Europe/Berlin --batch churn.json
    """
    body = _body(batch)
    with open_client() as client:
        made = client.schedules.create(
            name, cron, body, timezone=timezone, catch_up=catch_up, overlap=overlap, enabled=not disabled
        )
    tell_json(made) if as_json else tell(made.id)
    if not as_json and made.next_fire_at:
        note(f"fires next at {_time(made.next_fire_at)}")


@app.command()
def show(schedule: Which, *, as_json: Json = False) -> None:
    """Show a schedule and its latest runs."""
    with open_client() as client:
        found = _find(client, schedule)
        runs = client.schedules.runs(found.id, limit=10)
    if as_json:
        tell_json({"schedule": found, "runs": runs})
        return
    tell(f"{found.id} {found.name}{'' if found.enabled else ' (disabled)'}")
    tell(f"  {found.cron} in {found.timezone}, catch_up {found.catch_up}, overlap {found.overlap}")
    tell(f"  next: {_time(found.next_fire_at) or 'never'}")
    _tell_runs(runs)


@app.command()
def delete(schedule: Which, *, as_json: Json = False) -> None:
    """Delete a schedule with its history; its batches stay."""
    with open_client() as client:
        found = _find(client, schedule)
        client.schedules.delete(found.id)
    if as_json:
        tell_json({"id": found.id, "deleted": True})
    else:
        note(f"{found.name} is deleted.")


@app.command()
def enable(schedule: Which, *, as_json: Json = False) -> None:
    """Let a schedule fire again, from now on."""
    _switch(schedule, enabled=True, as_json=as_json)


@app.command()
def disable(schedule: Which, *, as_json: Json = False) -> None:
    """Keep a schedule from firing."""
    _switch(schedule, enabled=False, as_json=as_json)


@app.command()
def run(schedule: Which, *, as_json: Json = False) -> None:
    """Run a schedule now; prints the batch's id."""
    with open_client() as client:
        done = client.schedules.run(_find(client, schedule).id)
    tell_json(done) if as_json else tell(done.batch_id or "")


@app.command()
def backfill(
    schedule: Which,
    *,
    start: Annotated[datetime, typer.Option("--from", help="The first fire time that may run.")],
    end: Annotated[datetime, typer.Option("--to", help="Fire times before this run.")],
    as_json: Json = False,
) -> None:
    """Run fire times of the past that have not run.

    Times without a zone are this machine's.
    """
    with open_client() as client:
        done = client.schedules.backfill(_find(client, schedule).id, start.astimezone(), end.astimezone())
    if as_json:
        tell_json(done)
        return
    _tell_runs(done.data)
    note(f"{counted(len(done.data), 'run')} begun, {done.known} known already")


@app.command()
def runs(
    schedule: Which,
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many, the latest first.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what a schedule has run."""
    with open_client() as client:
        found = client.schedules.runs(_find(client, schedule).id, limit=limit)
    tell_json(found) if as_json else _tell_runs(found)


def _switch(schedule: str, *, enabled: bool, as_json: bool) -> None:
    with open_client() as client:
        found = client.schedules.update(_find(client, schedule).id, enabled=enabled)
    if as_json:
        tell_json(found)
    else:
        note(f"{found.name} fires next at {_time(found.next_fire_at)}" if enabled else f"{found.name} is disabled.")


def _find(client: Client, text: str) -> Schedule:
    """By id, else by name."""
    from batchline.errors import NotFoundError

    if text.startswith("sched_"):
        return client.schedules.get(text)
    found = next((s for s in client.schedules.list() if s.name == text), None)
    if found is None:
        raise NotFoundError(f"There is no schedule named {text!r}.")
    return found


def _body(source: str) -> dict[str, object]:
    import msgspec

    try:
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return msgspec.json.decode(raw, type=dict[str, object])
    except OSError as e:
        raise typer.BadParameter(f"{source} cannot be read: {e.strerror}", param_hint="--batch") from None
    except msgspec.DecodeError as e:
        raise typer.BadParameter(f"{source} is not a JSON object: {e}", param_hint="--batch") from None


def _tell_runs(found: list[ScheduleRun]) -> None:
    tell_table(
        ["fire time", "outcome", "batch", "status", "why"],
        [(_time(r.fire_at), r.outcome, r.batch_id, r.batch_status, r.detail) for r in found],
    )


def _time(at: datetime | None) -> str:
    return f"{at.astimezone(UTC).astimezone():%Y-%m-%d %H:%M:%S}" if at else ""
