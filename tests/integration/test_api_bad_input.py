"""Bad input: a 4xx with a pointer, at once, never a 500, and nothing queued."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import api_server
import pytest
import stack
from api_server import ALICE, ROW, Running

from api.connection import Connection
from batchline.local.servers import PostgresServer, ValkeyServer

LIMIT = 2 * 2**20


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer) -> Iterator[Running]:
    with (
        stack.database_from(postgres.url, template) as url,
        api_server.running_api(url, valkey.url, max_body_bytes=LIMIT) as running,
    ):
        yield running


def body(inputs: bytes | None = None, **fields: Any) -> bytes:
    """A request of digits, the rows as they are; `fields` are other fields of it."""
    rest = json.dumps({"model": "digits"} | fields).encode()[:-1]
    return rest + b', "inputs": ' + (json.dumps([ROW]).encode() if inputs is None else inputs) + b"}"


def row_with(value: bytes) -> bytes:
    """One row of digits whose last number is `value`."""
    return b"[[" + b"0.5," * 63 + value + b"]]"


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


MALFORMED = {
    "nothing": b"",
    "half": body()[:-5],
    "NaN": body(row_with(b"NaN")),
    "Infinity": body(row_with(b"Infinity")),
    "NUL": body(row_with(b"\0")),
    "deep": nested(10_000),
    "deep rows": body(nested(10_000)),
    "deep metadata": b'{"model":"digits","inputs":[],"metadata":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
    "after the end": body() + b"x",
    "byte order mark": b"\xef\xbb\xbf" + body(),
    "not UTF-8": b'{"model":"\xff","inputs":[]}',
    "lone surrogate": b'{"model":"\\ud800","inputs":[]}',
}

UNFIT: dict[str, tuple[bytes, str]] = {
    "array": (b"[]", ""),
    "null": (b"null", ""),
    "no model": (b'{"inputs":[]}', "/model"),
    "no inputs": (b'{"model":"digits"}', "/inputs"),
    "model is a number": (b'{"model":1,"inputs":[]}', "/model"),
    "unknown field": (body(nix=1), "/nix"),
    "unknown field to escape": (body(**{"a/b~c": 1}), "/a~1b~0c"),
    "parameters": (body(parameters={"top": 1}), "/parameters"),
    "priority 10": (body(priority=10), "/priority"),
    "priority in words": (body(priority="high"), "/priority"),
    "ttl 0": (body(ttl_s=0), "/ttl_s"),
    "ttl of ages": (body(ttl_s=1e300), "/ttl_s"),
    "deadline without zone": (body(deadline="2027-01-01T00:00:00"), "/deadline"),
    "deadline beyond all years": (body(deadline="9999-12-31T23:59:59-12:00"), "/deadline"),
    "deadline passed": (body(deadline="2020-01-01T00:00:00Z"), "/deadline"),
    "version of a wrong type": (body(version=[1]), "/version"),
    "metadata list": (body(metadata=[1]), "/metadata"),
    "metadata too large": (body(metadata={"k": "x" * 17_000}), "/metadata"),
    "no rows": (body(b"[]"), "/inputs"),
    "1,001 rows": (body(json.dumps([ROW] * 1001).encode()), "/inputs"),
    "very many rows": (body(b"[" + b"[]," * 200_000 + b"[]]"), "/inputs"),
    "half a million rows": (body(b"[" + b"[]," * 600_000 + b"[]]"), "/inputs"),
    "metadata of many lists": (body()[:-1] + b',"metadata":{"k":[' + b"[]," * 600_000 + b"[]]}}", "/metadata"),
    "rows in words": (body(b'"rows"'), "/inputs"),
    "a row too short": (body(json.dumps([ROW, ROW[1:]]).encode()), "/inputs/1"),
    "a row too deep": (body(json.dumps([[ROW]]).encode()), "/inputs/0"),
    "a word": (body(row_with(b'"1"')), "/inputs/0/63"),
    "null in a row": (body(row_with(b"null")), "/inputs/0/63"),
    "true in a row": (body(row_with(b"true")), "/inputs/0/63"),
    "too large for FP32": (body(row_with(b"1e39")), "/inputs/0/63"),
    "an unknown input": (body(b'[{"y": 1}]'), "/inputs/0/y"),
}


def refused(api: Running, content: bytes, **headers: str) -> Any:
    """Send a body, check what holds of every refusal, and return the answer."""
    before = api.jobs()
    response = api.call("POST", "/v1/jobs", content=content, headers={"Content-Type": "application/json"} | headers)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.elapsed.total_seconds() < 5
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["type"].startswith("urn:batchline:error:")
    assert problem["instance"] == "/v1/jobs"
    assert api.jobs() == before
    return response


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_not_json_is_400(api: Running, case: str) -> None:
    """With the pointer to the whole body or to the rows."""
    response = refused(api, MALFORMED[case])
    assert response.status_code == 400 or (case, response.status_code) == ("deep", 422)
    assert response.json()["errors"][0]["pointer"] in ("", "/inputs")


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_422_with_a_pointer(api: Running, case: str) -> None:
    """The pointer names the place."""
    content, pointer = UNFIT[case]
    response = refused(api, content)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, pointer)


@pytest.mark.parametrize("value", [b"1e400", b'"\\ud800"', b'"\xff"', b'"\\u0000"'])
def test_values_beyond_json(api: Running, value: bytes) -> None:
    """Numbers and strings that JSON or UTF-8 cannot hold are 4xx at the rows."""
    response = refused(api, body(row_with(value)))
    assert response.status_code in (400, 422)
    assert all(e["pointer"] == "" or e["pointer"].startswith("/inputs") for e in response.json()["errors"])


@pytest.mark.parametrize(("fields", "pointer"), [({"model": "nix"}, "/model"), ({"version": 9}, "/version")])
def test_unknown_models_and_versions_are_404_with_a_pointer(api: Running, fields: Any, pointer: str) -> None:
    """The route is right, what the body names is not."""
    for more in ({}, {"version": "x" * 5000}, {"version": -1}):
        response = refused(api, body(**(more | fields)))
        assert (response.status_code, response.json()["errors"][0]["pointer"]) == (404, pointer)


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "text/plain"}, {"Content-Type": ""}, {"Content-Encoding": "gzip"}]
)
def test_other_types_are_415(api: Running, headers: dict[str, str]) -> None:
    """Only plain JSON is taken."""
    assert refused(api, body(), **headers).status_code == 415


def test_nul_in_metadata_is_kept(api: Running) -> None:
    """A NUL that is escaped is JSON, so metadata with one comes back as it was."""
    response = api.submit(metadata={"k": "a\0b"})
    assert (response.status_code, response.json()["metadata"]) == (202, {"k": "a\0b"})


def raw(api: Running, head: str, parts: Iterator[bytes]) -> str:
    """Send a request by hand and return the first line of the answer."""
    with socket.create_connection(("127.0.0.1", int(api.url.rsplit(":", 1)[1])), timeout=10) as connection:
        auth = f"Authorization: Bearer {ALICE}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n{auth}{head}\r\n\r\n".encode())
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # the answer may come before the end of the body
        return connection.recv(100).split(b"\r\n")[0].decode()


def test_the_body_limit_is_counted_while_streaming(api: Running) -> None:
    """Chunked or announced, one byte too many is 413; a Content-Length alone is enough; just under it is read."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    chunked = raw(api, "Transfer-Encoding: chunked", iter([chunk] * 40 + [b"0\r\n\r\n"]))
    assert chunked.startswith("HTTP/1.1 413")
    announced = raw(api, f"Content-Length: {LIMIT + 1}", iter([b" " * (LIMIT + 1)]))
    assert announced.startswith("HTTP/1.1 413")
    expecting = raw(api, f"Content-Length: {10**12}\r\nExpect: 100-continue", iter([]))
    assert expecting.startswith("HTTP/1.1 413")
    under = raw(api, f"Content-Length: {LIMIT}", iter([b" " * LIMIT]))
    assert under.startswith("HTTP/1.1 400")


