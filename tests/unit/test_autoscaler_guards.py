"""Limits hold whatever a policy wants, and the reason names the one that held."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.guards import check, floor_at, guard
from autoscaler.signals import Decision, Facts, Limits, Signals, Spent
from batchline.errors import SettingsError

FACTS = Facts(start_s=60, billing_s=60, price_per_hour=1.0)
NOON = 12 * 3600.0


def held(wanted, limits, *, workers=0, pending=0, spent=None, now=NOON):
    seen = Signals(now, workers=workers, pending=pending)
    return guard(Decision(wanted, "so wanted"), seen, limits, FACTS, spent or Spent())


@given(
    wanted=st.integers(-5, 1000),
    bounds=st.tuples(st.integers(0, 10), st.integers(0, 20)),
    workers=st.integers(0, 40),
    hour=st.integers(0, 23),
    spent=st.builds(Spent, st.integers(0, 50), st.floats(0, 30)),
)
def test_live_and_pending_never_exceed_the_maximum_and_launches_are_never_negative(
    wanted, bounds, workers, hour, spent
):
    """0 <= desired <= max; launches stay within the hour's; what is held once is held again alike."""
    low, extra = bounds
    limits, now = Limits(low, max(1, low + extra), 10, 20.0, ((8, 18, low),)), hour * 3600.0
    allowed = held(wanted, limits, workers=workers, spent=spent, now=now)
    assert 0 <= allowed.desired <= limits.max_workers
    assert max(0, allowed.desired - workers) <= max(0, 10 - spent.launches_last_hour)
    assert held(allowed.desired, limits, workers=workers, spent=spent, now=now).desired == allowed.desired


def test_each_limit_names_itself():
    """The reason is the policy's, and then what held it."""
    assert held(3, Limits()) == Decision(3, "so wanted")
    assert held(0, Limits(2, 8)).reason == "so wanted; the minimum of workers is 2"
    assert held(90, Limits(2, 8)).reason == "so wanted; the maximum is 8"
    assert held(5, Limits(max_launches_per_hour=3), spent=Spent(2)) == Decision(
        1, "so wanted; launches are limited to 3 an hour"
    )
    assert "the budget of 10 a day leaves 0.05" in held(8, Limits(budget_per_day=10), spent=Spent(0, 9.95)).reason


def test_the_budget_outranks_the_minimum():
    """Nothing runs on money that is not there; what can be paid for another minute may."""
    limits = Limits(2, 8, budget_per_day=10)
    assert held(5, limits, workers=5, spent=Spent(0, 9.95)).desired == 3
    assert held(5, limits, workers=5, spent=Spent(0, 10.5)).desired == 0


def test_floors_follow_the_hour():
    """By UTC hours; a span may go past midnight; the highest of those that apply."""
    limits = Limits(1, 8, floors=((8, 18, 3), (22, 6, 5), (12, 13, 4)))
    assert [floor_at(limits, h * 3600.0) for h in (7, 8, 12, 17, 18, 23, 5, 6)] == [1, 3, 4, 3, 1, 5, 5, 1]
    assert held(0, limits).reason == "so wanted; the minimum of this hour is 4"


def test_the_kill_switch_freezes_what_there_is():
    """Off: nothing is launched and nothing is stopped, not even above the maximum."""
    off = Limits(0, 2, enabled=False)
    assert held(9, off, workers=3, pending=1).desired == 4
    assert "switched off" in held(0, off, workers=3).reason


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Limits(5, 2), "raise that"),
        (Limits(-1, 2), "use 0 or more"),
        (Limits(0, 0), "switch the autoscaler off"),
        (Limits(budget_per_day=0), "budget"),
        (Limits(max_launches_per_hour=0), "launches"),
        (Limits(floors=((8, 25, 1),)), "use 0 to 24"),
        (Limits(floors=((8, 18, 9),)), "maximum of 8"),
    ],
)
def test_limits_that_contradict_themselves_are_refused(limits, word):
    """At start, with what to do about it."""
    with pytest.raises(SettingsError, match=word):
        check(limits)
    check(Limits())
