"""The job's values: the transition table, ids that sort by time, and the laws of rank."""

from __future__ import annotations

import uuid
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.errors import NotFoundError
from batchline.job import (
    DEADLINE_MARGIN_S,
    PRIORITY_STEP_S,
    TERMINAL,
    TRANSITIONS,
    FairShare,
    Move,
    Status,
    first_id_at,
    guard,
    is_legal,
    new_job_id,
    parse_id,
    rank_us,
    show_id,
)

ids = st.uuids()
times = st.floats(1.6e9, 2.5e9)
priorities = st.integers(0, 9)


def test_a_terminal_status_has_no_way_out():
    """And every other has one."""
    sources = frozenset().union(*(sources for sources, _ in TRANSITIONS.values()))
    assert set(Status) - sources == TERMINAL
    assert not any(is_legal(source, target) for source in TERMINAL for target in Status)


def test_the_legal_moves_are_these_ten():
    """The state chart, spelled out once more by hand."""
    q, r = Status.QUEUED, Status.RUNNING
    legal = {(s, t) for s in Status for t in Status if is_legal(s, t)}
    ends = {
        (r, Status.SUCCEEDED),
        (r, Status.FAILED),
        (r, Status.CANCELLED),
        (q, Status.CANCELLED),
        (q, Status.EXPIRED),
    }
    assert legal == {(q, r), (r, q)} | ends


def test_every_move_is_in_the_table_and_guards_its_sources():
    """The SQL of a guard names exactly the statuses that a move starts from."""
    assert set(TRANSITIONS) == set(Move)
    assert guard(Move.CANCEL) == "j.status IN ('queued', 'running')"
    for move, (sources, _) in TRANSITIONS.items():
        assert {s for s in Status if f"'{s}'" in guard(move)} == sources


@given(ids)
def test_an_id_reads_back(job_id):
    """Whatever its bits."""
    assert parse_id(show_id(job_id)) == job_id


@given(ids, ids)
def test_ids_sort_as_they_are_shown(a, b):
    """The text may stand in for the number in every comparison."""
    assert (a < b) == (show_id(a) < show_id(b))


def test_new_ids_are_version_7_and_lie_after_their_time():
    """RFC 9562: version 7, variant 10, milliseconds in front."""
    job_id = new_job_id()
    assert (job_id.version, job_id.variant) == (7, uuid.RFC_4122)
    at = (job_id.int >> 80) / 1000
    assert first_id_at(at) <= job_id < first_id_at(at + 0.002)
    assert first_id_at(1.7e9) <= new_job_id(1.7e9) < first_id_at(1.7e9 + 0.002)


@given(times, times)
def test_first_ids_grow_with_time(a, b):
    """A time before the epoch has the first of all."""
    assert (a <= b) <= (first_id_at(a) <= first_id_at(b))
    assert first_id_at(-a) == uuid.UUID(int=0)


def _twins():
    """An id, and the other texts that base32 would read as the same bytes or as none."""
    text = show_id(uuid.UUID(int=2**128 - 1))
    return [
        "",
        "job_",
        text[4:],
        text[:-1],
        text + "0",
        text.upper(),
        "job_" + "é" * 26,
        text[:-1] + "v",
        "job_" + "=" * 26,
    ]


@pytest.mark.parametrize("text", _twins())
def test_what_is_no_id_is_not_found(text):
    """One job has one id: no second spelling gets through."""
    with pytest.raises(NotFoundError):
        parse_id(text)


@given(st.text(max_size=40))
def test_any_text_is_an_id_or_not_found(text):
    """Never another error."""
    with suppress(NotFoundError):
        assert show_id(parse_id("job_" + text)) == "job_" + text


@given(times, priorities, priorities)
def test_a_better_priority_ranks_earlier(start, a, b):
    """Strictly, at the same start."""
    assert (a < b) == (rank_us(start, a) < rank_us(start, b))


@given(times, priorities, priorities, st.floats(1.0, 1e5))
def test_waiting_makes_up_for_priority(start, waiting, newer, wait_s):
    """Ageing: each step is worth PRIORITY_STEP_S seconds, so no stream of better jobs starves an old one."""
    overtakes = rank_us(start, waiting) < rank_us(start + wait_s, newer)
    if abs(gap := wait_s - (waiting - newer) * PRIORITY_STEP_S) > 0.001:
        assert overtakes == (gap > 0)


@given(times, priorities, times)
def test_a_deadline_only_ever_helps(start, priority, deadline):
    """Ranked at the latest a margin before it."""
    rank = rank_us(start, priority, deadline)
    assert rank <= rank_us(start, priority)
    assert rank <= (deadline - DEADLINE_MARGIN_S) * 1e6


def test_a_tenant_that_floods_ranks_behind_one_that_just_came():
    """Start-time fair queueing: virtual time runs ahead with what was used."""
    share = FairShare()
    flood = [share.ahead_s(1, 100.0, 2.0) for _ in range(5)]
    assert flood == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert share.ahead_s(2, 100.0, 2.0) == 0.0
    assert share.ahead_s(1, 105.0, 2.0) == 5.0
    assert share.ahead_s(1, 200.0, 2.0) == 0.0


def test_fair_share_forgets_only_who_is_not_ahead():
    """Its memory is bounded by the tenants that are owed something."""
    share = FairShare()
    share.ahead_s(0, 100.0, 20_000.0)
    for tenant in range(1, 10_002):
        share.ahead_s(tenant, 100.0 + tenant, 0.5)
    assert len(share._next) < 100
    assert share.ahead_s(0, 15_100.0, 1.0) == 5000.0
