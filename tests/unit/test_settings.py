"""Settings are read once, whole, and every fault is told at once."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from batchline.errors import SettingsError
from batchline.settings import Settings, load, variable

URLS = {"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://y"}


def test_the_environment_is_read_by_name_and_type():
    """Two names are bare, all others carry the prefix; nothing else is read."""
    given = URLS | {
        "BATCHLINE_PORT": "9",
        "BATCHLINE_LEASE_S": "60",
        "BATCHLINE_MODELS": "/m",
        "BATCHLINE_UNKNOWN": "1",
    }
    settings = load(given)
    assert (settings.database_url, settings.port, settings.lease_s, settings.models) == (
        "postgresql://x",
        9,
        60.0,
        Path("/m"),
    )
    assert [variable("redis_url"), variable("lease_s")] == ["REDIS_URL", "BATCHLINE_LEASE_S"]
    with pytest.raises(FrozenInstanceError):
        settings.port = 1


def test_every_variable_can_come_from_a_file_but_the_variable_wins(tmp_path):
    """Secrets arrive as files; a trailing newline is not part of them."""
    path = tmp_path / "url"
    path.write_text("postgresql://from-file\n")
    assert load({"DATABASE_URL_FILE": str(path), "REDIS_URL": "r"}).database_url == "postgresql://from-file"
    assert load({"DATABASE_URL_FILE": str(path)} | URLS).database_url == "postgresql://x"


def test_every_fault_is_told_at_once(tmp_path):
    """Missing, unreadable, no number, and at odds with each other: one message."""
    given = {
        "REDIS_URL_FILE": str(tmp_path / "none"),
        "BATCHLINE_PORT": "http",
        "BATCHLINE_LEASE_S": "3",
        "BATCHLINE_HEARTBEAT_S": "2",
        "BATCHLINE_DEVICE": "tpu",
    }
    with pytest.raises(SettingsError) as caught:
        load(given)
    told = caught.value.detail
    for part in (
        "DATABASE_URL is not set",
        "REDIS_URL_FILE",
        "BATCHLINE_PORT is 'http'",
        "BATCHLINE_HEARTBEAT_S",
        "'tpu'",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heartbeat_s": 20.0}, "BATCHLINE_HEARTBEAT_S"),
        ({"jobs_kept_s": 1.0}, "BATCHLINE_JOBS_KEPT_S"),
        ({"device": "gpu"}, "BATCHLINE_DEVICE"),
        ({"connections": 2}, "BATCHLINE_CONNECTIONS"),
        ({"sweep_s": 0.0}, "BATCHLINE_SWEEP_S"),
        ({"max_rows": 0}, "BATCHLINE_MAX_ROWS"),
        ({"lease_s": float("nan")}, "BATCHLINE_LEASE_S"),
        ({"idle_poll_s": float("inf")}, "BATCHLINE_IDLE_POLL_S"),
    ],
)
def test_values_are_checked_against_each_other(changes, named):
    """The message names the variable, as the operator knows it."""
    with pytest.raises(SettingsError, match=named):
        Settings(**changes)


def test_a_process_names_what_it_needs():
    """A process without a queue does not ask for one; the defaults are runnable."""
    assert load({"DATABASE_URL": "x"}, needs=("database_url",)).redis_url == ""
    assert all(variable(field.name).isupper() for field in fields(Settings))
