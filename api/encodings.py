"""Compressed bodies: gzip and deflate, in with a limit, out where asked for."""

from __future__ import annotations

import gzip
import zlib

from batchline.errors import MalformedError, TooLargeError, UnsupportedMediaError

_EITHER = 15 + 32
"""zlib's window bits for "gzip or zlib, see the first bytes"."""
_WORTH_BYTES = 1024


def decompress(raw: bytes, encoding: str, limit: int) -> bytes:
    """Undo a request's Content-Encoding (blocking), never making more than `limit` bytes.

    Raises:
        UnsupportedMediaError: an encoding other than gzip and deflate.
        TooLargeError: there is more in it.
        MalformedError: it is not so encoded.
    """
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedMediaError("Content-Encoding must be gzip, deflate or absent.")
    machine = zlib.decompressobj(_EITHER)
    try:
        data = machine.decompress(raw, limit + 1)
    except zlib.error:
        raise MalformedError(f"The body is not {encoding}.") from None
    if len(data) > limit:
        raise TooLargeError(f"The body is larger than {limit} bytes once decompressed.")
    if not machine.eof or machine.unused_data:
        raise MalformedError(f"The body is not one whole {encoding} stream.")
    return data


def accepted(header: bytes | None) -> str | None:
    """The encoding to answer in: gzip or deflate if the Accept-Encoding header names it with a weight above 0."""
    weights: dict[str, float] = {}
    for part in (header or b"").decode("latin-1").lower().split(","):
        name, _, parameter = part.partition(";")
        weight = parameter.strip().removeprefix("q=") or "1"
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            continue
    best = max(("gzip", "deflate"), key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > 0 else None


def compress(body: bytes, encoding: str | None) -> tuple[bytes, dict[str, str]]:
    """A body and the header that says how it is encoded; small ones stay as they are."""
    if encoding is None or len(body) < _WORTH_BYTES:
        return body, {}
    packed = gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)
    return packed, {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
