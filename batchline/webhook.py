"""Webhooks: what a client may ask for, how a message is signed, when it is tried again, and where it may never go.

Standard Webhooks 1.0 (https://www.standardwebhooks.com). Rules only: who sends is `scheduler/deliveries.py`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import random
import re
import secrets
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import msgspec

from batchline import ids
from batchline.errors import Fault, NotFoundError

JOB_EVENTS = ("job.succeeded", "job.failed", "job.cancelled", "job.expired")
BATCH_EVENTS = ("batch.completed", "batch.failed", "batch.cancelled", "batch.expired")
EVENTS: dict[str, tuple[str, ...]] = {"job": JOB_EVENTS, "batch": BATCH_EVENTS}
"""By what they are about: the subject's kind, a dot, and the status that it ended with."""

MAX_URL_CHARACTERS = 2048

RETRIES_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds to wait after the first, second, … failed attempt: the standard's own table, three days and a little."""
JITTER = 0.2
"""A wait is longer than the table says by up to this part of it, so that what failed together is not tried together."""
MAX_RETRY_AFTER_S = 86_400
"""The longest that a receiver may ask to be left alone."""

ALLOW_VARIABLE = "BATCHLINE_WEBHOOK_ALLOW"

_SECRET_PREFIX = "whsec_"  # noqa: S105
_SECRET_BYTES = 32
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*\.?\Z")
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\.?\Z")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NEVER_GLOBAL = tuple(
    ipaddress.ip_network(n) for n in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
)
"""What some Python versions take for global: protocol assignments, anycast of 6to4, Teredo, documentation."""
_METADATA = tuple(
    ipaddress.ip_network(n) for n in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "100.100.100.200/32")
)
"""Where clouds tell a machine its credentials: a name that is allowed does not lead there, only an allowed network."""


