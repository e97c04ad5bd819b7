"""One HTTP POST to a place that a client named: only to permitted addresses, to an end in time, of bounded size.

Whoever names the URL may be hostile, and so may the server there and the DNS of its name. So the addresses of a name
are judged where the connection is made, and the connection goes to just these; every read has what is left of one
deadline; an answer is read up to a bound and forgotten but for its status. Nothing is taken from the environment but
the certificates to trust (SSL_CERT_FILE, SSL_CERT_DIR): no proxy, no .netrc.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from batchline import webhook
from batchline.webhook import ALLOW_VARIABLE, Address, Allowed

TIMEOUT_S = 15.0
"""For one attempt whole: lookup, connection, handshake, request, answer."""
MAX_BODY_BYTES = 64 * 2**10
"""Of an answer's body; what comes behind is not waited for."""
_MAX_READ_BYTES = 256 * 2**10
"""Of all that is read, heads and interim answers too."""
_BODY_S = 2.0
"""For an answer's body: its status is known by then, and reading on is a courtesy to the server."""
_CONNECT_S = 5.0
"""For one of several addresses."""
_TICK_S = 0.01
_WRITE_BYTES = 16 * 2**10

Resolve = Callable[[str, int], Sequence[Address]]


@dataclass(frozen=True, slots=True)
class Answer:
    """How an attempt went: a status, or why there is none."""

    status_code: int | None
    error: str | None
    """For the client that named the URL; None when the status is good."""
    duration_ms: int
    retry_after_s: float = 0.0


class _RefusedError(Exception):
    """No address of the host is one that webhooks may go to."""


class _TooMuchError(Exception):
    """The server sends without end."""


