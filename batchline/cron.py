"""Cron with time zones, pure: when a schedule fires, what it has missed, and its batch body with the time filled in.

What a cron line matches is cronsim's business, asked in wall time. What the clock's jumps do to it is decided here:

- Hours that are named (`30 2 * * *`, `0 */6 * * *`): a local time that is skipped in spring fires once, at the instant
  the clocks jump to; one that comes twice in autumn fires at the first.
- Every hour (`*/10 * * * *`): by the clock on the wall. Skipped minutes do not fire, repeated ones fire twice, so that
  the steps stay even.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from batchline.errors import Fault, InvalidRequestError

CatchUp = Literal["none", "last", "all"]
Overlap = Literal["skip", "queue", "allow"]

ON_TIME_S = 60.0
"""A fire time noticed no later than this has not been missed."""
_FALL_BACK = timedelta(hours=3)
"""No zone sets its clocks back by more at once."""
_FAR = datetime(2999, 1, 1, tzinfo=UTC)
_MAX_TEXT = 100


@dataclass(frozen=True, slots=True)
class Due:
    """What of a schedule is due: `fires` to run, oldest first, and what is passed over."""

    fires: list[datetime]
    missed: int
    """How many fire times are passed over, the first of them `since`; counted up to the limit."""
    next_at: datetime | None
    """The first fire time that is in neither; may have come already. None: never again."""


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    every_hour: bool


def check(cron: str, timezone: str) -> None:
    """Whether the line and the zone can be used.

    Raises:
        InvalidRequestError: with a fault for /cron, /timezone or both.
    """
    faults: list[Fault] = []
    try:
        line = _line(cron)
    except ValueError as e:
        line = None
        faults.append(Fault("/cron", str(e)))
    try:
        _zone(timezone)
    except ValueError as e:
        faults.append(Fault("/timezone", str(e)))
    if line is not None and next(_naive(line, datetime(2000, 1, 1)), None) is None:  # noqa: DTZ001
        faults.append(Fault("/cron", "names a day that never comes"))
    if faults:
        raise InvalidRequestError("The schedule does not fit.", faults=tuple(faults))


def next_after(cron: str, timezone: str, instant: datetime) -> datetime | None:
    """The first fire time after `instant`, in UTC; None when there is none until the year 2999.

    Args:
        cron: five fields, as cronsim reads them.
        timezone: a name of the IANA database.
        instant: aware.

    Raises:
        ValueError: `check` has not seen these.
    """
    line, zone = _line(cron), _zone(timezone)
    local = instant.astimezone(zone)
    # When the clocks go back soon, wall times before the present one come again.
    later = (instant + _FALL_BACK).astimezone(zone)
    back = max((local.utcoffset() or timedelta()) - (later.utcoffset() or timedelta()), timedelta())
    best: datetime | None = None
    for wall in _naive(line, local.replace(tzinfo=None) - back):
        instants = _instants(wall, zone, every_hour=line.every_hour)
        if best is not None and _first(wall, zone) >= best:
            break
        for found in instants:
            if found > instant and (best is None or found < best):
                best = found
    return best if best is None or best < _FAR else None


def due(cron: str, timezone: str, since: datetime, now: datetime, *, catch_up: CatchUp, limit: int) -> Due:
    """What to run of the fire times from `since` to `now`, both included.

    Args:
        cron: as for `next_after`.
        timezone: as for `next_after`.
        since: the first fire time that has not been dealt with.
        now: the database's clock; one that went back finds nothing due.
        catch_up: what becomes of fire times more than `ON_TIME_S` ago: none of them runs, the last one, or all.
        limit: most fire times of one answer; the rest is due with `next_at`.
    """
    if since > now:
        return Due([], 0, since)
    if catch_up == "all":
        fires, after = [since], next_after(cron, timezone, since)
        while after is not None and after <= now and len(fires) < limit:
            fires.append(after)
            after = next_after(cron, timezone, after)
        return Due(fires, 0, after)
    last = _last(cron, timezone, since, now)
    next_at = next_after(cron, timezone, last)
    runs = catch_up == "last" or (now - last).total_seconds() <= ON_TIME_S
    missed, at = 0, since
    while at is not None and (at < last or (at == last and not runs)) and missed < limit:
        missed, at = missed + 1, next_after(cron, timezone, at)
    return Due([last] if runs else [], missed, next_at)


def between(cron: str, timezone: str, start: datetime, end: datetime, *, limit: int) -> list[datetime]:
    """Fire times from `start` to before `end`, at most `limit`."""
    found: list[datetime] = []
    at = next_after(cron, timezone, start - timedelta(seconds=1))
    while at is not None and at < end and len(found) < limit:
        if at >= start:
            found.append(at)
        at = next_after(cron, timezone, at)
    return found


def _last(cron: str, timezone: str, since: datetime, now: datetime) -> datetime:
    """The last fire time up to `now`, at least `since`: looked for from ever farther back."""
    last, back = since, timedelta(minutes=2)
    at: datetime | None = None
    while now - back > since:
        at = next_after(cron, timezone, now - back)
        if at is not None and at <= now:
            break
        back *= 8
    else:
        at = since
    while at is not None and at <= now:
        last, at = at, next_after(cron, timezone, at)
    return last


@functools.lru_cache(maxsize=4096)
def _line(cron: str) -> _Line:
    if len(cron) > _MAX_TEXT or not cron.isascii() or len(cron.split()) != 5:
        raise ValueError("must be five fields: minute, hour, day of month, month, day of week")
    try:
        parsed = CronSim(cron, datetime(2000, 1, 1))  # noqa: DTZ001
    except (CronSimError, ValueError) as e:
        raise ValueError(f"cannot be read: {str(e)[:1].lower()}{str(e)[1:]}") from None
    return _Line(cron, every_hour=len(parsed.hours) == 24)


@functools.lru_cache(maxsize=1024)
def _zone(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (OSError, ValueError, KeyError):
        raise ValueError("is no time zone of the IANA database, like Europe/Berlin") from None


def _naive(line: _Line, after: datetime) -> Iterator[datetime]:
    """Wall times after a wall time, as if no clock ever jumped."""
    found = CronSim(line.text, after)
    try:
        yield from found
    except OverflowError:
        return


def _first(wall: datetime, zone: ZoneInfo) -> datetime:
    return wall.replace(tzinfo=zone).astimezone(UTC)


def _instants(wall: datetime, zone: ZoneInfo, *, every_hour: bool) -> list[datetime]:
    """When the clock on the wall shows this: once, twice, or never, and then named hours fire behind the gap."""
    first = _first(wall, zone)
    second = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if first == second:
        return [first]
    if first < second:
        return [first, second] if every_hour else [first]
    # In a gap, fold 0 counts by the clock before the jump and comes out behind it; the jump itself lies between.
    return [] if every_hour else [_jump(second, first, zone)]


def _jump(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The instant within (before, after] from which the offset is that of `after`; to the second."""
    wanted = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == wanted:
            after = middle
        else:
            before = middle
    return after


