"""Sizes of bulk micro-batches: found by doubling; bounded by rows, bytes, room, and time while online work waits."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from batchline.model import BatchPolicy, ModelSpec
from workers.bulk_sizes import MOST_BYTES, MOST_ROWS, BulkSizes
from workers.models import LoadedModel
from workers.predict import Sizes

BULK_S = 0.020


def model(**policy: Any) -> LoadedModel:
    runtime: Any = None
    return LoadedModel(1, ModelSpec("m", "1", "d", 1, (), (), BatchPolicy(**policy)), runtime, None, 0.0)


def settle(sizes: BulkSizes, loaded: LoadedModel, took: Any, row_bytes: int = 100, passes: int = 100) -> int:
    """Run full passes that take `took(rows)` seconds; returns the size that it comes to."""
    for _ in range(passes):
        rows = sizes.rows(loaded)
        sizes.note(loaded, rows, took(rows), rows * row_bytes)
    return sizes.rows(loaded)


def test_a_pass_that_is_mostly_overhead_grows_until_it_is_not_short_any_more() -> None:
    """0.1 ms a pass and 1 us a row: from 64 up, and a pass of the size found stays within 5 ms."""
    found = settle(BulkSizes(Sizes(), bulk_s=BULK_S), model(max_batch_size=64), lambda n: 1e-4 + n * 1e-6)
    assert found in {2048, 4096}
    assert 1e-4 + found * 1e-6 <= 0.005


def test_what_gets_no_quicker_by_the_row_does_not_grow() -> None:
    """One step is tried; a size that is slower by the row is left again."""
    assert settle(BulkSizes(Sizes(), bulk_s=BULK_S), model(max_batch_size=64), lambda n: n * 1e-6) == 128
    assert settle(BulkSizes(Sizes(), bulk_s=BULK_S), model(max_batch_size=64), lambda n: n * n * 1e-8) == 64


@given(
    st.integers(1, 5000),
    st.none() | st.integers(1, 65_536),
    st.floats(1e-9, 0.1),
    st.floats(0, 0.01),
    st.integers(1, 2**27),
)
def test_sizes_stay_within_all_bounds(most: int, bulk: int | None, row_s: float, pass_s: float, row_bytes: int) -> None:
    """From 1 row; at most 65,536 and 64 MiB; a size that is given is kept to, and 1 stays 1."""
    sizes, loaded = BulkSizes(Sizes(), bulk_s=BULK_S), model(max_batch_size=most, max_bulk_batch_size=bulk)
    found = settle(sizes, loaded, lambda n: pass_s + n * row_s, row_bytes, passes=60)
    assert 1 <= found <= MOST_ROWS
    assert found == 1 or found * row_bytes <= MOST_BYTES
    if most == 1:
        assert found == 1
    elif bulk is not None:
        assert found == min(bulk, max(1, MOST_BYTES // row_bytes))
    else:
        assert found >= min(most, max(1, MOST_BYTES // row_bytes))


@given(st.integers(1, 5000), st.floats(1e-7, 0.1), st.floats(0, 0.01))
def test_while_online_work_waits_a_pass_stays_short(most: int, row_s: float, pass_s: float) -> None:
    """Whatever was measured: the pass that is allowed takes at most bulk_ms, or is of one row."""
    sizes, loaded = BulkSizes(Sizes(), bulk_s=BULK_S), model(max_batch_size=most)
    assert sizes.rows(loaded, online=True) == 1, "nothing is known yet"
    settle(sizes, loaded, lambda n: pass_s + n * row_s, passes=30)
    for _ in range(30):
        rows = sizes.rows(loaded, online=True)
        sizes.note(loaded, rows, pass_s + rows * row_s, rows)
    rows = sizes.rows(loaded, online=True)
    assert rows == 1 or pass_s + rows * row_s <= BULK_S * 1.05


def test_sizes_without_room_are_remembered_and_halved() -> None:
    """What the device had no room for is not tried again for ten minutes, by bulk neither."""
    now = [0.0]
    room = Sizes(lambda: now[0])
    sizes, loaded = BulkSizes(room, bulk_s=BULK_S, clock=lambda: now[0]), model(max_batch_size=64)
    settle(sizes, loaded, lambda n: 1e-3)
    before = sizes.rows(loaded)
    room.had_no_room(loaded, before)
    assert sizes.rows(loaded) == before // 2
    settle(sizes, loaded, lambda n: 1e-3)
    assert sizes.rows(loaded) == before // 2
    now[0] = 601.0
    assert settle(sizes, loaded, lambda n: 1e-3) == before
