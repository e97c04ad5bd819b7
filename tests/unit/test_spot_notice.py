"""The watch for spot notices against a fake metadata service that speaks version 2 only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import fake_imds
import pytest
from fake_imds import ACTION_PATH, REBALANCE_PATH, TOKEN_PATH, FakeImds

from workers import spot_notice
from workers.spot_notice import Imds, SpotNotice, left_s

Left = list[tuple[str, float]]


@pytest.fixture
def imds() -> Iterator[FakeImds]:
    with fake_imds.fake_imds() as imds:
        yield imds


def watcher(imds: FakeImds) -> tuple[SpotNotice, Left]:
    left: Left = []
    return SpotNotice(Imds(imds.url), lambda reason, within_s: left.append((reason, within_s))), left


def test_without_a_notice_nothing_happens_and_one_token_does_for_many_questions(imds: FakeImds) -> None:
    """404 is the normal answer."""
    watch, left = watcher(imds)
    assert not watch.look()
    assert not watch.look()
    assert left == []
    assert imds.seen == [("PUT", TOKEN_PATH, 200), *[("GET", ACTION_PATH, 404), ("GET", REBALANCE_PATH, 404)] * 2]


def test_a_notice_has_the_worker_leave_before_the_instance_ends(imds: FakeImds) -> None:
    """Two minutes less the margin; AWS cuts the time to whole seconds."""
    watch, left = watcher(imds)
    imds.notice(120)
    assert watch.look()
    ((reason, within_s),) = left
    assert reason == "spot terminate"
    assert 100 < within_s <= 105


def test_a_token_that_is_refused_is_fetched_anew_at_once(imds: FakeImds) -> None:
    """The service was restarted, say: the notice is seen by the very same look."""
    watch, left = watcher(imds)
    watch.look()
    imds.forget_tokens()
    imds.notice(60, "stop")
    assert watch.look()
    assert [reason for reason, _ in left] == ["spot stop"]


@pytest.mark.parametrize("body", ["", "soon", '{"action": "terminate", "time": "tomorrow"}', "[]", "\x00"])
def test_a_notice_that_cannot_be_read_is_still_a_notice(imds: FakeImds, body: str) -> None:
    """It is there: the two minutes are taken to begin now."""
    watch, left = watcher(imds)
    imds.documents[ACTION_PATH] = body
    assert watch.look()
    assert left == [("spot interruption", 105.0)]


@pytest.mark.parametrize(
    ("ahead_s", "within_s"), [(120, 105), (3600, 105), (60, 45), (15, 0), (3, 0), (-5, 0), (-86400, 0)]
)
def test_the_time_that_is_left_is_never_more_than_two_minutes_and_never_negative(ahead_s: int, within_s: float) -> None:
    """Whatever the clocks say."""
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert left_s(now + timedelta(seconds=ahead_s), now) == within_s
    assert left_s(now.replace(tzinfo=None) + timedelta(seconds=ahead_s), now) == within_s


def test_a_service_that_is_away_is_asked_again_and_logged_once(
    imds: FakeImds, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the hop limit nothing comes back; the worker works on, and sees the notice when the service is back."""
    caplog.set_level(logging.INFO, "workers")
    monkeypatch.setattr(spot_notice, "ANSWER_S", 0.05)
    watch, left = watcher(imds)
    imds.down = True
    assert not watch.look()
    assert not watch.look()
    assert [r.message for r in caplog.records] == ["no spot notices: the metadata service was asked"]
    assert "hop limit must be 2" in caplog.records[0].__dict__["error"]
    imds.down = False
    imds.notice()
    monkeypatch.setattr(spot_notice, "ANSWER_S", 5.0)
    assert watch.look()
    assert len(left) == 1


def test_nobody_there_is_no_reason_to_stop() -> None:
    """Off EC2, with the watch switched on by mistake."""
    with fake_imds.fake_imds() as gone:
        watch, left = watcher(gone)
    assert not watch.look()
    assert left == []


def test_a_warning_makes_the_watch_ask_more_often_and_is_no_notice(
    imds: FakeImds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebalance recommendation alone stops nothing."""
    monkeypatch.setattr(spot_notice, "WARNED_EVERY_S", 0.01)
    monkeypatch.setattr(spot_notice, "EVERY_S", 600.0)
    watch, left = watcher(imds)
    imds.warn()
    thread = threading.Thread(target=watch.watch, args=(threading.Event(),), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while len(imds.seen) < 7:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert left == []
    imds.notice()
    thread.join(20)
    assert len(left) == 1


def test_a_notice_is_seen_within_five_seconds_also_when_nothing_warned_before() -> None:
    """The wait between looks and the longest answer of a healthy service."""
    assert spot_notice.EVERY_S + 0.5 <= 5.0
    assert spot_notice.WARNED_EVERY_S <= 2.0


def test_a_worker_that_leaves_anyway_asks_no_more(imds: FakeImds) -> None:
    """The watch ends with the process's drain."""
    watch, _ = watcher(imds)
    stop = threading.Event()
    stop.set()
    watch.watch(stop)
    assert [path for _, path, _ in imds.seen] == [TOKEN_PATH, ACTION_PATH, REBALANCE_PATH]


def test_proxies_of_the_environment_are_not_asked(imds: FakeImds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's service would answer."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    watch, left = watcher(imds)
    imds.notice()
    assert watch.look()
    assert len(left) == 1
