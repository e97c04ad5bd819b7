"""Slicing, pure: from the pieces of a source, or from a parent's slices, to the slices of a batch."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from batchline.batch import MAX_SLICES, Piece, Slice, bits_to_rows, slice_rank_us
from batchline.errors import SourceError
from batchline.job import DEFAULT_PRIORITY, new_job_id
from batchline.store.batch_contract import NewSlice, SliceView

MAX_PIECES = 500_000
"""Files, row groups and key ranges of one batch; what is planned is held in memory."""
MAX_PIECES_SLICE = 1_000
"""A slice is a row of the database: its payload stays small, however small the files."""
_RETRIED = frozenset({"failed", "cancelled", "expired"})


@dataclass(frozen=True, slots=True)
class Pace:
    """What ranks the slices of one batch among those of others."""

    start: float
    """Epoch seconds at which the batch is planned."""
    row_s: float
    """Seconds of the pool that a row costs, times how many batches of this tenant share its turn."""
    priority: int = DEFAULT_PRIORITY
    deadline: float | None = None


def put_together(pieces: Iterable[Piece], slice_rows: int, *, most: int = MAX_SLICES) -> list[list[Piece]]:
    """Neighbouring pieces as groups of at most `slice_rows` rows, of more when there would be more than `most` groups.

    Args:
        pieces: in order; those without rows are left out. A piece is never cut: one that is larger stands alone.
        slice_rows: rows of one group.
        most: groups.

    Raises:
        SourceError: there are more than MAX_PIECES pieces.
    """
    groups = _Groups(slice_rows, MAX_PIECES_SLICE)
    for count, piece in enumerate(pieces):
        if count >= MAX_PIECES:
            raise SourceError(
                f"The input is made of more than {MAX_PIECES} files or row groups; put them together, or split it."
            )
        if piece.rows:
            groups.put([piece], piece.rows)
        while len(groups.groups) > most:
            groups = groups.doubled()
    return groups.groups


class _Groups:
    def __init__(self, rows: int, pieces: int) -> None:
        self._rows = rows
        self._pieces = pieces
        self._sizes: list[int] = []
        self.groups: list[list[Piece]] = []

    def put(self, pieces: list[Piece], rows: int) -> None:
        """Into the last group if there is room, else into a new one."""
        last = self.groups[-1] if self.groups else None
        if last is not None and self._sizes[-1] + rows <= self._rows and len(last) + len(pieces) <= self._pieces:
            last.extend(pieces)
            self._sizes[-1] += rows
        else:
            self.groups.append(list(pieces))
            self._sizes.append(rows)

    def doubled(self) -> _Groups:
        """The same groups put together with room for twice as much."""
        larger = _Groups(self._rows * 2, self._pieces * 2)
        for group, rows in zip(self.groups, self._sizes, strict=True):
            larger.put(group, rows)
        return larger


def slices_of(batch_id: uuid.UUID, groups: Iterable[Sequence[Piece]], pace: Pace) -> Iterator[NewSlice]:
    """One slice a group: numbered from 0, first rows exact, ranked so that batches take turns."""
    first_row = 0
    for number, group in enumerate(groups):
        rows = sum(piece.rows for piece in group)
        yield _slice(Slice(batch_id, number, first_row, list(group)), rows, first_row, pace)
        first_row += rows


def slices_again(
    batch_id: uuid.UUID, parents: Iterable[SliceView], pace: Pace, *, every_row: bool = False
) -> Iterator[NewSlice]:
    """The slices of a child: of each parent's slice the rows that failed, or all of it when it failed as a whole.

    Pieces and row numbers are the parent's; a slice that was itself a retry is tried again for the same rows. With
    `every_row`, also rows that succeeded: the parent's results have been thrown away.
    """
    number = before = 0
    for view in parents:
        old = msgspec.json.decode(view.payload, type=Slice)
        if every_row:
            only, rows = old.only, view.rows
        elif view.failed is not None and view.rows_failed:
            only, rows = view.failed, len(bits_to_rows(view.failed))
        elif view.status in _RETRIED:
            only, rows = old.only, view.rows
        else:
            continue
        yield _slice(Slice(batch_id, number, old.first_row, old.pieces, only), rows, before, pace)
        number, before = number + 1, before + rows


def _slice(made: Slice, rows: int, before: int, pace: Pace) -> NewSlice:
    start = pace.start + before * pace.row_s
    return NewSlice(new_job_id(), slice_rank_us(start, pace.priority, pace.deadline), rows, made)
