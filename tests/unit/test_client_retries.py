"""When the SDK tries again, as laws over the pure policy."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.client.retries import CAP_S, Failure, decide, poll_wait_s, retry_after_s

RNG = random.Random(1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.sampled_from([400, 401, 403, 404, 409, 410, 413, 415, 422, 500]), st.integers(1, 50), st.integers(1, 4))
def test_what_the_caller_must_mend_is_never_tried_again(status: int, failures: int, servers: int) -> None:
    """A refusal that the same request would meet again ends the call."""
    assert decide(Failure(status), failures=failures, servers=servers, left_s=1e9, rng=RNG) is None


@given(st.sampled_from([None, 502, 503, 504]), st.integers(1, 50), st.integers(2, 4))
def test_a_dead_server_is_left_at_once_until_all_were_tried(status: int | None, failures: int, servers: int) -> None:
    """Within a round of the servers there is no wait; after the round there is one."""
    again = decide(Failure(status), failures=failures, servers=servers, left_s=1e9, rng=RNG)
    assert again is not None
    assert again.elsewhere
    assert (again.wait_s == 0.0) == (failures % servers != 0)


@given(st.sampled_from([425, 429, 503]), st.integers(1, 50), st.floats(0, 600))
def test_retry_after_is_the_least_wait(status: int, failures: int, asked_s: float) -> None:
    """Nobody comes back sooner than the server asked."""
    again = decide(Failure(status, asked_s), failures=failures, servers=1, left_s=1e9, rng=RNG)
    assert again is not None
    assert asked_s <= again.wait_s <= max(asked_s * 1.1, CAP_S)


def test_a_key_in_flight_is_asked_for_later() -> None:
    """The one 409 that passes: the server still works on the first try of the same call."""
    again = decide(Failure(409, 1.0, in_flight=True), failures=1, servers=2, left_s=10.0, rng=RNG)
    assert again is not None
    assert not again.elsewhere
    assert again.wait_s >= 1.0


@given(st.integers(1, 50))
def test_a_limit_of_the_tenant_is_no_reason_to_go_elsewhere(failures: int) -> None:
    """429 holds on every server: the same one is asked later."""
    again = decide(Failure(429), failures=failures, servers=3, left_s=1e9, rng=RNG)
    assert again is not None
    assert not again.elsewhere
    assert 0.0 < again.wait_s <= CAP_S


@pytest.mark.parametrize("failure", [Failure(None), Failure(429, 10.0), Failure(503, 10.0)])
def test_a_wait_beyond_the_callers_patience_is_not_begun(failure: Failure) -> None:
    """Giving up now is better than giving up after a wait that cannot help."""
    assert decide(failure, failures=10, servers=1, left_s=0.05, rng=RNG) is None


def test_a_server_that_holds_the_answer_is_asked_again_at_once() -> None:
    """Prefer: wait is the wait."""
    assert poll_wait_s(7, asked_s=30.0, answered_in_s=30.0) == 0.0


@given(st.integers(1, 1000))
def test_a_server_that_does_not_hold_the_answer_is_polled_ever_more_rarely(polls: int) -> None:
    """The pauses grow to two seconds and stay there."""
    pause = poll_wait_s(polls, asked_s=30.0, answered_in_s=0.001)
    assert 0.05 <= pause <= poll_wait_s(polls + 1, asked_s=30.0, answered_in_s=0.001) <= 2.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.25", 0.25),
        ("-4", 0.0),
        ("soon", None),
        ("Thu, 01 Jan 2026 00:00:07 GMT", 7.0),
        ("Thu, 01 Jan 2025 00:00:07 GMT", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(text: str | None, seconds: float | None) -> None:
    """Both forms of RFC 9110; nonsense is as good as nothing."""
    assert retry_after_s({} if text is None else {"retry-after": text}, NOW) == seconds
