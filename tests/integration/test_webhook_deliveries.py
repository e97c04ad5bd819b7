"""The station that sends webhooks, over the real store and real receivers."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import stack
from crooked_receiver import receiving
from hook_receiver import hook_receiver
from standardwebhooks.webhooks import Webhook as Verifier
from system import until

from batchline.errors import StoreUnavailableError
from batchline.metrics import WEBHOOK_ATTEMPTS, WEBHOOKS_IN_FLIGHT, WEBHOOKS_OVERDUE
from batchline.store import Store
from batchline.webhook import Webhook, parse_allowed, show_message_id
from scheduler.deliveries import Deliveries
from scheduler.posting import Answer, Poster

LOOPBACK = parse_allowed("127.0.0.0/8")


class Posted:
    """A poster that keeps what it is given, and answers as told."""

    def __init__(self, *answers: Answer, wait: Callable[[str], object] = bool) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._answers = answers or (Answer(204, None, 1),)
        self._wait = wait

    def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        self.requests.append((url, headers, body))
        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        self._wait(url)
        return answer


def ended(store: Store, url: str, count: int = 1) -> None:
    """Jobs that ask for a webhook, and have been cancelled."""
    model = store.catalogue.register_model(stack.a_spec())
    jobs = [stack.new_job(model, webhook=Webhook(url)) for _ in range(count)]
    store.jobs.submit(jobs)
    store.jobs.cancel(stack.TENANT, [job.id for job in jobs])


def messages(store: Store) -> list[Any]:
    return store.webhooks.list(stack.TENANT, limit=1000)


def statuses(store: Store) -> Counter[str]:
    return Counter(str(m.status) for m in messages(store))


def settled(store: Store, station: Deliveries) -> None:
    """Send what is due, and wait until nothing is under way."""
    station.step()
    until(lambda: WEBHOOKS_IN_FLIGHT._value.get() == 0, within_s=20, what="nothing under way")


def due_now(store: Store, database_url: str) -> None:
    stack.query(database_url, "UPDATE webhook_messages SET due_at = now() WHERE status = 'pending'")


def test_what_is_sent_again_has_the_same_id_and_bytes_and_a_new_time(store: Store, database_url: str) -> None:
    """A failure is tried again by the table; the log has both attempts; a rotated secret signs beside the new one."""
    ended(store, "https://receiver.example/x")
    posted = Posted(Answer(500, "answered 500", 7), Answer(200, None, 8))
    station = Deliveries(store.webhooks, posted)
    settled(store, station)
    (message,) = messages(store)
    wait_s = (message.due_at - message.created_at).total_seconds()
    assert (message.status, message.attempts) == ("pending", 1)
    assert 5 <= wait_s < 30
    old = store.webhooks.secret(stack.TENANT).secret
    new = store.webhooks.rotate(stack.TENANT).secret
    due_now(store, database_url)
    settled(store, station)
    assert statuses(store) == {"delivered": 1}
    (_, first, body), (url, second, again) = posted.requests
    assert (url, first["webhook-id"], body) == ("https://receiver.example/x", second["webhook-id"], again)
    assert first["webhook-id"] == show_message_id(message.id)
    for secret in (old, new):
        assert Verifier(secret).verify(body, second)["type"] == "job.cancelled"
    assert first["webhook-signature"].count("v1,") == 1
    log = store.webhooks.attempts(message.id)
    assert [(a.status_code, a.error, a.duration_ms) for a in log] == [(500, "answered 500", 7), (200, None, 8)]


def test_a_message_is_given_up_after_its_tenth_attempt_and_a_replay_begins_anew(
    store: Store, database_url: str
) -> None:
    """The table has ten attempts; a replay has all of them again."""
    ended(store, "https://receiver.example/x")
    station = Deliveries(store.webhooks, Posted(Answer(None, "the connection was refused", 3)))
    given_up = WEBHOOK_ATTEMPTS.labels("given_up")._value.get()
    for attempt in range(1, 11):
        assert statuses(store) == {"pending": 1}, attempt
        due_now(store, database_url)
        settled(store, station)
    assert statuses(store) == {"failed": 1}
    assert WEBHOOK_ATTEMPTS.labels("given_up")._value.get() == given_up + 1
    (message,) = messages(store)
    assert store.webhooks.replay(stack.TENANT, message.id)
    settled(store, station)
    assert statuses(store) == {"pending": 1}
    assert len(store.webhooks.attempts(message.id)) == 11


def test_a_receiver_that_asks_to_wait_is_left_alone_as_long(store: Store) -> None:
    """Retry-After makes the wait longer than the table's."""
    ended(store, "https://receiver.example/x")
    settled(store, Deliveries(store.webhooks, Posted(Answer(429, "answered 429", 1, 600.0))))
    (message,) = messages(store)
    assert 590 <= (message.due_at - message.created_at).total_seconds() < 660


def test_gone_ends_all_that_waits_for_the_endpoint(store: Store) -> None:
    """The attempt is logged; nothing more is sent there; other endpoints are not touched."""
    ended(store, "https://gone.example/x", 3)
    ended(store, "https://other.example/x")
    posted = Posted(Answer(410, "answered 410", 1))
    settled(store, Deliveries(store.webhooks, posted, threads=1))
    gone = next(m for m in messages(store) if m.url == posted.requests[0][0])
    ended(store, gone.url)
    assert {(m.url == gone.url, str(m.status)) for m in messages(store)} == {(True, "disabled"), (False, "pending")}
    endpoint = store.webhooks.endpoint(gone.endpoint_id)
    assert endpoint is not None
    assert endpoint.disabled_why == "The receiver answered 410 Gone."
    logged = [a for m in messages(store) for a in store.webhooks.attempts(m.id)]
    assert [a.status_code for a in logged] == [410]


