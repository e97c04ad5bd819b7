"""Text files as blocks of whole rows: bytes in, counted rows out; gzip inflated within bounds.

A row is a line that is not blank; in CSV a newline within quotes ends no row. Everything works on chunks of a fixed
size with numpy, so memory does not grow with the file and a gigabyte takes about a second.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from batchline.data.places import OpenFile
from batchline.data.read_ahead import WINDOW_BYTES, Readable, ReadAhead, cut
from batchline.data.uris import is_gzip
from batchline.errors import SourceError

CHUNK_BYTES = 8 << 20
HEAD_BYTES = 1 << 20
MAX_ROW_BYTES = 64 << 20
MAX_RATIO = 400
"""Of inflated to packed bytes; deflate reaches 1,032, and real tables stay below 100."""
MAX_INFLATED_BYTES = 1 << 38
_PACKED_BYTES = 256 << 10
_RATIO_FROM_BYTES = 64 << 20
"""A small file may swell as it likes."""

_NEWLINE, _RETURN, _QUOTE, _COMMA = b'\n\r",'
BOM = b"\xef\xbb\xbf"
"""What some programs begin a UTF-8 file with; it is no part of the text."""
_FOREIGN = {
    b"\x1f\x8b": "is gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it, or use gzip",
    b"BZh": "is compressed by bzip2: unpack it, or use gzip",
    b"\xfd7zXZ\0": "is compressed by xz: unpack it, or use gzip",
    b"PK\x03\x04": "is a ZIP archive or an Excel file: unpack it, or save it as CSV",
    b"PAR1": "is Parquet: give `format` as parquet",
}
"""First bytes of files that are no text, and what to do."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

Offsets = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Whole rows as they stand in the file, blank lines among them."""

    data: bytes
    rows: int


def chunks(file: OpenFile, start: int, end: int | None, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Bytes [start, end) of the text; of a compressed file only the whole text can be had.

    Raises:
        SourceError: truncated, or no gzip, or it swells beyond the limits.
    """
    if is_gzip(file.uri):
        step = min(chunk_bytes, WINDOW_BYTES)
        yield from _inflated(file, _packed(_ahead(file, 0, file.size, step), step), chunk_bytes)
        return
    end = file.size if end is None else end
    source = _ahead(file, start, end, chunk_bytes)
    while start < end:
        data = source.read_at(start, min(chunk_bytes, end - start))
        if not data:
            raise SourceError(f"{file.uri} ends at byte {start}, before byte {end} that was planned.")
        start += len(data)
        yield data


