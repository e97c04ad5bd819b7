"""Slicing: every row in exactly one slice, never too many slices, and what a retry does again."""

from __future__ import annotations

import itertools
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.batch import Piece, Slice, bits_to_rows, rows_to_bits
from batchline.errors import SourceError
from batchline.store.batch_contract import SliceView
from scheduler import slicing
from scheduler.slicing import Pace, put_together, slices_again, slices_of

BATCH = uuid.uuid4()
PACE = Pace(start=1000.0, row_s=0.001)


def piece(number: int, rows: int) -> Piece:
    return Piece(f"file:///d/{number}", "v", (0, rows), rows)


sizes = st.lists(st.integers(0, 500), max_size=200)


@given(sizes, st.integers(1, 1000), st.integers(1, 50))
def test_every_piece_with_rows_is_in_one_group_in_order(rows, slice_rows, most):
    """Nothing lost, nothing doubled, nothing moved; at most so many groups."""
    pieces = [piece(n, r) for n, r in enumerate(rows)]
    groups = put_together(iter(pieces), slice_rows, most=most)
    assert list(itertools.chain(*groups)) == [p for p in pieces if p.rows]
    assert len(groups) <= most
    assert all(groups)


@given(sizes, st.integers(1, 1000))
def test_groups_are_as_large_as_they_may_be(rows, slice_rows):
    """No group exceeds slice_rows unless it is one piece, and no two neighbours would fit into one."""
    groups = put_together([piece(n, r) for n, r in enumerate(rows)], slice_rows)
    totals = [sum(p.rows for p in g) for g in groups]
    assert all(total <= slice_rows or len(group) == 1 for total, group in zip(totals, groups, strict=True))
    assert all(group[0].rows + total > slice_rows for total, group in zip(totals, groups[1:], strict=False))


@given(sizes, st.integers(1, 1000))
def test_first_rows_are_exact(rows, slice_rows):
    """The first row of a slice is the sum of all rows before it; numbers count from 0; ranks grow."""
    made = list(slices_of(BATCH, put_together([piece(n, r) for n, r in enumerate(rows)], slice_rows), PACE))
    assert [s.slice.number for s in made] == list(range(len(made)))
    assert [s.slice.first_row for s in made] == list(itertools.accumulate((s.rows for s in made), initial=0))[:-1]
    assert sum(s.rows for s in made) == sum(rows)


def test_ten_thousand_slices_are_the_most():
    """A hundred thousand pieces that each fill a slice are put together."""
    groups = put_together((piece(n, 100) for n in range(100_000)), 100)
    assert len(groups) <= 10_000
    assert sum(len(g) for g in groups) == 100_000


def test_many_small_files_do_not_make_one_huge_payload():
    """At most a thousand pieces a slice, while there is room for more slices."""
    groups = put_together((piece(n, 1) for n in range(5_500)), 100_000)
    assert [len(g) for g in groups] == [1000] * 5 + [500]


def test_too_many_pieces_are_refused(monkeypatch):
    """What is planned is held in memory."""
    monkeypatch.setattr(slicing, "MAX_PIECES", 10)
    with pytest.raises(SourceError, match="more than 10"):
        put_together((piece(n, 1) for n in range(11)), 100)


def view(number: int, status: str, rows: int, failed: list[int], only: bytes | None = None) -> SliceView:
    payload = msgspec.json.encode(Slice(BATCH, number, number * 100, [piece(number, 100)], only))
    bits = rows_to_bits(failed, 100) if failed else None
    return SliceView(uuid.uuid4(), number, status, 1, rows, len(failed), None, None, payload, bits, None, False)


def test_a_retry_does_the_failed_rows_of_each_slice_and_whole_slices_that_failed():
    """Succeeded slices without failures are left out; row numbers and pieces are the parent's."""
    only = rows_to_bits([5, 6], 100)
    parents = [
        view(0, "succeeded", 100, []),
        view(1, "succeeded", 100, [3, 99]),
        view(2, "cancelled", 100, []),
        view(3, "expired", 2, [], only),
        view(4, "failed", 100, list(range(100))),
        view(5, "failed", 100, []),
    ]
    made = list(slices_again(BATCH, parents, PACE))
    assert [s.slice.first_row for s in made] == [100, 200, 300, 400, 500]
    assert [s.rows for s in made] == [2, 100, 2, 100, 100]
    assert [s.slice.number for s in made] == list(range(5))
    assert bits_to_rows(made[0].slice.only) == [3, 99]
    assert made[1].slice.only is None
    assert made[2].slice.only == only
    assert made[0].slice.pieces == [piece(1, 100)]


def test_a_retry_of_a_table_that_was_not_replaced_does_every_row():
    """What had succeeded went away with the table that never took its place."""
    parents = [view(0, "succeeded", 100, []), view(1, "succeeded", 100, [3]), view(2, "cancelled", 100, [])]
    made = list(slices_again(BATCH, parents, PACE, every_row=True))
    assert [(s.slice.first_row, s.rows, s.slice.only) for s in made] == [
        (0, 100, None),
        (100, 100, None),
        (200, 100, None),
    ]


def test_two_batches_take_turns_whatever_the_size_of_their_slices():
    """A batch of large slices gets as many rows in the same time as one of small ones."""
    large = list(slices_of(BATCH, [[piece(n, 1000)] for n in range(10)], PACE))
    small = list(slices_of(BATCH, [[piece(n, 100)] for n in range(100)], PACE))
    order = sorted([(s.rank, s.rows) for s in large + small])
    half = order[: len(order) // 2]
    by_large = sum(r for _, r in half if r == 1000)
    assert by_large == pytest.approx(sum(r for _, r in half if r == 100), abs=1000)
