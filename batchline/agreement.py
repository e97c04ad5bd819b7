"""What quantizing gained and cost: what `python -m workers.quantize` measures and `batchline models quantize` shows."""

from __future__ import annotations

import msgspec


class Side(msgspec.Struct, frozen=True):
    """One of two versions: its file, and the median time of a forward pass."""

    bytes: int
    pass_ms: float


class Agreement(msgspec.Struct, frozen=True):
    """How far both agree in one output, over all rows; what does not apply is None."""

    output: str
    same: float | None
    """Share of rows with the same labels, or whose largest value stands at the same place."""
    largest_difference: float | None
    mean_difference: float | None
    non_finite: int
    """Values that are finite in one of the two only, or infinite with another sign; in no difference."""


class Report(msgspec.Struct, frozen=True):
    """What was measured on `rows` rows, random ones or given; `pass_rows` is the B of the passes that were timed."""

    before: Side
    after: Side
    operators: int
    """How many became integer ones."""
    rows: int
    random: bool
    pass_rows: int
    outputs: tuple[Agreement, ...]
