"""From the rows of many jobs to micro-batches of one shape, and the numbers to find the way back. Pure functions.

All rows of a claim are numbered through: rows of the first job, then of the second, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from batchline.model import ModelSpec, Padding
from batchline.rows import TEXT, Array, Column, RowBlock

Encode = Callable[[Sequence[str], Sequence[str]], dict[str, list[Array]]]
"""Texts and names of inputs -> one list of arrays for each input."""

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of one row, one for each input."""

_MUCH = 1 << 22
"""Values of a micro-batch that may be padding for the most part: 16 MiB of FP32."""
_MOSTLY = 4
_ZERO_PADDED = frozenset({"attention_mask", "token_type_ids"})


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B rows of one shape: `inputs` has [B, ...] for each input, `rows` the number of each row in its claim."""

    inputs: dict[str, Array]
    rows: Sequence[int]

    def part(self, start: int, stop: int) -> MicroBatch:
        """Rows start to stop, as views."""
        return MicroBatch({name: a[start:stop] for name, a in self.inputs.items()}, self.rows[start:stop])


def collate(
    blocks: Sequence[RowBlock], spec: ModelSpec, *, max_rows: int, encode: Encode | None = None
) -> list[MicroBatch]:
    """Gather the rows of a claim into micro-batches.

    Args:
        blocks: the rows of each job, in the order of the claim.
        spec: the model; its padding decides whether rows of different shape may share a micro-batch.
        max_rows: most rows of one micro-batch.
        encode: the text front, for models that have one.

    Returns:
        Micro-batches of 1 to max_rows rows, every row of the claim in exactly one of them.
    """
    columns = _columns(blocks, spec, encode)
    if all(isinstance(column, np.ndarray) for column in columns.values()):
        whole = MicroBatch(cast("dict[str, Array]", columns), range(sum(b.count for b in blocks)))
        return cut(whole, max_rows)
    rows = {name: cast("list[Array]", list(column)) for name, column in columns.items()}
    shapes = list(zip(*([row.shape for row in column] for column in rows.values()), strict=True))
    padding = spec.policy.padding
    if padding.mode == "pad":
        order = sorted(range(len(shapes)), key=lambda i: shapes[i])
        groups = list(_padded_groups(order, shapes, max_rows))
    else:
        alike: dict[object, list[int]] = {}
        for i, shape in enumerate(shapes):
            alike.setdefault(shape, []).append(i)
        groups = list(alike.values())
    batches: list[MicroBatch] = []
    for group in groups:
        inputs = {name: _stack([column[i] for i in group], name, padding) for name, column in rows.items()}
        batches += cut(MicroBatch(inputs, group), max_rows)
    return batches


def _padded_groups(order: Sequence[int], shapes: Sequence[Shapes], max_rows: int) -> Iterator[list[int]]:
    """Cut sorted rows so that no group is mostly padding and large: one long row must not make its company long."""
    group: list[int] = []
    longest: Shapes = ()
    held = 0
    for i in order:
        own = sum(math.prod(shape) for shape in shapes[i])
        reach = shapes[i] if not group else tuple(map(_longest, longest, shapes[i]))
        padded = (len(group) + 1) * sum(math.prod(shape) for shape in reach)
        if group and (len(group) == max_rows or (padded > _MUCH and padded > _MOSTLY * (held + own))):
            yield group
            group, held, reach = [], 0, shapes[i]
        group.append(i)
        longest, held = reach, held + own
    if group:
        yield group


def _longest(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, one, other))


def _columns(blocks: Sequence[RowBlock], spec: ModelSpec, encode: Encode | None) -> dict[str, Column]:
    names = [t.name for t in spec.inputs]
    if encode is not None:
        texts = [text for block in blocks for text in cast("list[str]", block.columns[TEXT])]
        return dict(encode(texts, names))
    return {name: joined([block.columns[name] for block in blocks]) for name in names}


def joined(columns: list[Column]) -> Column:
    """Columns of one tensor, or texts, one behind the other."""
    if len({c.shape[1:] if isinstance(c, np.ndarray) else None for c in columns}) == 1 and isinstance(
        columns[0], np.ndarray
    ):
        return np.concatenate(cast("list[Array]", columns)) if len(columns) > 1 else columns[0]
    return [row for column in columns for row in cast("list[Array]", column)]


def cut(whole: MicroBatch, max_rows: int) -> list[MicroBatch]:
    """The rows in parts of at most so many."""
    count = len(whole.rows)
    if count <= max_rows:
        return [whole]
    return [whole.part(at, min(at + max_rows, count)) for at in range(0, count, max_rows)]


def _stack(rows: list[Array], name: str, padding: Padding) -> Array:
    """Stack B rows to [B, ...], each axis as long as its longest row; equal shapes are not padded."""
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    shape = tuple(max(lengths) for lengths in zip(*(row.shape for row in rows), strict=True))
    value: object = 0 if name in _ZERO_PADDED else padding.value
    if rows[0].dtype == object:
        value = ""
    stacked: Array = np.full((len(rows), *shape), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        stacked[(i, *(slice(0, n) for n in row.shape))] = row
    return stacked