def test_a_large_body_is_refused_without_being_held(api: Running) -> None:
    """A body far over the limit ends within a second or two, read up to a bound."""
    started = time.monotonic()
    line = raw(api, "Transfer-Encoding: chunked", iter([b"100000\r\n" + b" " * 2**20 + b"\r\n"] * 64))
    assert line.startswith("HTTP/1.1 413") or not line
    assert time.monotonic() - started < 6


def connected(api: Running, timeout_s: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(api.url.rsplit(":", 1)[1])), timeout=timeout_s)


ENDLESS = {
    "header": (b"X: ", b"a" * 65536),
    "headers": (b"", b"a: b\r\n" * 10_000),
    "trailer": (b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 65536),
    "chunk extension": (b"Transfer-Encoding: chunked\r\n\r\n1;x=", b"a" * 65536),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_head_without_end_is_cut_off(api: Running, case: str) -> None:
    """It needs no key to send one: within a bound of bytes the connection is closed, and nobody else waits."""
    start, more = ENDLESS[case]
    with connected(api) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + start)
        with pytest.raises(ConnectionError):
            connection.sendall(more * (64 * 2**20 // len(more)))
    assert api.call("GET", "/livez").elapsed.total_seconds() < 5


@pytest.mark.parametrize(
    "sent", [b"", b"GET /livez HTTP/1.1\r\n", b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_who_never_comes_to_an_end_is_cut_off(api: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """Neither an unfinished head nor an unfinished body holds a connection for ever."""
    for name, value in (("head_s", 0.2), ("body_s", 0.2), ("check_s", 0.05)):
        monkeypatch.setattr(Connection, name, value)
    with connected(api) as connection:
        connection.sendall(sent)
        while connection.recv(4096):
            pass


def test_a_body_that_goes_on_after_its_answer_is_cut_off(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 413 is there to be read; who does not listen is not listened to for ever."""
    for name, value in (("linger_s", 0.2), ("check_s", 0.05)):
        monkeypatch.setattr(Connection, name, value)
    head = f"Authorization: Bearer {ALICE}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    until = time.monotonic() + 20
    with connected(api) as connection:
        connection.sendall(f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n{head}".encode())
        try:
            while time.monotonic() < until:
                connection.sendall(chunk)
        except ConnectionError:
            return
    pytest.fail("it was read for 20 s")


def test_who_waits_for_an_answer_is_not_cut_off(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are on requests, not on answers; and the next request on the connection has its own."""
    for name, value in (("head_s", 0.2), ("body_s", 0.2), ("check_s", 0.05)):
        monkeypatch.setattr(Connection, name, value)
    job = api.submit().json()["id"]
    for _ in range(2):
        assert api.call("GET", f"/v1/jobs/{job}", headers={"Prefer": "wait=1"}).status_code == 200