_DIRECTIVES = re.compile(r"(?:[^%]|%[YmdHMSyjabABGVuwIp%zZ])*", re.DOTALL)
_FORMAT_HELP = "%Y %m %d %H %M %S %y %j %a %b %A %B %G %V %u %w %I %p %z %Z %%"


def fill(template: object, fire_time: datetime, *, pointer: str = "") -> Any:
    """A batch body with `{fire_time:%Y-%m-%d}` filled in, wherever a text stands in it; keys stay as they are.

    Args:
        template: what JSON decodes to. `{{` and `}}` stand for braces; `{fire_time}` alone is ISO 8601.
        fire_time: aware, in the zone in which its parts are meant.
        pointer: where the template stands in the client's body.

    Raises:
        InvalidRequestError: with a fault for each text that names something else or is no template.
    """
    faults: list[Fault] = []
    filled = _fill(template, fire_time, pointer, faults)
    if faults:
        raise InvalidRequestError("The batch's templates cannot be filled in.", faults=tuple(faults))
    return filled


def _fill(value: object, at: datetime, pointer: str, faults: list[Fault]) -> object:
    if isinstance(value, str):
        if "{" not in value and "}" not in value:
            return value
        try:
            return "".join(_texts(value, at))
        except ValueError as e:
            faults.append(Fault(pointer, str(e)))
            return value
    if isinstance(value, dict):
        named = cast("dict[str, object]", value)
        return {k: _fill(v, at, f"{pointer}/{_escape(k)}", faults) for k, v in named.items()}
    if isinstance(value, list):
        return [_fill(v, at, f"{pointer}/{i}", faults) for i, v in enumerate(cast("list[object]", value))]
    return value


def _texts(text: str, at: datetime) -> Iterator[str]:
    """The pieces of a filled text.

    Raises:
        ValueError: why it cannot be filled; for people.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        raise ValueError("has a brace without its partner; write {{ and }} for braces themselves") from None
    for literal, name, form, conversion in parts:
        yield literal
        if name is None:
            continue
        if name != "fire_time" or conversion:
            raise ValueError(f"names {name[:40]!r}; there is only {{fire_time:%Y-%m-%d}}")
        if not form:
            yield at.isoformat()
        elif "%" in form and _DIRECTIVES.fullmatch(form) and "{" not in form:
            yield at.strftime(form)
        else:
            raise ValueError(f"has a form that is not known: use {_FORMAT_HELP}")


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
