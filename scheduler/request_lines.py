"""The lines of an uploaded batch of requests, checked while they stream by: faults by line, as OpenAI tells them.

What a line says of itself is checked here: JSON, custom_id, method, url, model. Whether its body fits the model is the
worker's business, and an error of that line alone. Blank lines are no requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from batchline.batch import BatchFault
from batchline.data.text_blocks import BOM

MAX_LINES = 1_000_000
MAX_FAULTS = 100
"""Faults told of one file; reading stops there."""
MAX_CUSTOM_ID = 512
JOBS = "/v1/jobs"
STRETCH_BYTES = 32 * 2**20
"""A stretch of lines is closed when it is this long, however few they are."""
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive lines: the bytes [start, end) of the file hold `rows` requests."""

    start: int
    end: int
    rows: int


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that was read to its end, or to its hundredth fault."""

    stretches: list[Stretch]
    model: str
    version: str | None
    """As the lines name it: a number, an alias or nothing."""
    model_line: int
    """The line, from 1, that named the model first."""
    faults: list[BatchFault]


class _Body(msgspec.Struct):
    model: Any = msgspec.UNSET
    version: Any = None


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: _Body


_decoder = msgspec.json.Decoder(_Line)


def check(chunks: Iterable[bytes], endpoint: str, *, slice_rows: int, max_line_bytes: int) -> Checked:
    """Read a whole file; memory grows with the number of its lines (one hash each), not with their length.

    Args:
        chunks: the file's bytes.
        endpoint: the batch's; every line must name it as its url.
        slice_rows: lines of one stretch.
        max_line_bytes: longer lines are refused.
    """
    reader = _Reader(endpoint)
    stretches: list[Stretch] = []
    start = end = rows = 0
    for number, upto, line in lines_of(chunks, max_line_bytes):
        end = upto
        if number == 1 and line is not None:
            line = line.removeprefix(BOM)  # noqa: PLW2901 - the mark is no part of it
        if line is not None and not line.strip():
            continue
        reader.read(number, line)
        rows += 1
        if len(reader.faults) >= MAX_FAULTS or reader.count > MAX_LINES:
            break
        if rows >= slice_rows or upto - start >= STRETCH_BYTES:
            stretches.append(Stretch(start, upto, rows))
            start, rows = upto, 0
    if rows:
        stretches.append(Stretch(start, end, rows))
    return Checked(stretches, reader.model, reader.version, reader.model_line, reader.told())


def lines_of(chunks: Iterable[bytes], limit: int) -> Iterator[tuple[int, int, bytes | None]]:
    """(number from 1, byte behind its newline, line); None for a line longer than `limit`."""
    number, at = 1, 0
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        behind = 0
        while (found := chunk.find(b"\n", behind)) >= 0:
            piece = chunk[behind:found]
            yield number, at + found + 1, b"".join([*held, piece]) if size + len(piece) <= limit else None
            number, behind, size = number + 1, found + 1, 0
            held.clear()
        rest = chunk[behind:]
        size += len(rest)
        if size <= limit:
            held.append(rest)
        else:
            held.clear()
        at += len(chunk)
    if size:
        yield number, at, b"".join(held) if size <= limit else None


class _Reader:
    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        named = _INFER.fullmatch(endpoint)
        self._in_url = named is not None
        self.model = named.group(1) if named else ""
        self.version: str | None = named.group(2) if named else None
        self.model_line = 1
        self._seen: set[int] = set()
        self.faults: list[BatchFault] = []
        self.count = 0

    def told(self) -> list[BatchFault]:
        """The faults of the lines, or of the file as a whole."""
        if self.count > MAX_LINES:
            return [BatchFault("too_many_tasks", f"The batch has more than {MAX_LINES} requests; split the file.")]
        if not self.count and not self.faults:
            return [BatchFault("empty_file", "The input file has no requests; it must have at least one.")]
        return self.faults

    def read(self, number: int, line: bytes | None) -> None:
        self.count += 1
        if line is None:
            self._fault("invalid_json_line", "This line is too long.", number)
            return
        try:
            request = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            self._explain(number, line, e)
            return
        self._custom_id(number, request.custom_id)
        if request.method != "POST":
            told = f"Invalid method {_short(request.method)}: it must be 'POST'."
            self._fault("invalid_method", told, number, "method")
        if request.url != self._endpoint:
            told = f"Invalid URL {_short(request.url)}: it must be the batch's endpoint, {_short(self._endpoint)}."
            self._fault("invalid_url", told, number, "url")
        elif not self._in_url:
            self._model(number, request.body)

    def _custom_id(self, number: int, custom_id: str) -> None:
        if not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
            told = f"Invalid 'custom_id': it must have 1 to {MAX_CUSTOM_ID} characters."
            self._fault("invalid_custom_id", told, number, "custom_id")
        key = hash(custom_id)
        if key in self._seen:
            told = f"The custom_id {_short(custom_id)} is used twice; it must be unique within a batch."
            self._fault("duplicate_custom_id", told, number, "custom_id")
        self._seen.add(key)

    def _model(self, number: int, body: _Body) -> None:
        if not isinstance(body.model, str) or not body.model:
            self._missing(number, "body.model", absent=body.model is msgspec.UNSET)
            return
        version = None if body.version is None else str(body.version)
        if not self.model:
            self.model, self.version, self.model_line = body.model, version, number
        elif (body.model, version) != (self.model, self.version):
            told = (
                f"The model {_ref(body.model, version)} does not match that of the lines before,"
                f" {_ref(self.model, self.version)}: all requests of a batch must be for one model."
            )
            self._fault("mismatched_model", told, number, "body.model")

    def _explain(self, number: int, line: bytes, error: Exception) -> None:
        if isinstance(error, msgspec.ValidationError):
            try:
                fields: Any = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                fields = None
            if isinstance(fields, dict):
                for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
                    if name not in fields or not isinstance(fields[name], kind):
                        self._missing(number, name, absent=name not in fields)
                        return
            self._fault("invalid_json_line", "This line is not a JSON object.", number)
            return
        self._fault("invalid_json_line", "This line is not parseable as valid JSON.", number)

    def _missing(self, number: int, name: str, *, absent: bool) -> None:
        if absent:
            self._fault("missing_required_parameter", f"Missing required parameter: '{name}'.", number, name)
        else:
            kind = "an object" if name == "body" else "a string"
            self._fault("invalid_type", f"Invalid type for '{name}': it must be {kind}.", number, name)

    def _fault(self, code: str, message: str, line: int, param: str | None = None) -> None:
        self.faults.append(BatchFault(code, message, line, param))


def _short(text: str) -> str:
    return f"'{text[:80]}…'" if len(text) > 80 else f"'{text}'"


def _ref(model: str, version: str | None) -> str:
    return _short(f"{model}@{version}" if version else model)
