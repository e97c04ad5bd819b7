"""models promote, traffic: which version takes a model's jobs, and how the versions do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from batchline.cli.output import Json, tell, tell_json, tell_table
from batchline.cli.places import open_client
from batchline.errors import InvalidRequestError

if TYPE_CHECKING:
    from batchline.client import Traffic

_Name = Annotated[str, typer.Argument(help="The model's name.")]


def promote(
    name: _Name,
    version: Annotated[str, typer.Argument(help="The version that is to be production.")],
    *,
    as_json: Json = False,
) -> None:
    """Make a version production: jobs that name none go to it.

    Versions that are imported later take no traffic until they are promoted. A canary or shadow of this very version
    ends; others stay.
    """
    with open_client() as client:
        now = client.traffic(name)
        canary = now.canary if now.canary and now.canary.version != version else None
        shadow = now.shadow if now.shadow != version else None
        set_ = client.set_traffic(
            name, version, canary=canary and canary.version, percent=canary and canary.percent, shadow=shadow
        )
    tell_json(set_) if as_json else _tell(set_)


def traffic(
    name: _Name,
    *,
    canary: Annotated[str | None, typer.Option(metavar="VERSION", help="Takes --percent of the jobs.")] = None,
    percent: Annotated[float | None, typer.Option(min=0, max=100, help="The canary's part; fractions too.")] = None,
    no_canary: Annotated[bool, typer.Option("--no-canary", help="End the canary: production takes all.")] = False,
    shadow: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Gets a copy of each job; no client sees it.")
    ] = None,
    no_shadow: Annotated[bool, typer.Option("--no-shadow", help="End the shadow.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="No rule: the highest version takes all.")] = False,
    as_json: Json = False,
) -> None:
    """Show or change who gets a model's jobs, and how they do.

    The first change pins production to the version that takes the jobs now; `models promote` changes it.
    """
    changes = (canary, percent, shadow) != (None, None, None) or no_canary or no_shadow
    _check(canary, percent, shadow, no_canary=no_canary, no_shadow=no_shadow, reset=reset, changes=changes)
    with open_client() as client:
        if reset:
            found = client.reset_traffic(name)
        elif changes:
            found = _changed(client.traffic(name), canary, percent, shadow, no_canary=no_canary, no_shadow=no_shadow)
            share = found.canary
            found = client.set_traffic(
                name, found.production, canary=share and share.version, percent=share and share.percent,
                shadow=found.shadow,
            )  # fmt: skip
        else:
            found = client.traffic(name)
    tell_json(found) if as_json else _tell(found)


def _check(
    canary: str | None, percent: float | None, shadow: str | None, *, no_canary: bool, no_shadow: bool, reset: bool,
    changes: bool,
) -> None:  # fmt: skip
    """Refuse what contradicts itself."""
    if no_canary and (canary, percent) != (None, None):
        raise typer.BadParameter("--no-canary ends the canary: leave --canary and --percent away.")
    if no_shadow and shadow is not None:
        raise typer.BadParameter("--no-shadow ends the shadow: leave --shadow away.")
    if reset and changes:
        raise typer.BadParameter("--reset removes the whole rule: give it alone.")


def _changed(
    now: Traffic, canary: str | None, percent: float | None, shadow: str | None, *, no_canary: bool, no_shadow: bool
) -> Traffic:
    """The rule as it is to be; what is not named stays."""
    from msgspec.structs import replace

    from batchline.client.results import Canary

    if no_canary:
        now = replace(now, canary=None)
    elif canary is not None or percent is not None:
        version = canary or (now.canary and now.canary.version)
        part = percent if percent is not None else now.canary and now.canary.percent
        if version is None or part is None:
            missing = "--canary VERSION" if version is None else "--percent P"
            raise InvalidRequestError(f"A canary has a version and a percent: add {missing}.")
        now = replace(now, canary=Canary(version, part))
    if no_shadow or shadow is not None:
        now = replace(now, shadow=shadow)
    return now


def _tell(found: Traffic) -> None:
    lately = found.lately
    canary, left = found.canary, 100.0 - (found.canary.percent if found.canary else 0.0)
    lines = [("production", found.production, f"{left:g} %", lately and lately.production)]
    if canary:
        lines.append(("canary", canary.version, f"{canary.percent:g} %", lately and lately.canary))
    if found.shadow:
        lines.append(("shadow", found.shadow, "copies", lately and lately.shadow))
    tell_table(
        ["role", "version", "jobs without version", "ended", "failed", "p50 ms", "p95 ms"],
        [
            (role, version, part, *(_shown(v) for v in (s.jobs, s.failed, s.p50_ms, s.p95_ms)))
            if s
            else (role, version, part, "", "", "", "")
            for role, version, part, s in lines
        ],
    )
    if found.updated_at is None:
        tell("No rule is set: the highest version takes all jobs that name none.")
    if lately and lately.compared and lately.compared.pairs:
        same = lately.compared
        tell(f"{same.agree} of {same.pairs} jobs that were compared came to the same in the shadow.")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
