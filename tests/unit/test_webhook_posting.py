"""One request to a place that a client named: where it may go, how long it may take, what of the answer counts."""

from __future__ import annotations

import ipaddress
import socket
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from crooked_receiver import CrookedReceiver, certificate, receiving

from batchline.webhook import parse_allowed
from scheduler import posting
from scheduler.posting import MAX_BODY_BYTES, Poster

LOOPBACK = parse_allowed("127.0.0.0/8, ::1")
HEADERS = {"webhook-id": "msg_1"}
NOBODY = parse_allowed("")


@pytest.fixture(scope="module")
def receiver():
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def poster() -> Poster:
    return Poster(LOOPBACK)


def leads_to(*answers: list[str]):
    """A resolver that gives one answer after the other, and counts how often it is asked."""

    def resolve(host: str, port: int):
        resolve.asked += 1
        return [ipaddress.ip_address(a) for a in answers[min(resolve.asked, len(answers)) - 1]]

    resolve.asked = 0
    return resolve


@pytest.mark.parametrize(
    ("way", "status", "error"),
    [
        ("200", 200, None),
        ("204", 204, None),
        ("500", 500, "answered 500"),
        ("410", 410, "answered 410"),
        ("redirect", 301, "answered 301; redirects are not followed"),
        ("hang", None, "no answer within 1 s"),
        ("drip-head", None, "no answer within 1 s"),
        ("close", None, "the connection was closed, or what came was no answer"),
        ("garbage", None, "the connection was closed, or what came was no answer"),
        ("short-body", 200, None),
        ("drip-body", 200, None),
        ("endless-body", 200, None),
        ("endless-interim", None, "the answer has no end"),
    ],
)
def test_an_answers_status_counts_and_nothing_holds_a_sender_longer_than_its_deadline(
    receiver, poster, way, status, error
):
    """Whatever the server does, the attempt ends by its deadline; a status that has come counts."""
    if way in ("hang", "drip-head", "drip-body"):
        poster = Poster(LOOPBACK, timeout_s=1)
    answer = poster.post(f"{receiver.url}/{way}?token=1", HEADERS, b"{}")
    assert (answer.status_code, answer.error) == (status, error)
    assert answer.duration_ms < 10_000


def test_a_head_without_end_is_left(receiver, poster):
    """Headers beyond a bound are no answer."""
    answer = poster.post(f"{receiver.url}/endless-head", HEADERS, b"{}")
    assert answer.status_code is None
    assert answer.error


def test_a_redirect_is_not_followed(receiver, poster):
    """One connection, and none to where the answer points."""
    before = receiver.connections
    poster.post(f"{receiver.url}/redirect", HEADERS, b"{}")
    assert receiver.connections == before + 1


def test_the_request_is_what_was_given(receiver, poster):
    """Path and query as they are, the body byte for byte, the given headers; no header of a proxy or a cookie."""
    poster.post(f"{receiver.url}/200?token=a%20b&x=1", {"webhook-id": "msg_7"}, b'{"a": 1.50}')
    head, _, body = receiver.seen[-1].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /200?token=a%20b&x=1 HTTP/1.1"
    assert body == b'{"a": 1.50}'
    assert dict(line.lower().split(": ", 1) for line in lines) == {
        "host": f"127.0.0.1:{receiver.port}",
        "content-type": "application/json",
        "user-agent": "batchline-webhooks",
        "connection": "close",
        "content-length": "11",
        "webhook-id": "msg_7",
    }


@pytest.mark.parametrize(
    ("text", "expected"), [("120", 120.0), ("99999999999999", 86_400.0), ("soon", 0.0), ("-5", 0.0)]
)
def test_retry_after_is_read_of_429_and_503_and_bounded(poster, text, expected):
    """A day at most; what cannot be read asks for nothing."""
    with receiving() as receiver:
        receiver.extra = f"Retry-After: {text}"
        for status, told in ((429, expected), (503, expected), (500, 0.0), (200, 0.0)):
            assert poster.post(f"{receiver.url}/{status}", HEADERS, b"{}").retry_after_s == told


def test_retry_after_may_be_a_date(poster):
    """As HTTP has it; a date that has passed asks for nothing."""
    with receiving() as receiver:
        for ahead_s, low, high in ((600, 540, 600), (-600, 0, 0)):
            date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead_s), usegmt=True)
            receiver.extra = f"Retry-After: {date}"
            assert low <= poster.post(f"{receiver.url}/503", HEADERS, b"{}").retry_after_s <= high


PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "fd00:ec2::254",
    "0.0.0.0",
    "100.64.0.1",
    "224.0.0.1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_public_name_that_leads_to_a_private_address_is_refused(receiver, address):
    """Judged where the connection is made: nobody is connected to, and the log does not tell where the name leads."""
    before = receiver.connections
    poster = Poster(NOBODY, timeout_s=2, resolve=leads_to([address]))
    answer = poster.post(f"http://receiver.example:{receiver.port}/200", HEADERS, b"{}")
    assert answer.status_code is None
    assert "BATCHLINE_WEBHOOK_ALLOW" in (answer.error or "")
    assert address not in (answer.error or "")
    assert receiver.connections == before


