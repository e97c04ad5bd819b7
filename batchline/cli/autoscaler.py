"""autoscaler: run it here, check its file, ask what it wants and why, record what arrived, simulate a policy on it."""

from __future__ import annotations

import csv
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast

import typer

from batchline.cli.output import Json, group, note, seconds, tell, tell_json, tell_table
from batchline.cli.places import load_settings, open_client, opened_store
from batchline.cli.processes import become
from batchline.errors import InvalidRequestError

app = group("Run the autoscaler here, or ask it.", alone=True)

_STALE_S = 150.0
"""It tells of itself once a minute."""
_SPAN = re.compile(r"(\d{1,6})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@app.callback()
def run(context: typer.Context) -> None:
    """Run the autoscaler here; `autoscaler status` says what one wants now."""
    if context.invoked_subcommand is None:
        become("autoscaler")


@app.command()
def status(*, as_json: Json = False) -> None:
    """How many workers are wanted now, and why; what there is."""
    with open_client() as client:
        told = cast("dict[str, Any]", client.request("GET", "/v1/autoscaler"))
    if as_json:
        tell_json(told)
        return
    pools = cast("dict[str, dict[str, Any]]", told["pools"])
    for name, pool in pools.items():
        seen, allowed = pool["signals"], pool["limits"]
        if pool["desired"] is None:
            tell(f"pool {name}: nobody decides on it")
            continue
        most = f" of at most {allowed['max_workers']:.0f}" if allowed else ""
        work = f" ({seen['queued_work_s']:.0f} s of one worker)" if seen.get("queued_work_s") else ""
        tell(
            f"pool {name}: {seen['workers']:.0f} workers ({seen['pending']:.0f} more starting,"
            f" {seen['draining']:.0f} draining), {pool['desired']} wanted{most} ({pool['reason']});"
            f" {seen['queued_rows']:.0f} rows queued{work}, the oldest for {seconds(seen['oldest_age_s'])}"
        )
        if (budget := pool.get("budget")) and budget["standing"] != "well":
            held = f"; batches wait until {budget['bulk_held_until']}" if budget["bulk_held_until"] else ""
            note(f"pool {name}: {budget['spent_today']:.2f} of {budget['per_day']:g} for today is spent{held}")
        if pool["age_s"] > _STALE_S:
            note(f"pool {name}: this was decided {seconds(pool['age_s'])} ago; does the autoscaler still run?")
    if not pools:
        note("no autoscaler has decided anything lately; `batchline autoscaler` runs one here")
    if told["instances"]:
        tell_table(
            ["instance", "status", "pool", "provider", "kind", "zone", "age", "workers", "running", "why"],
            [(i["id"], i["status"], i["pool"], i["provider"], i["kind"], i["zone"], seconds(i["age_s"]), i["workers"],
              i["running"], i["reason"]) for i in told["instances"]],
        )  # fmt: skip


@app.command()
def check(
    file: Annotated[
        str, typer.Argument(help="A configuration; the one that BATCHLINE_AUTOSCALER names without it.")
    ] = "",
    *,
    as_json: Json = False,
) -> None:
    """Whether its configuration works; exit 1 if it is refused.

    Reads the file and asks the providers, as at start: region, permissions, image, types. Exit 2 if nothing is wrong as
    far as could be asked, but somebody did not answer.
    """
    become("autoscaler", "check", *([file] if file else []), *(["--json"] if as_json else []))


@app.command()
def record(
    *,
    pool: Annotated[str, typer.Option(help="Only what its models were asked; all pools without it.")] = "",
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d; or a time, 2026-11-22T06:00Z.")] = "24h",
    as_json: Json = False,
) -> None:
    """Write what arrived as CSV, for `autoscaler simulate --trace`."""
    from batchline.store.arrivals import arrivals

    end = datetime.now(UTC)
    start = _start(since, end)
    with opened_store(load_settings()) as store:
        found = [(a.at_s, a.rows, a.due_s) for a in arrivals(store.db, start=start, end=end, pool=pool or None)]
    if not found:
        whose = f" for the pool {pool}" if pool else ""
        raise InvalidRequestError(f"Nothing has arrived{whose} since {start:%Y-%m-%d %H:%M} UTC, as far as it is kept.")
    if as_json:
        tell_json([{"at_s": at_s, "rows": rows, "due_s": due_s} for at_s, rows, due_s in found])
        return
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["at_s", "rows", "due_s"])
    out.writerows((f"{at_s:.1f}", rows, "" if due_s is None else f"{due_s:.1f}") for at_s, rows, due_s in found)
    note(f"{sum(rows for _, rows, _ in found):,} rows since {start:%Y-%m-%d %H:%M} UTC")


def _start(since: str, end: datetime) -> datetime:
    if span := _SPAN.fullmatch(since):
        return end - timedelta(**{_UNITS[span[2]]: int(span[1])})
    try:
        start = datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter("use 90m, 24h, 7d, or a time as 2026-11-22T06:00Z", param_hint="--since") from None
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    if start >= end:
        raise typer.BadParameter("is in the future", param_hint="--since")
    return start


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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
    become("autoscaler.simulate", *chosen, *(["--json"] if as_json else []), *context.args)
