"""Rules of webhooks: what may be asked for, how it is signed, when it is tried again."""

from __future__ import annotations

import ipaddress
import json
import random
import time
import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from batchline import webhook
from batchline.errors import SettingsError
from batchline.settings import Settings, load
from batchline.store.webhook_contract import Due
from batchline.webhook import Webhook, check_url, faults, is_allowed, parse_allowed, retry_s
from scheduler.deliveries import body_of, share

NONE = parse_allowed("")


def test_the_standards_own_library_verifies_what_is_signed():
    """With either secret during a rotation; not with another, nor when a byte, the id or the time is changed."""
    secrets = (webhook.new_secret(), webhook.new_secret())
    body, now = '{"type": "job.succeeded", "data": {"ü": 1.0}}'.encode(), int(time.time())
    headers = webhook.headers(secrets, "msg_1", now, body)
    for secret in secrets:
        assert Verifier(secret).verify(body, headers) == json.loads(body)
    changed = [
        (body + b" ", headers),
        (body, headers | {"webhook-id": "msg_2"}),
        (body, headers | {"webhook-timestamp": str(now + 1)}),
    ]
    for data, told in changed:
        with pytest.raises(WebhookVerificationError):
            Verifier(secrets[0]).verify(data, told)
    with pytest.raises(WebhookVerificationError):
        Verifier(webhook.new_secret()).verify(body, headers)


def test_a_signature_is_the_standards_example():
    """The test vector of the reference implementations."""
    secret, message_id, at = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
    told = webhook.sign(secret, message_id, at, b'{"test": 2432232314}')
    assert told == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_waits_are_the_standards_table_with_jitter_and_end():
    """Never shorter than the table, at most a fifth longer; after three days and a little a message is given up."""
    waits = [retry_s(n, rng=random.Random(n)) for n in range(1, 10)]
    for wait, base in zip(waits, webhook.RETRIES_S, strict=True):
        assert wait is not None
        assert base <= wait <= base * 1.2
    assert sum(webhook.RETRIES_S) == 75 * 3600 + 35 * 60 + 5
    assert retry_s(10) is None
    assert len({retry_s(1) for _ in range(20)}) > 1


def test_a_receiver_may_ask_for_a_longer_wait_but_not_for_ever():
    """Retry-After never shortens a wait, nor stretches it beyond a day, nor adds a try."""
    assert retry_s(1, retry_after_s=1.0) >= 5
    assert retry_s(1, retry_after_s=120.0) == 120
    assert retry_s(1, retry_after_s=1e9) == 86_400
    assert retry_s(10, retry_after_s=60.0) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hook?token=a%20b",
        "http://example.com:8080/",
        "https://xn--bcher-kva.example./",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]:8443/x",
        "https://a_b.example/",
    ],
)
def test_what_can_be_sent_to_is_taken(url):
    """http and https, ports, names that only DNS knows, public addresses."""
    assert check_url(url, NONE) is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://example.com/", "https://"),
        ("example.com/hook", "https://"),
        ("https://", "host"),
        ("https:///path", "host"),
        ("https://user:secret@example.com/", "user"),
        ("https://user@example.com/", "user"),
        ("https://example.com/#there", "fragment"),
        ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "no URL"),
        ("https://exa mple.com/", "percent-encoded"),
        ("https://bücher.example/", "percent-encoded"),
        ("https://example.com/\n", "percent-encoded"),
        ("https://example.com\\@10.0.0.1/", "percent-encoded"),
        ("https://example..com/", "host"),
        ("https://-example.com/", "host"),
        ("http://127.1/", "host"),
        ("http://0x7f000001/", "host"),
        ("http://2130706433/", "host"),
        ("http://0177.0.0.1/", "host"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("https://example.com/" + "a" * 2048, "2048"),
    ],
)
def test_what_cannot_be_sent_to_is_refused_with_the_reason(url, told):
    """So that a client learns of it when it submits, and not from a log."""
    assert told in (check_url(url, NONE) or "")