def test_an_address_in_the_url_is_judged_as_well(receiver):
    """Also in the forms that only a resolver takes for addresses."""
    before = receiver.connections
    poster = Poster(NOBODY, timeout_s=2)
    for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001", "localhost"):
        answer = poster.post(f"http://{host}:{receiver.port}/200", HEADERS, b"{}")
        assert "BATCHLINE_WEBHOOK_ALLOW" in (answer.error or ""), host
    assert receiver.connections == before


def test_a_name_is_looked_up_once_and_what_was_judged_is_connected_to(receiver):
    """A DNS that answers publicly first and privately a moment later gains nothing."""
    resolve = leads_to(["192.0.2.1"], ["127.0.0.1"])
    poster = Poster(parse_allowed("192.0.2.0/24"), timeout_s=0.4, resolve=resolve)
    before = receiver.connections
    answer = poster.post(f"http://receiver.example:{receiver.port}/200", HEADERS, b"{}")
    assert (answer.status_code, resolve.asked, receiver.connections) == (None, 1, before)
    answer = poster.post(f"http://receiver.example:{receiver.port}/200", HEADERS, b"{}")
    assert "BATCHLINE_WEBHOOK_ALLOW" in (answer.error or "")
    assert receiver.connections == before


def test_of_several_addresses_the_permitted_ones_are_tried_in_turn(receiver):
    """A private one among them is passed over, one where nobody listens too."""
    with receiving() as other:
        other.close()
        resolve = leads_to(["10.0.0.1", "::1", "127.0.0.1"])
        answer = Poster(LOOPBACK, timeout_s=5, resolve=resolve).post(
            f"http://receiver.example:{receiver.port}/200", HEADERS, b"{}"
        )
    assert answer.status_code == 200


def test_a_resolver_that_hangs_ends_with_the_deadline():
    """The system's resolver knows no deadline; the attempt does."""
    never = threading.Event()
    poster = Poster(LOOPBACK, timeout_s=0.3, resolve=lambda host, port: never.wait(20) and [])
    answer = poster.post("http://receiver.example/", HEADERS, b"{}")
    never.set()
    assert answer.error == "no answer within 0.3 s"
    assert answer.duration_ms < 3000


def test_an_allowed_name_may_lead_to_private_addresses_but_not_to_metadata(receiver):
    """The name is the operator's word; whoever holds its DNS still gets no credentials of the machine."""
    allowed = parse_allowed("receiver.internal")
    url = f"http://receiver.internal:{receiver.port}/200"
    assert Poster(allowed, resolve=leads_to(["127.0.0.1"])).post(url, HEADERS, b"{}").status_code == 200
    refused = Poster(allowed, resolve=leads_to(["169.254.169.254"])).post(url, HEADERS, b"{}")
    assert "BATCHLINE_WEBHOOK_ALLOW" in (refused.error or "")


def test_proxies_of_the_environment_are_not_asked(receiver, monkeypatch):
    """A proxy would look the name up itself, and connect where we would not."""
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert Poster(LOOPBACK).post(f"{receiver.url}/200", HEADERS, b"{}").status_code == 200
        assert proxy.connections == 0


def test_a_certificate_must_be_good_for_the_name(tmp_path, monkeypatch):
    """Unknown issuer, another name, run out: refused, and nothing is sent; the operator's own issuer is honoured."""
    good, bundle = certificate(tmp_path, "127.0.0.1")
    other, other_bundle = certificate(tmp_path, "elsewhere.example")
    old, old_bundle = certificate(tmp_path, "127.0.0.1", days=-1)
    with receiving(good) as receiver:
        answer = Poster(LOOPBACK).post(f"{receiver.url}/200", HEADERS, b"{}")
        assert answer.error == "the certificate is not accepted: self-signed certificate"
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        assert Poster(LOOPBACK).post(f"{receiver.url}/200", HEADERS, b"{}").status_code == 200
        assert len(receiver.seen) == 1
    for context, trusted in ((other, other_bundle), (old, old_bundle)):
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with receiving(context) as receiver:
            answer = Poster(LOOPBACK).post(f"{receiver.url}/200", HEADERS, b"{}")
            assert "the certificate is not accepted" in (answer.error or ""), answer
            assert receiver.seen == []


def test_a_server_that_speaks_no_tls_is_told(receiver):
    """https to a plain server, which waits for more."""
    answer = Poster(LOOPBACK, timeout_s=1).post(receiver.url.replace("http", "https") + "/200", HEADERS, b"{}")
    assert answer.status_code is None
    assert answer.error


def test_nobody_there_and_no_such_name_are_told(poster):
    """Each in words that a client can act on."""
    gone = CrookedReceiver()
    gone.close()
    assert poster.post(f"{gone.url}/", HEADERS, b"{}").error == "the connection was refused"

    def unknown(host: str, port: int):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    answer = Poster(NOBODY, resolve=unknown).post("http://nobody.example/", HEADERS, b"{}")
    assert answer.error == "the host is unknown to DNS"


def test_bodies_of_answers_are_read_up_to_a_bound(receiver, monkeypatch):
    """An answer without end is left after 64 KiB, whatever else would end it later."""
    monkeypatch.setattr(posting, "_MAX_READ_BYTES", 2**40)
    monkeypatch.setattr(posting, "_BODY_S", 60.0)
    answer = Poster(LOOPBACK, timeout_s=60).post(f"{receiver.url}/endless-body", HEADERS, b"{}")
    assert (answer.status_code, answer.duration_ms < 15_000) == (200, True)
    assert MAX_BODY_BYTES == 65_536
