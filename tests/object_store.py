"""An S3 of the tests' own on loopback, and a proxy before it that refuses, stalls or breaks off as a test says."""

from __future__ import annotations

import os
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, NamedTuple

from moto.server import ThreadedMotoServer

from batchline.data import s3_client

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class ObjectStore:
    """One moto server; each `bucket()` is new."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def bucket(self) -> str:
        name = f"b{uuid.uuid4().hex[:20]}"
        self.client.create_bucket(Bucket=name)
        return name

    @property
    def client(self) -> Any:
        return s3_client.client(self.endpoint)

    def keys(self, bucket: str) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=bucket).get("Contents", [])]

    def uploads(self, bucket: str) -> list[str]:
        return [entry["Key"] for entry in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


@contextmanager
def object_store() -> Generator[ObjectStore]:
    os.environ.update(CREDENTIALS)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield ObjectStore(f"http://{host}:{port}")
    finally:
        server.stop()


Rule = Callable[[str, str], int | str | None]
"""(method, path) -> a status to answer with, or None to pass it on, or `stall`, or within the body `cut` or `reset`."""


class Passed(NamedTuple):
    """A request that was passed on."""

    kind: str
    """GET, HEAD, PUT, POST, DELETE or LIST."""
    path: str
    bytes: int
    """Of its answer's body."""


class FaultProxy:
    """Passes requests on to a server but for those that its rule spoils."""

    def __init__(self, target: str) -> None:
        self.rule: Rule = lambda _method, _path: None
        self.seen: list[tuple[str, str]] = []
        self.passed: list[Passed] = []
        self.delay_s = 0.0
        """Every answer comes later by so much."""
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version: ClassVar[str] = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.seen.append((self.command, self.path))
                fate = proxy.rule(self.command, self.path)
                with proxy.waiting():
                    self._meet(fate, body)

            def _meet(self, fate: int | str | None, body: bytes) -> None:
                if isinstance(fate, int):
                    self._answer(fate, [], b"", 0)
                elif fate == "stall":
                    proxy._over.wait(30)
                    self.close_connection = True
                else:
                    self._forward(body, cut=fate in ("cut", "reset"))
                    if fate == "reset":
                        self.wfile.flush()
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        self.connection.close()

            def _forward(self, body: bytes, *, cut: bool) -> None:
                connection = HTTPConnection(target.removeprefix("http://"))
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
                size = int(answer.headers.get("Content-Length", len(data)))
                kind = "LIST" if "list-type=" in self.path else self.command
                proxy.passed.append(Passed(kind, self.path, len(data)))
                self._answer(answer.status, answer.getheaders(), data[: len(data) // 2] if cut else data, size)
                connection.close()
                if cut:
                    self.close_connection = True

            def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, size: int) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815 - http.server asks for these

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Around one request: counts how many there are at a time, and waits."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self.delay_s:
                self._over.wait(self.delay_s)
            yield
        finally:
            with self._lock:
                self._now -= 1

    def take(self) -> list[Passed]:
        """What was passed on since this was asked last."""
        taken, self.passed = self.passed, []
        return taken

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
