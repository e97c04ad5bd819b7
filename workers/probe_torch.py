"""What a torch.export program takes and gives, and whether its rows can be gathered: `probe` for .pt2 files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchline.errors import ModelError
from workers.runtimes import pt2

if TYPE_CHECKING:
    from workers.runtimes.torch_runtime import Program, Tensor

Told = tuple[str, str, tuple[int | None, ...]]
"""Name, data type in the Open Inference Protocol's words, shape; None is a free axis, the first one counts the rows."""

_DYNAMIC = "export it with dynamic_shapes={...: {0: torch.export.Dim('batch')}} for every input"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a program is like from outside."""

    inputs: tuple[Told, ...]
    outputs: tuple[Told, ...]
    most_rows: int | None
    """The bound of the batch axis, if it has one; 1 where the axis is fixed."""


def read(data: bytes) -> Reading:
    """Open a program as a worker would, and run it once or twice.

    Raises:
        ModelError: it is refused; says why and what to do.
    """
    try:
        from workers.runtimes import torch_runtime  # noqa: PLC0415  # a missing runtime is an answer
    except ImportError as error:
        pt2.clean(data, device="cpu")  # what is wrong with the file comes first
        raise ModelError(
            "PyTorch is not installed here, so no .pt2 file can be checked: install batchline[torch]"
        ) from error
    torch_runtime.torch.set_num_threads(1)
    program = torch_runtime.open_program(data, "cpu")
    inputs, outputs = (
        tuple(_told(t, torch_runtime.DTYPES) for t in side) for side in (program.inputs, program.outputs)
    )
    if not inputs or not outputs:
        raise ModelError("the program has no input or no output: nothing could be submitted to it or read from it")
    for side, tensors in (("input", inputs), ("output", outputs)):
        if twice := [name for name, count in Counter(name for name, *_ in tensors).items() if count > 1]:
            raise ModelError(
                f"two of its {side}s are called {twice[0]!r}: give the keys of what it returns other names"
            )
    most_rows = _most_rows(program)
    _try(program, most_rows)
    return Reading(inputs, outputs, most_rows)


def _told(tensor: Tensor, dtypes: Mapping[Any, str]) -> Told:
    if tensor.dtype not in dtypes:
        raise ModelError(
            f"{tensor.name!r} is of {tensor.dtype}, which no client can send or read: convert it in forward"
        )
    return tensor.name, dtypes[tensor.dtype], tuple(d if isinstance(d, int) else None for d in tensor.shape)


def _most_rows(program: Program) -> int | None:
    """The bound of the batch axis.

    Raises:
        ModelError: the rows that come out are not those that went in, one for each.
    """
    for tensor in (*program.inputs, *program.outputs):
        if not tensor.shape:
            raise ModelError(f"{tensor.name!r} is a scalar: give it a first axis, which counts the rows")
    for tensor in program.inputs:
        if tensor.shape[0] != 1 and tensor.shape[0] not in program.ranges:
            raise ModelError(f"input {tensor.name!r} wants exactly {tensor.shape[0]} rows at a time: {_DYNAMIC}")
    firsts = {t.shape[0] for t in program.inputs}
    batch = {d for d in firsts if isinstance(d, str)}
    for tensor in program.outputs:
        if tensor.shape[0] not in firsts | {1}:
            raise ModelError(
                f"output {tensor.name!r} has {tensor.shape[0]} rows: return one for each row of the inputs"
            )
    for tensor in (*program.inputs, *program.outputs):
        if batch.intersection(tensor.shape[1:]):
            raise ModelError(
                f"{tensor.name!r} has a second axis as long as the batch: rows would depend on one another"
            )
    if any(t.shape[0] == 1 for t in (*program.inputs, *program.outputs)):
        return 1
    bounds = [program.ranges[d] for d in batch]
    if least := max((least for least, _ in bounds if least > 2), default=0):
        raise ModelError(f"it takes {least} rows at least, and one must do: {_DYNAMIC}")
    return min((most for _, most in bounds if most is not None), default=None)


def _try(program: Program, most_rows: int | None) -> None:
    """Run rows of zeros: what comes out must have as many. A model that dislikes zeros is still a model."""
    from workers.runtimes.torch_runtime import torch  # noqa: PLC0415

    worked = False
    for rows in (2, 1) if most_rows is None or most_rows > 1 else (1,):
        given = [torch.zeros(_sizes(t, program, rows), dtype=t.dtype) for t in program.inputs]
        try:
            values = program.run(given)
        except Exception as error:
            if worked:
                raise ModelError(f"it takes 2 rows and refuses 1, and one must do: {error}") from error
            continue
        worked = True
        for tensor, value in zip(program.outputs, values, strict=True):
            if not value.ndim or len(value) != rows:
                have = len(value) if value.ndim else "no"
                raise ModelError(f"output {tensor.name!r} has {have} rows for {rows}: return one for each row")


def _sizes(tensor: Tensor, program: Program, rows: int) -> Sequence[int]:
    first, *others = tensor.shape
    return [rows if isinstance(first, str) else first, *(_size(d, program) for d in others)]


def _size(axis: int | str, program: Program) -> int:
    return axis if isinstance(axis, int) else max(1, program.ranges.get(axis, (1, None))[0])
