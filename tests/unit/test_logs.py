"""Logging: what no level may bring into the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from batchline import logs

LIBRARIES = ("boto3", "botocore", "s3transfer", "urllib3", "httpx", "httpcore")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, libraries = logging.getLogger(), [logging.getLogger(name) for name in LIBRARIES]
    handlers, levels = root.handlers[:], [logger.level for logger in (root, *libraries)]
    yield
    root.handlers[:] = handlers
    for logger, level in zip((root, *libraries), levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("name", ["botocore.parsers", "botocore.auth", "urllib3.connectionpool", "httpcore.http11"])
def test_debug_does_not_make_libraries_tell_of_secrets(name: str) -> None:
    """botocore writes answers down at DEBUG: parameters of SSM, secrets, credentials."""
    logs.configure(level="DEBUG")
    assert logging.getLogger("workers").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)


def test_libraries_are_as_quiet_as_the_rest() -> None:
    """A level above INFO counts for them too."""
    logs.configure(level="ERROR")
    assert not logging.getLogger("botocore").isEnabledFor(logging.WARNING)


def test_an_outage_is_told_at_its_beginning_once_a_minute_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever fails and works by turns within five seconds is one outage; the next is told at once."""
    at = [100.0]
    outage = logs.Outage(logging.getLogger("test"), "it fails", "it is well", lambda: at[0])
    caplog.set_level(logging.INFO)
    outage.well()
    for at[0] in range(100, 230, 2):
        outage.fails(error="gone")
        outage.well()
    assert [(r.message, r.__dict__["times"]) for r in caplog.records] == [("it fails", n) for n in (1, 30, 30)]
    assert caplog.records[0].__dict__["error"] == "gone"
    at[0] = 233.0
    for _ in range(2):
        outage.well()
    assert (caplog.records[3].message, caplog.records[3].__dict__["lasted_s"]) == ("it is well", 128.0)
    at[0] = 234.0
    outage.fails()
    assert [r.__dict__.get("times") for r in caplog.records[3:]] == [None, 1]
