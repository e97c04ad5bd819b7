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
