"""The pure parts of the API: Prefer, pointers, encodings, ids of the wire."""

from __future__ import annotations

import gzip
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import encodings, prefer
from batchline.answers import status_of
from batchline.decoding import from_decoding
from batchline.errors import BatchlineError, MalformedError, TooLargeError
from batchline.wire import SubmitBody


@pytest.mark.parametrize(
    ("header", "wait_s", "respond_async"),
    [
        ("wait=10", 10, False),
        ("Wait = 10", 10, False),
        ('wait="10"', 10, False),
        ("respond-async, wait=10", 10, True),
        ("wait=10;foo=bar; x, respond-async", 10, True),
        ('x="a, wait=9", wait=10', 10, False),
        ("wait=10, wait=20", 10, False),
        ("wait=600", 60, False),
        ("wait=99999999999999999999", 60, False),
        ("wait=0", 0, False),
        ("wait=-1", 0, False),
        ("wait=1.5", 0, False),
        ("wait", 0, False),
        ("return=minimal", 0, False),
        (",,, =, wait=5", 5, False),
        ("", 0, False),
    ],
)
def test_prefer_as_rfc_7240_has_it(header: str, wait_s: int, respond_async: bool) -> None:
    """Several preferences, quoted values, parameters; the first wait counts, 60 is the most, nonsense is nothing."""
    assert prefer.parse(header.encode()) == (wait_s, respond_async)


@given(st.binary(max_size=200))
def test_any_prefer_header_can_be_read(header: bytes) -> None:
    """No header raises, and no wait is out of range."""
    assert 0 <= prefer.parse(header).wait_s <= prefer.MAX_WAIT_S


@pytest.mark.timeout(5)
def test_a_hostile_prefer_header_is_read_in_no_time() -> None:
    """The expression does not backtrack without end."""
    for length in (200, 20_000):
        for hostile in (b"a;", b"a= ;", b" ", b'"\\"', b'"'):
            prefer.parse(hostile * length + b"=")


class Inner(msgspec.Struct):
    b: int


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    a: list[Inner]
    m: dict[str, int] = {}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"a":[{"b":1},{"b":"x"}]}', "/a/1/b"),
        (b'{"a":[{}]}', "/a/0/b"),
        (b'{"a":[],"x/y~z":1}', "/x~1y~0z"),
        (b'{"a":[],"m":{"k":"v"}}', "/m"),
        (b"[]", ""),
    ],
)
def test_pointers_from_decoding(body: bytes, pointer: str) -> None:
    """msgspec's path becomes an RFC 6901 pointer; where it does not know the key, the pointer stops."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(body, type=Outer)
    assert from_decoding(caught.value).faults[0].pointer == pointer


@given(st.binary(max_size=60))
def test_whatever_cannot_be_decoded_is_a_4xx(body: bytes) -> None:
    """Every decoding error has a status below 500 and a fault."""
    try:
        msgspec.json.decode(body, type=SubmitBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        error = from_decoding(e)
        assert status_of(error) in (400, 422)
        assert error.faults


def test_every_error_has_a_status() -> None:
    """All of ours, by themselves or by an ancestor."""

    def walk(kind: type[BatchlineError]) -> list[type[BatchlineError]]:
        ours = (k for k in kind.__subclasses__() if k.__module__ == BatchlineError.__module__)
        return [kind, *(k for sub in ours for k in walk(sub))]

    assert all(400 <= status_of(kind("x")) <= 504 for kind in walk(BatchlineError))


@given(st.binary(max_size=3000), st.sampled_from(["gzip", "deflate"]))
def test_what_was_compressed_comes_back(data: bytes, encoding: str) -> None:
    """Both encodings there and back, up to the limit exactly."""
    packed = gzip.compress(data) if encoding == "gzip" else zlib.compress(data)
    assert encodings.decompress(packed, encoding, len(data)) == data
    if data:
        with pytest.raises(TooLargeError):
            encodings.decompress(packed, encoding, len(data) - 1)
    with pytest.raises(MalformedError):
        encodings.decompress(packed[:-1], encoding, len(data))


@pytest.mark.parametrize(
    ("header", "want"),
    [
        (None, None),
        (b"", None),
        (b"br", None),
        (b"gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"gzip;q=0", None),
        (b"gzip;q=0.1, deflate;q=0.5", "deflate"),
        (b"gzip;q=x, deflate", "deflate"),
    ],
)
def test_accept_encoding(header: bytes | None, want: str | None) -> None:
    """The best of the two that is named with a weight."""
    assert encodings.accepted(header) == want
