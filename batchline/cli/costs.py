"""costs: what machines cost and for whom, what spot saves, what one job cost, what AWS says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast
from urllib.parse import quote, urlencode

import typer

from batchline.cli.output import Json, note, seconds, tell, tell_json, tell_table
from batchline.cli.places import open_client
from batchline.cli.processes import become

_UNKNOWN = "not known: it has not ended, its worker has not told yet, its result is deleted, or nothing has a price"


def costs(
    *,
    by: Annotated[Literal["tenant", "model", "batch", "pool", "day"], typer.Option(help="What lines are told by.")] = (
        "tenant"
    ),
    since: Annotated[str | None, typer.Option("--from", help="A date or time (UTC); midnight before --to.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="A date or time (UTC); now, if absent.")] = None,
    job: Annotated[str | None, typer.Option(metavar="ID", help="Of this job alone.")] = None,
    aws: Annotated[bool, typer.Option("--aws", help="What AWS's Cost Explorer says, day by day, and its forecast.")] = (
        False
    ),
    as_json: Json = False,
) -> None:
    """Show what machines cost, and for whom.

    The lines add up: what no job had is a line of its own. For example:

    batchline costs --by model --from 2026-11-01 --to 2026-11-08
    """
    given = (("--from", _instant("--from", since)), ("--to", _instant("--to", until)))
    if aws:
        span = [word for option, at in given if at for word in (option, at)]
        become("autoscaler.cost_explorer", *span, *(["--json"] if as_json else []))
    with open_client() as client:
        if job is not None:
            _tell_job(
                cast("dict[str, Any]", client.request("GET", f"/v1/jobs/{quote(job, safe='')}/cost")), as_json=as_json
            )
            return
        query = urlencode({"by": by} | {option.removeprefix("--"): at for option, at in given if at})
        found = cast("dict[str, Any]", client.request("GET", f"/v1/costs?{query}"))
    if as_json:
        tell_json(found)
        return
    tell_table(
        [by, "workers' time", "cost", "on demand"],
        [(_name(by, line), seconds(line["worker_s"]), _money(line["cost"]), _money(line["on_demand"]))
         for line in found["data"]],
    )  # fmt: skip
    total = found["total"]
    saved = f", {_money(total['saved'])} less than on demand" if total["saved"] > 0 else ""
    note(
        f"{_money(total['cost'])}{saved}: {total['machines']} machines for {seconds(total['machine_s'])},"
        f" {found['from'][:16]} to {found['to'][:16]} UTC"
    )
    if not total["cost"] and total["machine_s"]:
        note("nothing has a price: set price_per_hour of the pool in the autoscaler's configuration")


def _instant(option: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("use a date or a time, as 2026-11-22 or 2026-11-22T06:00", param_hint=option) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()


def _tell_job(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        tell_json(found)
    elif found["cost"] is None:
        note(f"{found['id']}: {_UNKNOWN}")
    else:
        tell(f"{found['id']} {_money(found['cost'])} ({found['worker_s'] * 1000:.3g} ms of {found['machine']})")


def _name(by: str, line: dict[str, Any]) -> str:
    key = line["key"] or ""
    if line["idle"]:
        return f"{key} (idle)".strip()
    return key or ("(no batch)" if by == "batch" else "(all others)")


def _money(value: float) -> str:
    """In the currency of the prices; four places, or as many as a small amount needs."""
    return f"{value:.4f}" if value >= 0.01 or not value else f"{value:.3g}"