class Webhook(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where to tell of a job's or a batch's end. No events, all events."""

    url: str
    events: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Allowed:
    """Private places that webhooks may lead to all the same: networks, and names whatever they resolve to."""

    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    names: frozenset[str] = frozenset()


def parse_allowed(text: str) -> Allowed:
    """Read BATCHLINE_WEBHOOK_ALLOW: networks (`10.1.0.0/16`), addresses and host names, separated by commas.

    Raises:
        ValueError: something is neither; says all that is not.
    """
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    names: set[str] = set()
    wrong: list[str] = []
    for part in (p.strip().lower() for p in text.split(",")):
        if not part:
            continue
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError as e:
            if "/" in part:
                wrong.append(f"{part!r} is no network ({e})")
            elif _is_name(part):
                names.add(part.rstrip("."))
            else:
                wrong.append(f"{part!r} is neither a network nor a host name")
    if wrong:
        raise ValueError("; ".join(wrong))
    return Allowed(tuple(networks), frozenset(names))


def faults(webhook: Webhook, kind: str, allowed: Allowed, pointer: str = "/webhook") -> Iterator[Fault]:
    """What is wrong with a webhook of a job or a batch, by JSON pointer.

    Args:
        webhook: what the client asked for.
        kind: `job` or `batch`.
        allowed: private places that the operator permits.
        pointer: where the webhook stands in the body.
    """
    if told := check_url(webhook.url, allowed):
        yield Fault(f"{pointer}/url", told)
    for n, event in enumerate(webhook.events):
        if event not in EVENTS[kind]:
            yield Fault(f"{pointer}/events/{n}", f"is no event of a {kind}: there are {', '.join(EVENTS[kind])}")
        elif event in webhook.events[:n]:
            yield Fault(f"{pointer}/events/{n}", "is named twice")
            return


def check_url(url: str, allowed: Allowed) -> str | None:
    """Why messages cannot be sent to a URL, or None. Names are not looked up: each sending sees where they lead."""
    if len(url) > MAX_URL_CHARACTERS:
        return f"has {len(url)} characters; at most {MAX_URL_CHARACTERS} are taken"
    if not url.isascii() or not url.isprintable() or any(c in url for c in ' \\"<>^`{|}'):
        return "has characters that must be percent-encoded (in a host name: xn--…)"
    if "#" in url:
        return "has a fragment, which is never sent"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https"):
        return "must begin with https:// or http://"
    if "@" in parts.netloc:
        return "has a user or a password; the signature says who sends"
    if port == 0:
        return "has the port 0"
    return _check_host(parts, allowed)


def _check_host(parts: SplitResult, allowed: Allowed) -> str | None:
    host = (parts.hostname or "").lower()
    address = literal(host)
    if address is None:
        return None if _is_name(host) and "[" not in parts.netloc else "has no host name that there can be"
    if "%" in host:
        return "has an address with a zone"
    if not is_allowed(address, allowed, host):
        return f"leads to an address that is not public; an operator permits such with {ALLOW_VARIABLE}"
    return None


def literal(host: str) -> Address | None:
    """The address that a host is, if it is one and no name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_name(host: str) -> bool:
    """Whether this can be a name; `127.1` and `0x7f000001` cannot: resolvers take them for addresses."""
    return _HOST.match(host) is not None and _NUMBER.match(host.rstrip(".").rpartition(".")[2]) is None


def is_allowed(address: Address, allowed: Allowed, host: str = "") -> bool:
    """Whether a connection for a webhook may go to this address.

    Public ones, and those that the operator permits. An IPv4 address within (mapped, NAT64, 6to4) is what counts.

    Args:
        address: that the connection would go to.
        allowed: private places that the operator permits.
        host: the name or address in the URL, as it is looked up.
    """
    inner = _carried(address)
    if any(a in network for a in (address, inner) for network in allowed.networks if network.version == a.version):
        return True
    if is_public(inner):
        return True
    return host.lower().rstrip(".") in allowed.names and not _is_odd(inner)


def is_public(address: Address) -> bool:
    """Whether an address (none that carries another) belongs to a host of the internet."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _NEVER_GLOBAL if network.version == address.version)


def _is_odd(address: Address) -> bool:
    return (
        address.is_multicast
        or address.is_unspecified
        or any(address in network for network in _METADATA if network.version == address.version)
    )


def _carried(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def show_message_id(message_id: uuid.UUID) -> str:
    """The id as receivers see it: `msg_` and 26 characters; the header webhook-id."""
    return ids.show("msg_", message_id)


def parse_message_id(text: str) -> uuid.UUID:
    """The inverse of `show_message_id`.

    Raises:
        NotFoundError: the text is no id of a message, so no message has it.
    """
    return _parsed("msg_", text, "There is no delivery with this id.")


def show_endpoint_id(endpoint_id: uuid.UUID) -> str:
    """The id of an endpoint as clients see it: `endpoint_` and 26 characters."""
    return ids.show("endpoint_", endpoint_id)


def parse_endpoint_id(text: str) -> uuid.UUID:
    """The inverse of `show_endpoint_id`.

    Raises:
        NotFoundError: the text is no id of an endpoint, so no endpoint has it.
    """
    return _parsed("endpoint_", text, "There is no endpoint with this id.")


def _parsed(prefix: str, text: str, unknown: str) -> uuid.UUID:
    found = ids.parse(prefix, text)
    if found is None:
        raise NotFoundError(unknown)
    return found


def new_secret() -> str:
    """A secret to sign with, as the standard writes it: `whsec_` and 32 random bytes in base64."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature: `v1,` and HMAC-SHA256 of `id.timestamp.body` in base64.

    Args:
        secret: `whsec_…`.
        message_id: the header webhook-id.
        timestamp: the header webhook-timestamp: seconds since 1970, of the attempt.
        body: as it is sent.
    """
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    signed = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(signed.digest()).decode()}"


def headers(secrets_: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The standard's three headers, with a signature for each secret."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(s, message_id, timestamp, body) for s in secrets_),
    }


def retry_s(attempt: int, *, retry_after_s: float = 0.0, rng: random.Random | None = None) -> float | None:
    """Seconds until the next attempt, or None: it was the last.

    Args:
        attempt: that has failed, from 1.
        retry_after_s: what the receiver asked for; the wait is never shorter than the table says.
        rng: source of the jitter; the module's own when absent.
    """
    if attempt > len(RETRIES_S):
        return None
    wait_s = RETRIES_S[attempt - 1] * (1.0 + JITTER * (rng or random).random())
    return max(wait_s, min(retry_after_s, MAX_RETRY_AFTER_S))
