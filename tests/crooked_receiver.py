"""A receiver of webhooks on loopback that answers as its path says: well, late, endlessly, or not at all."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_GIVE_UP_S = 20.0


class CrookedReceiver:
    """One socket; a thread for each connection. `seen` are the requests whose heads arrived whole."""

    def __init__(self, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        self._tls = tls
        self._socket = socket.create_server((address, 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{address}:{self.port}"
        self.seen: list[bytes] = []
        self.connections = 0
        self.extra = ""
        """A header more in plain answers."""
        self._closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_GIVE_UP_S)
        with contextlib.suppress(OSError), connection:
            if self._tls is None:
                self._answer(connection)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secure:
                self._answer(secure)

    def _answer(self, connection: socket.socket) -> None:
        request = _request(connection)
        self.seen.append(request)
        way = request.split(b" ", 2)[1].decode().partition("?")[0].strip("/")
        answer = _WAYS.get(way)
        if answer is not None:
            answer(connection, self._closing)
        else:
            extra = self.extra and f"{self.extra}\r\n"
            connection.sendall(f"HTTP/1.1 {way} X\r\n{extra}content-length: 2\r\n\r\nok".encode())


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += _received(connection)
    return head + b"\r\n\r\n" + body


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError
    return data


def _hang(_: socket.socket, closing: threading.Event) -> None:
    closing.wait(_GIVE_UP_S)


def _drip(head: bytes, data: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def answer(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(head)
        for byte in data:
            connection.sendall(bytes([byte]))
            if closing.wait(0.05):
                return

    return answer


def _endless(head: bytes, part: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def answer(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(head)
        until = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < until and not closing.is_set():
            connection.sendall(part)

    return answer


def _redirect(connection: socket.socket, _: threading.Event) -> None:
    there = "http://169.254.169.254/latest/meta-data/"
    connection.sendall(f"HTTP/1.1 301 Moved\r\nlocation: {there}\r\ncontent-length: 0\r\n\r\n".encode())


_HEAD = b"HTTP/1.1 200 OK\r\n"
_WAYS: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "hang": _hang,
    "close": lambda _connection, _closing: None,
    "garbage": lambda connection, _: connection.sendall(b"\x00\x01 what?\r\n\r\n"),
    "redirect": _redirect,
    "drip-head": _drip(b"", _HEAD + b"x-slow: " + b"y" * 1000),
    "drip-body": _drip(_HEAD + b"content-length: 1000\r\n\r\n", b"y" * 1000),
    "short-body": lambda connection, _: connection.sendall(_HEAD + b"content-length: 1000\r\n\r\nshort"),
    "endless-head": _endless(_HEAD, b"x-more: " + b"y" * 1000 + b"\r\n"),
    "endless-interim": _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    "endless-body": _endless(_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"3e8\r\n" + b"y" * 1000 + b"\r\n"),
}


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[CrookedReceiver]:
    receiver = CrookedReceiver(tls)
    try:
        yield receiver
    finally:
        receiver.close()


_serials = itertools.count(1)


def certificate(folder: Path, name: str, *, days: int = 1) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS with a certificate that it signed itself for a name or address; the certificate's file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    now = dt.datetime.now(dt.UTC)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder(issuer, issuer, key.public_key(), next(_serials))
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([subject]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}-{days}.pem"
    encoding = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(encoding)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, path
