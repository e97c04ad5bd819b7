"""A receiver of webhooks as users write it: the standard's own library verifies all. It fails as its paths say."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

_HANG_S = 4.0


@dataclass(frozen=True)
class Arrival:
    """One request that was verified."""

    path: str
    id: str
    event: dict[str, Any]
    body: bytes
    signatures: int
    at: float
    """When it came, in seconds since 1970."""
    answered: int


class HookReceiver(ThreadingHTTPServer):
    """`/well` answers 204, `/gone` 410, `/hang` late or never, `/flaky` 500 to half of what it has not seen before."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, seed: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.secret = ""
        self.arrivals: list[Arrival] = []
        self.unverified = 0
        self.gone = True
        self.lock = threading.Lock()
        self.rng = random.Random(seed)

    def of(self, path: str) -> list[Arrival]:
        with self.lock:
            return [a for a in self.arrivals if a.path.startswith(path)]

    def delivered(self, path: str) -> Counter[str]:
        """How often each message was answered with 2xx."""
        return Counter(a.id for a in self.of(path) if a.answered < 300)

    def answer_to(self, path: str, message_id: str) -> int:
        if path.startswith("/gone"):
            return 410 if self.gone else 204
        if path.startswith("/flaky"):
            is_new = all(a.id != message_id for a in self.arrivals if a.path.startswith("/flaky"))
            return 500 if is_new and self.rng.random() < 0.5 else 204
        return 204

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: HookReceiver

    def do_POST(self) -> None:
        at = time.time()
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.startswith("/hang"):
            time.sleep(_HANG_S)
            return
        try:
            event = Webhook(self.server.secret).verify(body, dict(self.headers))
        except WebhookVerificationError:
            with self.server.lock:
                self.server.unverified += 1
            self.send_error(401)
            return
        message_id, signatures = self.headers["webhook-id"], self.headers["webhook-signature"].count("v1,")
        with self.server.lock:
            status = self.server.answer_to(self.path, message_id)
            self.server.arrivals.append(Arrival(self.path, message_id, event, body, signatures, at, status))
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...


@contextmanager
def hook_receiver() -> Iterator[HookReceiver]:
    server = HookReceiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
