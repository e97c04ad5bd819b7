"""Answers leave in one piece: the head waits for the body, and for nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from api.connection import Whole

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Transport:
    """Remembers what was written, call by call."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.calls.append(data)

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        assert not self.closed
        self.calls.append(b"".join(parts))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
def wire() -> Transport:
    return Transport()


@pytest.fixture
def whole(wire: Transport) -> Any:
    return Whole(wire)  # type: ignore[arg-type]


def test_head_and_body_are_one_call(wire: Transport, whole: Any) -> None:
    """And what follows of a longer body goes out as it comes."""
    for data in (HEAD, b"{}", b"more", HEAD, b"{}"):
        whole.write(data)
    assert wire.calls == [HEAD + b"{}", b"more", HEAD + b"{}"]


def test_a_client_that_waits_for_100_gets_it_at_once(wire: Transport, whole: Any) -> None:
    """It sends its body only then."""
    whole.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert wire.calls == [b"HTTP/1.1 100 Continue\r\n\r\n"]


def test_a_head_without_a_body_goes_out_at_the_end(wire: Transport, whole: Any) -> None:
    """Answers to HEAD have none."""
    whole.write(HEAD)
    assert wire.calls == []
    whole.flush()
    whole.flush()
    assert wire.calls == [HEAD]


def test_closing_loses_nothing(wire: Transport, whole: Any) -> None:
    """The head of an answer that broke off is still sent; all else is the transport's own."""
    whole.write(HEAD)
    whole.close()
    assert wire.calls == [HEAD]
    assert whole.is_closing()


def test_nothing_is_said_to_a_client_that_has_gone(wire: Transport, whole: Any) -> None:
    """It may go between head and body, when a slow reader of pipelined answers gives up; uvloop raises then."""
    whole.write(HEAD)
    wire.closed = True
    for data in (b"{}", HEAD, b"more"):
        whole.write(data)
    whole.close()
    assert wire.calls == []
