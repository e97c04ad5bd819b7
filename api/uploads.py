"""Multipart forms with one file, streamed: parsed by `multipart`, handed on in large pieces, never held whole."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from litestar.types import Receive
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from batchline.errors import Fault, InvalidRequestError, MalformedError, TooLargeError, UnsupportedMediaError

FILE = "file"
"""The name of the part that is the file."""
PIECE_BYTES = 1 << 20
_AROUND_BYTES = 256 * 1024
"""What a form may have beside its file."""
_MAX_FIELD_BYTES = 16 * 1024
_MAX_PARTS = 20
_LINGER_S = 5.0
"""How long the rest of a form that is too large is read and dropped, so that the client gets to see the 413."""
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_NAME_BYTES = 255

Write = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class Form:
    """What a form said: text fields by name, and the file as far as it is not its bytes."""

    fields: dict[str, str] = field(default_factory=dict[str, str])
    filename: str | None = None
    bytes: int = 0
    files: int = 0


async def read_form(receive: Receive, headers: Mapping[bytes, bytes], *, limit: int, write: Write) -> Form:
    """Read a form, handing the bytes of its file to `write` in pieces of about a MiB.

    Args:
        receive: of the request.
        headers: of the request.
        limit: most bytes of the file.
        write: awaited for each piece, so that no more is read than is written.

    Raises:
        UnsupportedMediaError: it is no form.
        TooLargeError: the file is larger, or the form is in some other way.
        MalformedError: the form cannot be read, or ends early.
        InvalidRequestError: more than one file, or a file that is none.
    """
    boundary = _boundary(headers)
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit + _AROUND_BYTES:
        if b"expect" not in headers:
            await _discard(receive)
        raise _too_large(limit)
    reader = _Reader(boundary, limit, write)
    more = True
    while more:
        message: Any = await receive()
        if message["type"] != "http.request":
            raise MalformedError("The body ended early.")
        more = message.get("more_body", False)
        try:
            await reader.feed(message.get("body", b""))
        except TooLargeError:
            if more:
                await _discard(receive)
            raise
    return await reader.end()


class _Reader:
    """The form so far."""

    def __init__(self, boundary: str, limit: int, write: Write) -> None:
        self._parser = PushMultipartParser(boundary, max_segment_count=_MAX_PARTS)
        self._limit = limit
        self._left = limit + _AROUND_BYTES
        self._write = write
        self._form = Form()
        self._part: MultipartSegment | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def feed(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            raise _too_large(self._limit)
        if not chunk or self._parser.closed:
            return
        try:
            for event in self._parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    self._begin(event)
                elif event is not None:
                    await self._take(bytes(event))
                elif self._part is not None:
                    await self._finish(self._part)
        except MultipartError as e:
            raise MalformedError(f"The form cannot be read: {e}.") from None

    async def end(self) -> Form:
        try:
            self._parser.close()
        except MultipartError:
            raise MalformedError("The form ended early: its closing boundary is missing.") from None
        return self._form

    def _begin(self, part: MultipartSegment) -> None:
        self._part = part
        if part.name == FILE:
            if part.filename is None:
                raise _refused("must be a file: a part with a filename")
            self._form.files += 1
            if self._form.files > 1:
                raise _refused("must be one file")
            self._form.filename = clean_name(part.filename)

    async def _take(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._part is None or self._part.name != FILE:
            if self._held_bytes > _MAX_FIELD_BYTES:
                raise TooLargeError(f"A field of the form is larger than {_MAX_FIELD_BYTES} bytes.")
            return
        self._form.bytes += len(data)
        if self._form.bytes > self._limit:
            raise _too_large(self._limit)
        if self._held_bytes >= PIECE_BYTES:
            await self._write(self._all_held())

    async def _finish(self, part: MultipartSegment) -> None:
        held = self._all_held()
        if part.name == FILE:
            if held:
                await self._write(held)
            return
        try:
            self._form.fields[part.name or ""] = held.decode()
        except UnicodeDecodeError:
            raise MalformedError("A field of the form is not UTF-8.") from None

    def _all_held(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return held


def clean_name(name: str) -> str:
    """A filename as it may be shown: without folders and control characters, at most 255 bytes."""
    last = _ODD.sub("", name.replace("\\", "/")).rpartition("/")[2].strip()
    last = last.encode()[-_MAX_NAME_BYTES:].decode(errors="ignore")
    return last if last.strip(".") else "upload"


def _boundary(headers: Mapping[bytes, bytes]) -> str:
    kind, options = parse_options_header(headers.get(b"content-type", b"").decode("latin-1"))
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not 0 < len(boundary) <= 200:
        raise UnsupportedMediaError("Send the file as Content-Type: multipart/form-data with a boundary.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaError("Send the form without Content-Encoding.")
    return boundary


async def _discard(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body"):
                pass
    except TimeoutError:
        return


def _refused(detail: str) -> InvalidRequestError:
    return InvalidRequestError("The form does not fit.", faults=(Fault(f"/{FILE}", detail),))


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The file is larger than {limit} bytes; send it in parts as several files.")