def test_an_outcome_that_cannot_be_stored_at_once_is_stored_later(store: Store) -> None:
    """While Postgres restarts, a message that was delivered is not sent again."""

    class Flaky:
        """The store's room, whose first two reports are lost on their way."""

        def __init__(self) -> None:
            self.lost = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(store.webhooks, name)

        def delivered(self, *args: Any, **more: Any) -> bool:
            if self.lost < 2:
                self.lost += 1
                raise StoreUnavailableError("gone for a moment")
            return store.webhooks.delivered(*args, **more)

    ended(store, "https://receiver.example/x")
    posted, flaky = Posted(), Flaky()
    settled(store, Deliveries(flaky, posted))
    assert (statuses(store), len(posted.requests), flaky.lost) == ({"delivered": 1}, 1, 2)


def test_an_endpoint_that_hangs_holds_up_no_other(store: Store) -> None:
    """All of the dead one's threads wait while the live one's messages go out."""
    release = threading.Event()
    ended(store, "https://dead.example/", 40)
    posted = Posted(wait=lambda url: "dead" in url and release.wait(30))
    station = Deliveries(store.webhooks, posted, threads=32)
    station.start()
    try:
        until(lambda: len(posted.requests) >= 4, within_s=20, what="the dead one is being sent to")
        ended(store, "https://live.example/", 20)
        until(lambda: statuses(store)["delivered"] == 20, within_s=20, what="the live one's messages are delivered")
        assert sum("dead" in url for url, _, _ in posted.requests) == 4
    finally:
        release.set()
        station.close(10)


def test_what_waits_too_long_shows_in_the_metrics(store: Store, database_url: str) -> None:
    """The age of what has been due longest, whether or not a thread is free for it; 0 when nothing is due."""
    release = threading.Event()
    assert store.webhooks.overdue_s() == 0
    ended(store, "https://receiver.example/", 3)
    stack.query(database_url, "UPDATE webhook_messages SET due_at = now() - interval '100 seconds'")
    station = Deliveries(store.webhooks, Posted(wait=lambda _: release.wait(30)), threads=1)
    station.start()
    until(lambda: WEBHOOKS_OVERDUE._value.get() >= 100, within_s=20, what="the metric tells")
    release.set()
    until(lambda: statuses(store) == {"delivered": 3}, within_s=20, what="all delivered")
    station.close(5)
    assert store.webhooks.overdue_s() == 0


def test_closing_waits_for_what_is_under_way_but_not_for_ever(store: Store) -> None:
    """What ends in time is noted; what hangs is left to its lease."""
    release = threading.Event()
    ended(store, "https://receiver.example/slow")
    station = Deliveries(store.webhooks, Posted(wait=lambda _: release.wait(0.3)))
    station.start()
    until(lambda: WEBHOOKS_IN_FLIGHT._value.get() == 1, within_s=20, what="one under way")
    station.close(10)
    assert statuses(store) == {"delivered": 1}

    ended(store, "https://receiver.example/hung")
    station = Deliveries(store.webhooks, Posted(wait=lambda _: release.wait(30)))
    station.start()
    until(lambda: WEBHOOKS_IN_FLIGHT._value.get() == 1, within_s=20, what="one under way")
    began = time.monotonic()
    station.close(0.5)
    assert time.monotonic() - began < 5
    assert statuses(store) == {"delivered": 1, "pending": 1}
    release.set()
    until(lambda: WEBHOOKS_IN_FLIGHT._value.get() == 0, within_s=20, what="none under way")


def test_real_receivers_well_and_crooked(store: Store, database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """One verifies and takes it, others hang, drip, redirect and close: each line of the log says how it went, and no
    log of ours has a URL or a secret."""
    caplog.set_level(logging.INFO)
    ways = ("hang", "drip-head", "redirect", "close", "500")
    with hook_receiver() as well, receiving() as crooked:
        well.secret = store.webhooks.secret(stack.TENANT).secret
        ended(store, f"{well.url}/well?token=hidden")
        for way in ways:
            ended(store, f"{crooked.url}/{way}?token=hidden")
        settled(store, Deliveries(store.webhooks, Poster(LOOPBACK, timeout_s=1)))
        (arrival,) = well.arrivals
        assert well.unverified == 0
    told = {m.url.rpartition("/")[2].partition("?")[0]: store.webhooks.attempts(m.id)[0] for m in messages(store)}
    assert {way: (a.status_code, a.error) for way, a in told.items()} == {
        "well": (204, None),
        "hang": (None, "no answer within 1 s"),
        "drip-head": (None, "no answer within 1 s"),
        "redirect": (301, "answered 301; redirects are not followed"),
        "close": (None, "the connection was closed, or what came was no answer"),
        "500": (500, "answered 500"),
    }
    data = json.loads(arrival.body)["data"]
    assert (data["status"], data["model"], "outputs" in data) == ("cancelled", "digits", False)
    lines = [f"{r.getMessage()} {r.__dict__}" for r in caplog.records if r.name.startswith("scheduler")]
    assert len(lines) == 6
    assert not any(text in line for line in lines for text in ("hidden", "whsec_", "http:"))
    assert all("127.0.0.1" in line and "msg_" in line for line in lines)
