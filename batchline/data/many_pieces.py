"""Pieces of a slice one behind the other; small ones that lie far away are read while those before them are used.

Each costs the wait for an answer at least, whatever its size: of a thousand small objects that is most of the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import cast

from batchline.batch import Piece
from batchline.data.contract import Rows, Source
from batchline.data.read_ahead import AHEAD_BYTES, Later

_SMALL_BYTES = 4 << 20


def read_pieces(
    source: Source,
    pieces: Sequence[Piece],
    columns: Sequence[str] | None,
    *,
    batch_rows: int,
    texts: Collection[str] = (),
) -> Iterator[tuple[int, Rows]]:
    """The rows of all pieces in their order, each with the number of its piece.

    Read ahead is at most `batch_rows` rows, of at most as many pieces as the place is asked at a time.

    Raises: as `Source.read`, when it comes to the rows of the piece that it is of.
    """
    ahead = _Ahead(source, pieces, columns, batch_rows, texts)
    for at, piece in enumerate(pieces):
        for rows in ahead.take(at) or source.read(piece, columns, batch_rows=batch_rows, texts=texts):
            # Not before a piece has begun: it may go on with a reader that the slice before has left.
            ahead.top_up(at + 1)
            yield at, rows


class _Ahead:
    def __init__(
        self,
        source: Source,
        pieces: Sequence[Piece],
        columns: Sequence[str] | None,
        batch_rows: int,
        texts: Collection[str],
    ) -> None:
        self._source = source
        self._pieces = pieces
        self._columns = columns
        self._batch_rows = batch_rows
        self._texts = texts
        self._waiting: deque[tuple[int, Later[list[Rows]]]] = deque()

    def take(self, at: int) -> list[Rows] | None:
        """The rows of a piece if they are on their way."""
        if not self._waiting or self._waiting[0][0] != at:
            return None
        return self._waiting.popleft()[1].get()

    def top_up(self, start: int) -> None:
        """Begin what may be begun of the pieces from `start` on."""
        begin = self._waiting[-1][0] + 1 if self._waiting else start
        held = [self._pieces[at] for at, _ in self._waiting]
        for at in range(begin, len(self._pieces)):
            piece = self._pieces[at]
            held.append(piece)
            if not self._may(held) or piece.uri == self._pieces[at - 1].uri:
                return
            self._waiting.append((at, Later(lambda piece=piece: self._read(piece))))

    def _may(self, held: Sequence[Piece]) -> bool:
        return (
            len(held) < self._source.at_once
            and sum(piece.rows for piece in held) <= self._batch_rows
            and sum(_bytes(piece) for piece in held) <= AHEAD_BYTES
            and _bytes(held[-1]) <= _SMALL_BYTES
        )

    def _read(self, piece: Piece) -> list[Rows]:
        return list(self._source.read(piece, self._columns, batch_rows=self._batch_rows, texts=self._texts))


def _bytes(piece: Piece) -> int:
    """Of text; of a span that counts rows nothing is known, and rows are bounded."""
    if len(piece.span) != 2:
        return 0
    low, high = cast("tuple[int, int]", tuple(piece.span))
    return high - low
