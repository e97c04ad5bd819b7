"""Cron: fire times across the nights on which clocks jump, what is caught up, and templates."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline import cron
from batchline.errors import InvalidRequestError

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # jumps at midnight
    "America/Santiago",  # skips midnight
    "Australia/Lord_Howe",  # jumps by half an hour
    "Antarctica/Troll",  # jumps by two hours
    "Asia/Kathmandu",
    "Pacific/Apia",
]
LINES = [
    "* * * * *",
    "*/10 * * * *",
    "15 * * * *",
    "0 0 * * *",
    "30 2 * * *",
    "0,30 1-3 * * *",
    "0 */6 * * *",
    "*/20 0 * * *",
    "5 4 * * MON-FRI",
    "0 3 L * *",
]
STEP = timedelta(minutes=1)

instants = st.integers(0, 2 * 365 * 24 * 60).map(lambda m: datetime(2026, 1, 1, tzinfo=UTC) + m * STEP)
zones, lines = st.sampled_from(ZONES), st.sampled_from(LINES)


def jumps(zone: str) -> list[datetime]:
    """The instants of a year from which a zone's offset differs."""
    hours = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=30 * n) for n in range(2 * 24 * 365)]
    offsets = [h.astimezone(ZoneInfo(zone)).utcoffset() for h in hours]
    return [b for b, (x, y) in zip(hours[1:], itertools.pairwise(offsets), strict=True) if x != y]


def fires(line: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    found, at = [], cron.next_after(line, zone, start)
    while at is not None and at < end:
        found.append(at)
        at = cron.next_after(line, zone, at)
    return found


near_jumps = st.sampled_from([(z, j) for z in ZONES for j in jumps(z)])


@settings(max_examples=300, deadline=None)
@given(lines, near_jumps, st.integers(-300, 300), st.integers(0, 100))
def test_the_next_fire_time_is_the_same_from_wherever_one_asks_before_it(line, night, minutes, share):
    """Fire times are one ordered set: from any instant before the next one, that is the next, in DST nights too."""
    zone, jump = night
    start = jump + minutes * STEP
    at = cron.next_after(line, zone, start)
    assert at is not None
    assert at > start
    between = start + (at - start) * share / 101
    assert cron.next_after(line, zone, between) == at


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["* * * * *", "*/10 * * * *", "15 * * * *", "7,37 * * * *"]), near_jumps)
def test_every_hour_lines_fire_whenever_the_clock_on_the_wall_says_so(line, night):
    """Twice in a repeated hour, never in a skipped one: checked against a walk through all minutes."""
    zone, jump = night
    start, end = jump - timedelta(hours=5), jump + timedelta(hours=5)
    minutes = {m for m in range(60) if any(_minute(line, m))}
    walked, at = [], start + STEP
    while at < end:
        if at.astimezone(ZoneInfo(zone)).minute in minutes:
            walked.append(at)
        at += STEP
    assert fires(line, zone, start, end) == walked


def _minute(line: str, minute: int):
    field = line.split(maxsplit=1)[0]
    yield field == "*"
    yield field == "*/10" and minute % 10 == 0
    yield from (part.isdigit() and int(part) == minute for part in field.split(","))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["30 2 * * *", "0 0 * * *", "15 1 * * *", "0 3 * * *"]), zones, st.integers(0, 700))
def test_a_daily_line_fires_once_on_every_date(line, zone, day):
    """Also on nights that skip or repeat its hour (but a date that a zone skips altogether)."""
    start = datetime(2026, 1, 1, 12, tzinfo=ZoneInfo(zone)).astimezone(UTC) + timedelta(days=day)
    dates = [at.astimezone(ZoneInfo(zone)).date() for at in fires(line, zone, start, start + timedelta(days=10))]
    assert len(dates) in (9, 10, 11)
    assert all(b - a == timedelta(days=1) for a, b in itertools.pairwise(dates))


