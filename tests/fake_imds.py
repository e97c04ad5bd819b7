"""A fake instance metadata service on loopback, faithful in what a worker asks: version 2 only, by token.

As AWS documents it: a token is PUT with its time to live of 1 to 21,600 s; a GET without a valid one is 401; without a
notice `spot/instance-action` and `events/recommendations/rebalance` are 404; methods that are not spoken are 405. A
request that came through a proxy (X-Forwarded-For) gets no token: 403.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

TOKEN_PATH = "/latest/api/token"
ACTION_PATH = "/latest/meta-data/spot/instance-action"
REBALANCE_PATH = "/latest/meta-data/events/recommendations/rebalance"
INSTANCE_PATH = "/latest/meta-data/instance-id"


class FakeImds:
    """What the service of one instance says now; `seen` are (method, path, status), in order."""

    def __init__(self, instance: str = "i-0123456789abcdef0") -> None:
        self.documents: dict[str, str] = {INSTANCE_PATH: instance}
        self.seen: list[tuple[str, str, int]] = []
        self.tokens: dict[str, float] = {}
        self.down = False
        """Questions are accepted and never answered, as beyond the hop limit."""
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def warn(self) -> None:
        """A rebalance recommendation."""
        self.documents[REBALANCE_PATH] = json.dumps({"noticeTime": _stamp(0)})

    def notice(self, within_s: float = 120.0, action: str = "terminate") -> None:
        """The instance ends in so many seconds; AWS tells whole seconds."""
        self.documents[ACTION_PATH] = json.dumps({"action": action, "time": _stamp(within_s)})

    def forget_tokens(self) -> None:
        self.tokens.clear()

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body."""
        if self.down:
            self._over.wait(10)
        if method == "PUT" and path == TOKEN_PATH:
            return self._token(headers)
        if method != "GET":
            return 405, ""
        if self.tokens.get(headers.get("x-aws-ec2-metadata-token", ""), 0.0) < time.monotonic():
            return 401, ""
        return (200, self.documents[path]) if path in self.documents else (404, "")

    def _token(self, headers: dict[str, str]) -> tuple[int, str]:
        if "x-forwarded-for" in headers:
            return 403, ""
        ttl = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= 21600:
            return 400, ""
        token = secrets.token_urlsafe(40)
        self.tokens[token] = time.monotonic() + int(ttl)
        return 200, token


def _stamp(within_s: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=within_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _handler(imds: FakeImds) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version: ClassVar[str] = "HTTP/1.1"

        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = imds.answer(self.command, self.path, headers)
            imds.seen.append((self.command, self.path, status))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_HEAD = _answer  # noqa: N815 - http.server asks for these

        def log_message(self, *args: object) -> None:
            """Quiet."""

    return Handler


@contextmanager
def fake_imds() -> Iterator[FakeImds]:
    imds = FakeImds()
    try:
        yield imds
    finally:
        imds.close()
