"""webhooks deliveries, show, replay, endpoints, enable, secret, rotate."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from batchline.cli.output import Json, group, note, tell, tell_json, tell_table
from batchline.cli.places import open_client

if TYPE_CHECKING:
    from batchline.client.webhooks import Secret

app = group("Messages about the ends of jobs and batches: what was delivered, again, the secret.")

Delivery = Annotated[str, typer.Argument(metavar="ID", help="The delivery's id, msg_….")]
Url = Annotated[str | None, typer.Option("--webhook", metavar="URL", help="Where to post a message about the end.")]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", help="Of what the message is wanted, as job.failed; may be repeated. None: of any end."),
]


def asked(url: str | None, events: list[str] | None) -> dict[str, object] | None:
    """The webhook of a submit, from its options."""
    if url is None and events:
        raise typer.BadParameter("belongs to --webhook URL", param_hint="--event")
    return None if url is None else {"url": url, "events": events or []}


@app.command()
def deliveries(
    *,
    status: Annotated[
        Literal["pending", "delivered", "failed", "disabled"] | None, typer.Option(help="Only what stands so.")
    ] = None,
    event: Annotated[str | None, typer.Option(help="Only of this, as job.failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List messages, newest first."""
    with open_client() as client:
        found = client.webhooks.deliveries(status=status, event=event, limit=limit)
    if as_json:
        tell_json(found)
        return
    tell_table(
        ["id", "event", "status", "about", "attempts", "next", "url"],
        [(d.id, d.event, d.status, d.subject_id, d.attempt_count, _time(d.next_attempt_at), d.url) for d in found],
    )


@app.command()
def show(delivery: Delivery, *, as_json: Json = False) -> None:
    """Show a message and every attempt to deliver it."""
    with open_client() as client:
        found = client.webhooks.get(delivery)
    if as_json:
        tell_json(found)
        return
    tell(f"{found.id} {found.event} {found.status}: {found.subject_id} to {found.url}")
    if found.next_attempt_at:
        tell(f"next attempt at {_time(found.next_attempt_at)}")
    tell_table(
        ["attempt", "ended", "answer", "error", "ms"],
        [(a.nth, _time(a.at), a.status_code, a.error, a.duration_ms) for a in found.attempts],
    )


@app.command()
def replay(delivery: Delivery, *, as_json: Json = False) -> None:
    """Send a message again, now and under the same id."""
    with open_client() as client:
        found = client.webhooks.replay(delivery)
    tell_json(found) if as_json else tell(f"{found.id} {found.status}")


@app.command()
def endpoints(*, as_json: Json = False) -> None:
    """List the URLs that jobs and batches named."""
    with open_client() as client:
        found = client.webhooks.endpoints()
    if as_json:
        tell_json(found)
        return
    tell_table(
        ["id", "url", "enabled", "disabled", "why"],
        [(e.id, e.url, "yes" if e.enabled else "no", _time(e.disabled_at), e.disabled_why) for e in found],
    )


@app.command()
def enable(
    endpoint: Annotated[str, typer.Argument(metavar="ID", help="From `webhooks endpoints`.")], *, as_json: Json = False
) -> None:
    """Send messages to an endpoint again.

    Those that it missed are sent by `webhooks replay`.
    """
    with open_client() as client:
        found = client.webhooks.enable(endpoint)
    tell_json(found) if as_json else tell(f"{found.id} is enabled.")


@app.command()
def secret(*, as_json: Json = False) -> None:
    """Print what messages are signed with."""
    with open_client() as client:
        _tell_secret(client.webhooks.secret(), as_json=as_json)


@app.command()
def rotate(*, as_json: Json = False) -> None:
    """Sign with a new secret and print it.

    The one before signs beside it for 24 hours.
    """
    with open_client() as client:
        _tell_secret(client.webhooks.rotate(), as_json=as_json)


def _tell_secret(found: Secret, *, as_json: bool) -> None:
    if as_json:
        tell_json(found)
        return
    tell(found.secret)
    if found.previous:
        note(f"The one before signs too until {_time(found.previous_until)}.")


def _time(at: datetime | None) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else ""