def test_a_skipped_local_time_fires_once_where_the_clock_jumps_to():
    """Berlin, 2026-03-29: 02:30 does not exist; the job runs at 03:00 summer time, once."""
    night = datetime(2026, 3, 28, 22, tzinfo=UTC), datetime(2026, 3, 29, 12, tzinfo=UTC)
    assert fires("0,30 2 * * *", "Europe/Berlin", *night) == [datetime(2026, 3, 29, 1, tzinfo=UTC)]


def test_a_repeated_local_time_fires_at_its_first():
    """Berlin, 2026-10-25: 02:30 comes twice."""
    night = datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 12, tzinfo=UTC)
    assert fires("30 2 * * *", "Europe/Berlin", *night) == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]


def test_a_skipped_midnight_fires_too():
    """Santiago skips 00:00 to 01:00 in September."""
    found = fires(
        "0 0 * * *", "America/Santiago", datetime(2026, 9, 5, 12, tzinfo=UTC), datetime(2026, 9, 6, 12, tzinfo=UTC)
    )
    assert found == [datetime(2026, 9, 6, 4, tzinfo=UTC)]


def test_a_half_hour_jump_loses_no_daily_run():
    """Lord Howe goes back from 02:00 to 01:30: 02:00 comes once, half an hour later than it would have."""
    start, end = datetime(2026, 4, 4, 13, tzinfo=UTC), datetime(2026, 4, 4, 20, tzinfo=UTC)
    assert fires("0 */2 * * *", "Australia/Lord_Howe", start, end)[0] == datetime(2026, 4, 4, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "zone", "pointers"),
    [
        ("* * * *", "UTC", ["/cron"]),
        ("0 0 0 * * *", "UTC", ["/cron"]),
        ("61 * * * *", "Nowhere", ["/cron", "/timezone"]),
        ("@daily", "../etc/passwd", ["/cron", "/timezone"]),
        ("0 0 31 2 *", "UTC", ["/cron"]),
        ("0 0 * * *", "", ["/timezone"]),
        ("0 0 * * *", "a" * 1000, ["/timezone"]),
        ("0 0 * * *", "Europe", ["/timezone"]),
        ("0 0 * * *", "Eur\0ope", ["/timezone"]),
        ("٠ 0 * * *", "UTC", ["/cron"]),
        ("0 0 * * " + "1," * 100 + "1", "UTC", ["/cron"]),
    ],
)
def test_what_is_no_cron_line_or_no_zone_is_refused(line, zone, pointers):
    """Both faults at once, each with its pointer."""
    with pytest.raises(InvalidRequestError) as refused:
        cron.check(line, zone)
    assert [f.pointer for f in refused.value.faults] == pointers


NOW = datetime(2026, 11, 22, 6, 0, 5, tzinfo=UTC)


def minutes_ago(n: int) -> datetime:
    return NOW.replace(second=0) - timedelta(minutes=n)


def test_a_fire_time_that_has_just_come_runs_whatever_catch_up_says():
    """Five seconds late is on time."""
    for catch_up in ("none", "last", "all"):
        found = cron.due("0 6 * * *", "UTC", minutes_ago(0), NOW, catch_up=catch_up, limit=10)
        assert found == cron.Due([minutes_ago(0)], 0, minutes_ago(0) + timedelta(days=1))


def test_missed_fire_times_by_catch_up():
    """Ten minutes away: none runs the one that is on time, last the same here, all runs every one of them."""
    line, since = "*/2 * * * *", minutes_ago(10)
    none = cron.due(line, "UTC", since, NOW - timedelta(seconds=1), catch_up="none", limit=100)
    assert none == cron.Due([minutes_ago(0)], 5, minutes_ago(-2))
    everything = cron.due(line, "UTC", since, NOW, catch_up="all", limit=100)
    assert everything == cron.Due([minutes_ago(n) for n in (10, 8, 6, 4, 2, 0)], 0, minutes_ago(-2))
    late = NOW + timedelta(seconds=90)
    assert cron.due(line, "UTC", since, late, catch_up="none", limit=100) == cron.Due([], 6, minutes_ago(-2))
    assert cron.due(line, "UTC", since, late, catch_up="last", limit=100) == cron.Due(
        [minutes_ago(0)], 5, minutes_ago(-2)
    )


