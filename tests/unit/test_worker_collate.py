"""Collation: every row once, of one shape, within the limit, and the way back."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.model import BatchPolicy, ModelSpec, Padding, TensorSpec
from batchline.rows import RowBlock
from workers.collate import collate


def a_spec(mode: str = "none", value: float = -1.0, inputs: tuple[str, ...] = ("x",)) -> ModelSpec:
    padding = msgspec.convert({"mode": mode, "value": value}, Padding)
    tensors = tuple(TensorSpec(name, "FP32", (None,)) for name in inputs)
    return ModelSpec("m", "1", "d", 1, tensors, (), BatchPolicy(padding=padding))


lengths_of_jobs = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=6)


def blocks_of(jobs: list[list[int]]) -> list[RowBlock]:
    """Rows whose values are their number in the claim; jobs with rows of one length are one block."""
    blocks: list[RowBlock] = []
    number = 0
    for lengths in jobs:
        rows = [np.full(n, number + i, dtype=np.float32) for i, n in enumerate(lengths)]
        number += len(lengths)
        blocks.append(RowBlock(len(rows), {"x": np.stack(rows) if len(set(lengths)) == 1 else rows}))
    return blocks


@given(lengths_of_jobs, st.integers(1, 5), st.sampled_from(["none", "pad"]))
def test_every_row_is_in_one_micro_batch_whole_and_under_its_number(
    jobs: list[list[int]], max_rows: int, mode: str
) -> None:
    """Whatever the shapes, the limit and the padding: nothing lost, nothing doubled, nothing changed."""
    batches = collate(blocks_of(jobs), a_spec(mode), max_rows=max_rows)
    lengths = [n for job in jobs for n in job]
    assert sorted(n for b in batches for n in b.rows) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch.rows) <= max_rows
        assert len(batch.inputs["x"]) == len(batch.rows)
        for number, row in zip(batch.rows, batch.inputs["x"], strict=True):
            length = lengths[number]
            assert (row[:length] == number).all()
            assert (row[length:] == -1).all(), "what is added is padding"
            assert mode == "pad" or len(row) == length


@given(lengths_of_jobs)
def test_padding_goes_no_further_than_the_longest_row_of_the_micro_batch(jobs: list[list[int]]) -> None:
    """Sorted by length first: a micro-batch is as long as its longest row."""
    lengths = [n for job in jobs for n in job]
    for batch in collate(blocks_of(jobs), a_spec("pad"), max_rows=4):
        assert batch.inputs["x"].shape[1] == max(lengths[n] for n in batch.rows)


def test_masks_are_padded_with_zero_whatever_the_value() -> None:
    """A padded place must not be looked at, so a mask has 0 there."""
    rows = [np.ones(1, np.float32), np.ones(3, np.float32)]
    block = RowBlock(2, {"x": rows, "attention_mask": rows})
    (batch,) = collate([block], a_spec("pad", 5.0, ("x", "attention_mask")), max_rows=8)
    assert batch.inputs["x"][0].tolist() == [1, 5, 5]
    assert batch.inputs["attention_mask"][0].tolist() == [1, 0, 0]


def test_texts_become_tensors_once_for_all_jobs() -> None:
    """The text front sees the texts of the whole claim in one call."""
    calls: list[list[str]] = []

    def encode(texts: object, names: object) -> dict[str, list[np.ndarray]]:
        calls.append(list(texts))  # type: ignore[arg-type]
        return {"x": [np.zeros(len(t), np.float32) for t in calls[-1]]}

    blocks = [RowBlock(1, {"text": ["ab"]}), RowBlock(2, {"text": ["c", "de"]})]
    batches = collate(blocks, a_spec(), max_rows=8, encode=encode)
    assert calls == [["ab", "c", "de"]]
    assert [list(b.rows) for b in batches] == [[0, 2], [1]]


@pytest.mark.parametrize("long", [1_000_000, 3_000_000])
def test_one_long_row_does_not_make_its_company_long(long: int) -> None:
    """Rows far shorter than it run apart, so what is allocated stays near to what was sent."""
    rows = [np.ones(3, np.float32) for _ in range(63)] + [np.ones(long, np.float32)]
    batches = collate([RowBlock(64, {"x": rows})], a_spec("pad"), max_rows=64)
    assert sorted(n for b in batches for n in b.rows) == list(range(64))
    assert sum(b.inputs["x"].size for b in batches) < 2 * long


def test_rows_that_are_long_in_different_axes_run_apart() -> None:
    """Padded to both, a row would be the product of two lengths: here 160 GB."""
    spec = msgspec.structs.replace(a_spec("pad"), inputs=(TensorSpec("x", "FP32", (None, None)),))
    rows = [np.ones((200_000, 1), np.float32), np.ones((1, 200_000), np.float32)]
    batches = collate([RowBlock(2, {"x": rows})], spec, max_rows=64)
    assert sorted(b.inputs["x"].shape for b in batches) == [(1, 1, 200_000), (1, 200_000, 1)]
