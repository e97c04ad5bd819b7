"""The ground floor: errors, waiting, clocks, log lines and failpoints."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline import errors, failpoints, logs
from batchline.clock import FakeClock, SystemClock
from batchline.retry import backoff_s


def _tree(kind):
    return [kind, *(each for child in kind.__subclasses__() for each in _tree(child))]


def _ours():
    return [kind for kind in _tree(errors.BatchlineError) if kind.__module__ == errors.__name__]


def test_every_error_has_a_status_and_a_code_of_its_own():
    """A client can tell any two apart by code; 429 and 503 always say that it may be tried again."""
    kinds = _ours()
    assert set(errors.HTTP_STATUS) == set(kinds)
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)
    for kind in kinds:
        status = errors.HTTP_STATUS[kind]
        assert status in (409, 429, 503, 504) if kind.retryable else status not in (429, 503), kind


def test_an_error_carries_what_an_answer_needs():
    """Detail, faults with pointers, and when to come back."""
    fault = errors.Fault("/inputs/0", "is missing")
    error = errors.QuotaError("Full.", faults=(fault,), retry_after_s=2.0)
    assert (str(error), error.detail, error.faults, error.retry_after_s) == ("Full.", "Full.", (fault,), 2.0)


@given(st.integers(-3, 10_000), st.integers())
def test_a_wait_lies_in_the_upper_half_of_its_ceiling(failures, seed):
    """Never immediate, never above the cap, twice as long each time."""
    ceiling = min(300.0, 2.0 ** min(max(failures, 1) - 1, 32))
    assert ceiling / 2 <= backoff_s(failures, rng=random.Random(seed)) <= ceiling


def test_a_fake_clock_stands_still_until_it_is_moved():
    """Both of its times move together."""
    clock = FakeClock()
    start, began = clock.now(), clock.monotonic()
    clock.advance(1.5)
    assert (clock.now() - start, clock.monotonic() - began) == (timedelta(seconds=1.5), 1.5)


def test_the_system_clock_is_aware_and_in_utc():
    """A naive time never gets in."""
    assert SystemClock().now().utcoffset() == timedelta(0)
    assert SystemClock().monotonic() <= SystemClock().monotonic()


@pytest.fixture
def record():
    def make(**extra):
        made = logging.LogRecord("workers", logging.INFO, "x.py", 1, "claimed %d", (3,), None)
        made.__dict__.update(extra)
        return made

    return make


def test_a_json_line_is_one_object_with_the_extras_beside_the_message(record):
    """What JSON does not know is shown as text."""
    line = json.loads(logs.JsonFormatter().format(record(rows=64, job=SystemClock)))
    assert (line["level"], line["logger"], line["message"], line["rows"]) == ("info", "workers", "claimed 3", 64)
    assert "SystemClock" in line["job"]
    assert line["at"].endswith("+00:00")


def test_a_terminal_line_is_for_people(record):
    """Extras follow as k=v."""
    assert logs.TerminalFormatter().format(record(rows=64)).endswith("info workers: claimed 3 rows=64")


def test_both_show_an_exception(record):
    """JSON on one line still."""
    try:
        raise ValueError("broken")
    except ValueError:
        caught = record(exc_info=sys.exc_info())
    assert "ValueError: broken" in json.loads(logs.JsonFormatter().format(caught))["exception"]
    assert logs.TerminalFormatter().format(caught).endswith("ValueError: broken")


def _passing(failpoints_set, code):
    program = f"from batchline.failpoints import hit\n{code}\nprint('through')"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"BATCHLINE_FAILPOINTS": failpoints_set}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given_", "code", "returned", "through"),
    [
        ("", "hit('a')", 0, True),
        ("b=kill", "hit('a')", 0, True),
        ("a=kill", "hit('a')", -9, False),
        ("b=sleep:0; a=kill:3", "hit('a'); hit('a'); hit('b')", 0, True),
        ("a=kill:3", "hit('a'); hit('a'); hit('a')", -9, False),
        ("a=raise", "hit('a')", 1, False),
    ],
)
def test_a_failpoint_acts_where_and_when_it_is_named(given_, code, returned, through):
    """Killed at the n-th passage; other places are passed by."""
    done = _passing(given_, code)
    assert (done.returncode, "through" in done.stdout) == (returned, through)


def test_a_failpoint_that_raises_says_its_name(monkeypatch):
    """And does so each time."""
    monkeypatch.setattr(failpoints, "_actions", {"here": "raise"})
    for _ in range(2):
        with pytest.raises(failpoints.FailpointError, match="here"):
            failpoints.hit("here")