@settings(max_examples=100, deadline=None)
@given(lines, zones, instants, st.integers(0, 400), st.integers(1, 20))
def test_catching_up_all_in_portions_runs_every_fire_time_once(line, zone, start, minutes, limit):
    """However small the portions; and `last` runs the last of them."""
    since = cron.next_after(line, zone, start)
    assert since is not None
    now = since + minutes * STEP
    ran, at = [], since
    while at is not None and at <= now:
        step = cron.due(line, zone, at, now, catch_up="all", limit=limit)
        assert 0 < len(step.fires) <= limit
        ran += step.fires
        at = step.next_at
    assert ran == fires(line, zone, start, now + timedelta(seconds=1))
    last = cron.due(line, zone, since, now, catch_up="last", limit=10_000)
    assert last == cron.Due(ran[-1:], len(ran) - 1, at)


def test_a_month_away_costs_no_month_of_steps():
    """A line of every minute, away for a year: the last fire time is found, the count stops at its limit."""
    found = cron.due("* * * * *", "Europe/Berlin", NOW - timedelta(days=365), NOW, catch_up="last", limit=100)
    assert found.fires == [minutes_ago(0)]
    assert found.missed == 100
    assert found.next_at == minutes_ago(-1)


def test_a_clock_that_went_back_finds_nothing_due():
    """The fire time stays the next one."""
    since = NOW + timedelta(hours=1)
    for catch_up in ("none", "last", "all"):
        assert cron.due("0 7 * * *", "UTC", since, NOW, catch_up=catch_up, limit=10) == cron.Due([], 0, since)


def test_fire_times_of_a_range_begin_with_its_start_and_stop_before_its_end():
    """What a backfill runs."""
    start, end = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 4, tzinfo=UTC)
    assert cron.between("0 0 * * *", "UTC", start, end, limit=10) == [start + timedelta(days=n) for n in range(3)]
    assert cron.between("0 0 * * *", "UTC", start, end, limit=2) == [start, start + timedelta(days=1)]


AT = datetime(2026, 11, 22, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))


def test_templates_are_filled_in_wherever_a_text_stands():
    """URIs, predicates, metadata; keys, numbers and braces written twice are left as they are meant."""
    body = {
        "input": {"uri": "s3://b/{fire_time:%Y/%m/%d}/*.parquet", "where": [["day", "=", "{fire_time:%Y-%m-%d}"]]},
        "metadata": {"{fire_time}": "{{literal}} at {fire_time}", "n": 1, "none": None},
    }
    assert cron.fill(body, AT) == {
        "input": {"uri": "s3://b/2026/11/22/*.parquet", "where": [["day", "=", "2026-11-22"]]},
        "metadata": {"{fire_time}": "{literal} at 2026-11-22T02:30:00+01:00", "n": 1, "none": None},
    }


@pytest.mark.parametrize(
    "text",
    ["{", "}", "{x}", "{}", "{0}", "{fire_time.year}", "{fire_time[0]}", "{fire_time!r}", "{fire_time:%Q}",
     "{fire_time:{x}}", "{fire_time:>9}", "{fire_time:%}", "{fire_time:%-d}", "a{fire_time"],
)  # fmt: skip
def test_what_is_no_template_is_refused_with_its_pointer(text):
    """Nothing but the fire time and portable directives can be reached."""
    with pytest.raises(InvalidRequestError) as refused:
        cron.fill({"a/b": ["fine", text]}, AT, pointer="/batch")
    assert [f.pointer for f in refused.value.faults] == ["/batch/a~1b/1"]


@given(st.recursive(st.text() | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_texts_with_doubled_braces_come_back_as_they_were(value):
    """Filling in is the inverse of escaping."""

    def doubled(v):
        if isinstance(v, str):
            return v.replace("{", "{{").replace("}", "}}")
        if isinstance(v, dict):
            return {k: doubled(x) for k, x in v.items()}
        return [doubled(x) for x in v] if isinstance(v, list) else v

    assert cron.fill(doubled(value), AT) == value