def behind(text: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """The chunks without their first `skip` bytes."""
    for chunk in text:
        if len(chunk) > skip:
            yield chunk[skip:]
        skip = max(0, skip - len(chunk))


def _ahead(file: OpenFile, start: int, end: int, step: int) -> Readable:
    """The file, the next of its steps on their way while one is used if it lies far away."""
    if file.identity is None or end - start <= step:
        return file
    return ReadAhead(file, cut(start, end, step), ahead_bytes=2 * step)


def _inflated(file: OpenFile, read: Iterator[bytes], chunk_bytes: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits=31)
    packed, made = 0, 0
    for data in read:
        packed += len(data)
        rest = data
        while rest:
            if inflater.eof:  # another member follows; zeros are padding
                if not (rest := rest.lstrip(b"\0")):
                    break
                inflater = zlib.decompressobj(wbits=31)
            try:
                out = inflater.decompress(rest, chunk_bytes)
            except zlib.error as e:
                raise SourceError(f"{file.uri} is no gzip file or is damaged, about at byte {packed}.") from e
            rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            made += len(out)
            if made > MAX_INFLATED_BYTES or (made > _RATIO_FROM_BYTES and made > MAX_RATIO * packed):
                raise SourceError(
                    f"{file.uri} swells to more than {made >> 20} MiB out of {packed >> 10} KiB: it is taken for a "
                    "gzip bomb. Send it uncompressed if it is meant so."
                )
            if out:
                yield out
    if not inflater.eof and packed:
        raise SourceError(f"{file.uri} is truncated: the gzip stream has no end.")


def _packed(source: Readable, step: int) -> Iterator[bytes]:
    """Little at a time, so that a bomb is found before it has swollen much, of what is read in larger steps."""
    start = 0
    while data := source.read_at(start, step):
        start += len(data)
        yield from (data[at : at + _PACKED_BYTES] for at in range(0, len(data), _PACKED_BYTES))


class RowScanner:
    """Finds where rows end, chunk by chunk. Offsets count from the first byte fed."""

    def __init__(self, uri: str, *, quoted: bool) -> None:
        self.fed = 0
        self.rows = 0
        self._uri = uri
        self._quoted = quoted
        self._in_quotes = False
        self._line_start = 0
        self._last = _NEWLINE

    def feed(self, chunk: bytes) -> Offsets:
        """Offsets just behind each row that ends in this chunk.

        Raises:
            SourceError: a row is longer than MAX_ROW_BYTES.
        """
        data = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(data == _NEWLINE)
        if self._quoted and (self._in_quotes or b'"' in chunk):
            ends = self._outside_quotes(data, ends)
        behind = ends + (self.fed + 1)
        starts = np.concatenate(([self._line_start], behind[:-1])) if len(behind) else behind
        lengths = behind - starts - 1
        blank = lengths == 0
        for at in np.flatnonzero(lengths == 1):
            blank[at] = (data[ends[at] - 1] if ends[at] else self._last) == _RETURN
        if len(behind):
            self._line_start = int(behind[-1])
        self.fed += len(chunk)
        self._last = chunk[-1]
        lengths = np.append(lengths, self.fed - self._line_start)
        longest = int(lengths.argmax())
        if lengths[longest] > MAX_ROW_BYTES:
            before = self.rows + longest - int(blank[:longest].sum())
            raise SourceError(f"{self._uri}: a row after row {before} is longer than {MAX_ROW_BYTES >> 20} MiB.")
        found = behind[~blank] if blank.any() else behind
        self.rows += len(found)
        return found

    def finish(self) -> bool:
        """Whether a last row without a newline remains.

        Raises:
            SourceError: the file ends within quotes.
        """
        if self._in_quotes:
            raise SourceError(f"{self._uri}: after row {self.rows} a quoted value begins and never ends.")
        rest = self.fed - self._line_start
        remains = rest > 1 or (rest == 1 and self._last != _RETURN)
        self.rows += remains
        return remains

    def _outside_quotes(self, data: NDArray[np.uint8], newlines: Offsets) -> Offsets:
        quotes = np.flatnonzero(data == _QUOTE)
        opening = quotes[int(self._in_quotes) :: 2]
        before = data[opening - 1]
        if len(opening) and opening[0] == 0:
            before[0] = self._last
        usual = (before == _COMMA) | (before == _NEWLINE) | (before == _QUOTE) | (before == _RETURN)
        if not usual.all():
            quotes = self._real_quotes(data, quotes)
        inside = (np.searchsorted(quotes, newlines) + self._in_quotes) & 1
        self._in_quotes ^= bool(len(quotes) & 1)
        return newlines[inside == 0]

    def _real_quotes(self, data: NDArray[np.uint8], quotes: Offsets) -> Offsets:
        """Without those that stand within an unquoted value, where they are letters."""
        real: list[int] = []
        inside = self._in_quotes
        closed_at = -2
        for at in quotes.tolist():
            before = data[at - 1] if at else self._last
            if inside:
                inside, closed_at = False, at
            elif before in (_COMMA, _NEWLINE, _RETURN) or closed_at == at - 1:
                inside = True
            else:
                continue
            real.append(at)
        return np.array(real, np.int64)


def blocks(pieces: Iterable[bytes], uri: str, *, quoted: bool) -> Iterator[Block]:
    """Chunks put together into blocks of whole rows."""
    scanner = RowScanner(uri, quoted=quoted)
    held: list[bytes] = []
    for chunk in pieces:
        before = scanner.fed
        ends = scanner.feed(chunk)
        if not len(ends):
            held.append(chunk)
            continue
        cut = int(ends[-1]) - before
        held.append(chunk[:cut])
        yield Block(b"".join(held), len(ends))
        held = [chunk[cut:]]
    if scanner.finish():
        yield Block(b"".join(held), 1)


def spans(file: OpenFile, first: int | None, slice_rows: int, *, quoted: bool) -> Iterator[tuple[int, int, int]]:
    """Byte ranges [from, to) of at most `slice_rows` rows, with their rows; one range if the file is compressed.

    Args:
        file: read to its end.
        first: where the rows begin, behind a header; None: where the text does.
        slice_rows: of one range.
        quoted: whether a newline within quotes ends no row.
    """
    whole = is_gzip(file.uri)
    scanner = RowScanner(file.uri, quoted=quoted)
    text = chunks(file, 0 if whole else first or 0, None)
    if first is None:
        begin = next(text, b"")
        first = len(BOM) if begin.startswith(BOM) else 0
        text, skip = chain((begin,), text), first
    else:
        skip = first if whole else 0
    at, counted = first, 0
    for chunk in text:
        data = chunk[skip:]
        skip = max(0, skip - len(chunk))
        if not data:
            continue
        ends = scanner.feed(data)
        while not whole and counted + slice_rows <= scanner.rows:
            counted += slice_rows
            end = first + int(ends[len(ends) - 1 - (scanner.rows - counted)])
            yield at, end, slice_rows
            at = end
    scanner.finish()
    if scanner.rows > counted:
        yield at, first + scanner.fed, scanner.rows - counted


def head(file: OpenFile) -> tuple[bytes, int]:
    """The first HEAD_BYTES of the text, a byte order mark left out, and where the text begins.

    Raises:
        SourceError: it is no text, or UTF-16; and as `chunks`.
    """
    got = _first_bytes(file)
    if got.startswith(_UTF16):
        raise SourceError(f"{file.uri} is UTF-16; save it as UTF-8.")
    for sign, told in _FOREIGN.items():
        if got.startswith(sign):
            raise SourceError(f"{file.uri} {told}.")
    text = got.removeprefix(BOM)
    return text, len(got) - len(text)


def _first_bytes(file: OpenFile) -> bytes:
    if not is_gzip(file.uri):
        return file.read_at(0, HEAD_BYTES)
    got = bytearray()
    for chunk in _inflated(file, _packed(file, HEAD_BYTES), _PACKED_BYTES):
        got += chunk
        if len(got) >= HEAD_BYTES:
            break
    return bytes(got[:HEAD_BYTES])