class Poster:
    """Sends requests; any thread, several at once."""

    def __init__(self, allowed: Allowed, *, timeout_s: float = TIMEOUT_S, resolve: Resolve | None = None) -> None:
        """Args:
        allowed: private places that webhooks may lead to.
        timeout_s: for one request whole.
        resolve: looks a name up; the system's resolver when absent.
        """
        self._allowed = allowed
        self._timeout_s = timeout_s
        self._resolve = resolve or _look_up
        self._tls = httpx.create_ssl_context()

    def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send once, whatever happens: every failure is an answer."""
        began = time.monotonic()
        deadline = _Deadline(began + self._timeout_s)
        status: int | None = None
        error: str | None = None
        retry_after_s = 0.0
        try:
            with (
                self._connection(url, deadline) as connection,
                connection.stream("POST", url, headers=[*_all_headers(url, headers).items()], content=body) as response,
            ):
                status = response.status
                retry_after_s = _retry_after_s(response.headers) if status in (429, 503) else 0.0
                deadline.shorten(_BODY_S)
                _read_some(response)
        except Exception as e:
            error = self._told(e, deadline)
        if status is not None:
            error = _judged(status)
        return Answer(status, error, round((time.monotonic() - began) * 1000), retry_after_s)

    def _connection(self, url: str, deadline: _Deadline) -> httpcore.HTTPConnection:
        backend = _Backend(self._allowed, self._resolve, deadline)
        return httpcore.HTTPConnection(httpcore.URL(url).origin, ssl_context=self._tls, network_backend=backend)

    def _told(self, error: Exception, deadline: _Deadline) -> str:
        if deadline.has_passed():
            return f"no answer within {self._timeout_s:g} s"
        for e in _chain(error):
            if isinstance(e, _RefusedError):
                return f"the host leads to no public address; an operator permits others with {ALLOW_VARIABLE}"
            if isinstance(e, _TooMuchError):
                return "the answer has no end"
            if isinstance(e, ssl.SSLCertVerificationError):
                return f"the certificate is not accepted: {e.verify_message}"
            if isinstance(e, ssl.SSLError):
                return "TLS could not be agreed on"
            if isinstance(e, socket.gaierror):
                return "the host is unknown to DNS"
            if isinstance(e, ConnectionRefusedError):
                return "the connection was refused"
        if isinstance(error, httpcore.ConnectTimeout):
            return "the host could not be reached in time"
        if isinstance(error, httpcore.ConnectError):
            return "the host could not be reached"
        if isinstance(error, httpcore.NetworkError | httpcore.RemoteProtocolError):
            return "the connection was closed, or what came was no answer"
        return "the request could not be sent"


class _Deadline:
    """When an attempt must have ended, by the monotonic clock."""

    def __init__(self, at: float) -> None:
        self._at = at
        self._shortened = at

    def left_s(self) -> float:
        """Seconds left, more than 0.

        Raises:
            httpcore.ReadTimeout: none is.
        """
        left_s = self._shortened - time.monotonic()
        if left_s <= 0:
            raise httpcore.ReadTimeout
        return left_s

    def shorten(self, to_s: float) -> None:
        self._shortened = min(self._at, time.monotonic() + to_s)

    def has_passed(self) -> bool:
        return time.monotonic() >= self._at - _TICK_S


class _Backend(httpcore.NetworkBackend):
    """Connections to permitted addresses only. A host is looked up once: what was judged is what is connected to."""

    def __init__(self, allowed: Allowed, resolve: Resolve, deadline: _Deadline) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._deadline = deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline's business
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - none are wanted
    ) -> httpcore.NetworkStream:
        found = webhook.literal(host)
        addresses = [found] if found is not None else self._looked_up(host, port)
        permitted = [a for a in addresses if webhook.is_allowed(a, self._allowed, host)]
        if not permitted:
            raise _RefusedError
        failure: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for n, address in enumerate(permitted, 1):
            left_s = self._deadline.left_s()
            try:
                stream = self._plain.connect_tcp(
                    str(address), port, left_s if n == len(permitted) else min(left_s, _CONNECT_S), local_address
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as e:
                failure = e
            else:
                return _Stream(stream, self._deadline)
        assert failure is not None  # noqa: S101
        raise failure

    def _looked_up(self, host: str, port: int) -> Sequence[Address]:
        """The host's addresses, looked up in a thread of its own: the system's resolver knows no deadline."""
        found: Future[Sequence[Address]] = Future()

        def look_up() -> None:
            try:
                found.set_result(self._resolve(host, port))
            except Exception as e:
                found.set_exception(e)

        threading.Thread(target=look_up, name="webhook-dns", daemon=True).start()
        return found.result(self._deadline.left_s())


class _Stream(httpcore.NetworkStream):
    """A connection in which every wait has what is left of the deadline, and what is read is bounded."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline
        self._bytes = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline's business
        data = self._stream.read(max_bytes, self._deadline.left_s())
        self._bytes += len(data)
        if self._bytes > _MAX_READ_BYTES:
            raise _TooMuchError
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        for start in range(0, len(buffer), _WRITE_BYTES):
            self._stream.write(buffer[start : start + _WRITE_BYTES], self._deadline.left_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._deadline.left_s()), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _look_up(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = (webhook.literal(str(sockaddr[0])) for *_, sockaddr in found)
    return list(dict.fromkeys(a for a in addresses if a is not None))


def _all_headers(url: str, headers: dict[str, str]) -> dict[str, str]:
    return {
        "host": urlsplit(url).netloc,
        "content-type": "application/json",
        "user-agent": "batchline-webhooks",
        "connection": "close",
        **headers,
    }


def _read_some(response: httpcore.Response) -> None:
    count = 0
    for part in response.iter_stream():
        count += len(part)
        if count >= MAX_BODY_BYTES:
            return


def _judged(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"answered {status}; redirects are not followed"
    return f"answered {status}"


def _retry_after_s(headers: Sequence[tuple[bytes, bytes]]) -> float:
    """What Retry-After asks for, as seconds or as a date; 0 when it says nothing that can be read."""
    text = next((v.decode("latin-1") for k, v in headers if k.lower() == b"retry-after"), "").strip()
    if text.isdecimal():
        return min(float(text[:10]), webhook.MAX_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return min(max(0.0, (at - datetime.now(UTC)).total_seconds()), webhook.MAX_RETRY_AFTER_S)


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
