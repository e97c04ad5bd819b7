"""The queue rule obeys its bounds and does not flap."""

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.policy import Limits, Signals, decide


@given(
    rows=st.integers(0, 10**9),
    low=st.integers(0, 10),
    extra=st.integers(0, 20),
    before=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 100))),
)
def test_desired_is_always_within_the_limits(rows, low, extra, before):
    """min <= desired <= max, whatever is seen and whatever was wanted."""
    limits = Limits(min_workers=low, max_workers=low + extra)
    assert low <= decide(Signals(rows, 0.0, 1), limits, before, 100.0).desired <= low + extra


def test_scales_up_at_once_and_down_only_after_the_cooldown():
    """A burst is answered at once; its end gives nothing up until the cooldown has passed."""
    limits = Limits(min_workers=1, max_workers=8, rows_per_worker=100, cooldown_s=60)
    assert decide(Signals(450, 0.0, 1), limits, [], 0.0).desired == 5
    assert decide(Signals(0, 0.0, 5), limits, [(0.0, 5)], 59.0).desired == 5
    assert decide(Signals(0, 0.0, 5), limits, [(0.0, 5)], 61.0).desired == 1


def test_every_decision_says_why():
    """The reason names what bound the answer."""
    limits = Limits(min_workers=1, max_workers=2, rows_per_worker=100)
    assert "maximum" in decide(Signals(10_000, 0.0, 1), limits, [], 0.0).reason
    assert "minimum" in decide(Signals(0, 0.0, 1), limits, [], 0.0).reason
    assert "150 rows" in decide(Signals(150, 0.0, 1), limits, [], 0.0).reason