PRIVATE = """127.0.0.1 127.9.9.9 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 169.254.0.1 100.64.0.1 100.100.100.200
0.0.0.0 0.1.2.3 192.0.0.1 192.0.0.192 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 192.88.99.1 224.0.0.1 239.1.1.1
240.0.0.1 255.255.255.255 :: ::1 ::7f00:1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:7f00:1 64:ff9b::a00:1
64:ff9b::a9fe:a9fe 64:ff9b:1::1 2002:7f00:1:: 2002:a9fe:a9fe:: 2001::1 2001:db8::1 3fff::1 100::1 fc00::1 fd00:ec2::254
fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 5f00::1 4000::1"""
PUBLIC = """8.8.8.8 1.1.1.1 93.184.216.34 2606:4700:4700::1111 2a00:1450:4001:801::200e ::ffff:8.8.8.8
64:ff9b::808:808"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private_reserved_and_metadata_addresses_are_refused(address):
    """Also where an IPv6 address carries such an IPv4 address, and where only some versions of Python know."""
    assert not is_allowed(ipaddress.ip_address(address), NONE)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses_are_allowed(address):
    """Those that carry a public IPv4 address too."""
    assert is_allowed(ipaddress.ip_address(address), NONE)


@given(st.ip_addresses(v=4))
def test_an_address_means_the_same_in_every_form(address):
    """Mapped, behind NAT64, in 6to4: what is inside decides."""
    plain = is_allowed(address, NONE)
    number = int(address)
    for form in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80):
        assert is_allowed(ipaddress.IPv6Address(form), NONE) == plain


def test_an_operator_permits_networks_addresses_and_names():
    """Networks count in every form of an address; names are whole names, whatever case and closing dot."""
    allowed = parse_allowed("127.0.0.0/8, 10.1.2.3,fd12::/16 ,receiver.Internal., localhost")
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "10.1.2.3", "fd12::9"):
        assert is_allowed(ipaddress.ip_address(address), allowed), address
    for address in ("10.1.2.4", "::1", "fd13::1"):
        assert not is_allowed(ipaddress.ip_address(address), allowed), address
    ten = ipaddress.ip_address("10.9.9.9")
    assert is_allowed(ten, allowed, "RECEIVER.internal")
    assert not is_allowed(ten, allowed, "other.receiver.internal")
    assert not is_allowed(ten, allowed, "internal")
    assert check_url("http://127.0.0.1:9/", allowed) is None


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "fe80::1", "0.0.0.0", "224.0.0.1", "ff02::1"])
def test_an_allowed_name_leads_to_no_metadata_and_an_allowed_network_does(address):
    """Whoever holds the DNS of a name is not the operator; whoever wrote the network is."""
    found = ipaddress.ip_address(address)
    assert not is_allowed(found, parse_allowed("a.internal"), "a.internal")
    assert is_allowed(found, parse_allowed(address), "a.internal")


def test_a_setting_that_cannot_be_read_is_told_with_all_its_faults():
    """Beside the faults of other settings; an empty one is none."""
    assert Settings(webhook_allow=" ,").webhook_allow
    given_ = {"DATABASE_URL": "d", "BATCHLINE_WEBHOOK_ALLOW": "10.0.0.1/8, a b, 300.1.1.1, ok.internal, ::/200"}
    with pytest.raises(SettingsError) as caught:
        load(given_)
    for part in ("REDIS_URL", "BATCHLINE_WEBHOOK_ALLOW", "'10.0.0.1/8'", "'a b'", "'300.1.1.1'", "'::/200'"):
        assert part in caught.value.detail
    assert "ok.internal" not in caught.value.detail


def test_events_are_those_of_the_kind():
    """The fault names the one that is wrong, and the ones that there are."""
    wanted = Webhook("https://example.com/", ("job.succeeded", "batch.completed", "nothing"))
    told = list(faults(wanted, "job", NONE))
    assert [f.pointer for f in told] == ["/webhook/events/1", "/webhook/events/2"]
    assert "job.succeeded, job.failed, job.cancelled, job.expired" in told[0].detail
    assert list(faults(Webhook("https://example.com/"), "batch", NONE)) == []
    assert [f.pointer for f in faults(Webhook("x", ("job.failed",) * 9), "job", NONE, "/batch/webhook")] == [
        "/batch/webhook/url",
        "/batch/webhook/events/1",
    ]


def test_the_body_is_the_standards_envelope_the_same_at_every_attempt():
    """Type, time of the end in UTC, the subject as it stands in the store, byte for byte."""
    ended_at = datetime(2026, 11, 22, 20, 0, 1, 5, tzinfo=timezone(timedelta(hours=2)))
    data = '{"id": "job_1", "metadata": {"x": 1.50}}'
    due = Due(uuid.uuid4(), 1, 1, 1, uuid.uuid4(), "u", "job.failed", ended_at, uuid.uuid4(), ("s",), data)
    body = body_of(due)
    assert body.decode() == f'{{"type":"job.failed","timestamp":"2026-11-22T18:00:01.000005Z","data":{data}}}'
    assert datetime.fromisoformat(json.loads(body)["timestamp"]) == ended_at.astimezone(UTC)


def test_endpoints_that_hang_leave_threads_to_others():
    """Few may have many messages under way each, many have one each: none has all threads."""
    threads, under_way = 128, []
    for _ in range(40):  # endpoints that hang, each with more messages than may be under way
        cap = share(sum(under_way), threads)
        under_way.append(min(cap, threads - sum(under_way)))
    assert max(under_way) <= threads // 8
    assert sum(under_way) < threads
    assert share(0, 1) == 1
