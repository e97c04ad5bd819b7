"""How far two versions of a model agree on the same rows, and how long a forward pass of each takes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from batchline.agreement import Agreement, Report, Side
from batchline.errors import ModelError
from batchline.model import DTYPES, MODEL_FILE, ModelSpec, TensorSpec
from batchline.rows import TEXT, Array, Column, RowBlock, parse
from workers.collate import Encode, MicroBatch, collate
from workers.runtimes.contract import Runtime
from workers.runtimes.onnx_runtime import OnnxRuntime
from workers.text import Tokenizer

MAX_ROWS = 10_000
_RANDOM_ROWS = 256
_RANDOM_VALUES = 1 << 22
_FREE_AXIS = 32
"""Length of a free axis in random rows."""
_WORDS = ("the", "a", "model", "answers", "where", "is", "my", "order", "database", "plays", "quickly", "goal", "seven")
_HIGHEST = (100, 2)
"""Random whole numbers lie below this; below the second where the model refuses the first, as masks and flags do."""
_SEED = 7
_WARM_UP = 2
_TIMED_S = 3.0
_TIMED = 50
_MESSAGE_CHARS = 300


class _Opened:
    """One of the two; what it refuses is told of it."""

    def __init__(self, spec: ModelSpec, file: Path, threads: int) -> None:
        data = file.read_bytes()
        self.bytes = len(data)
        self._name = spec.ref if file.name == MODEL_FILE else f"the int8 copy of {spec.ref}"
        try:
            self._runtime = OnnxRuntime(spec, data, device="cpu", threads=threads)
        except ModelError as error:
            raise ModelError(f"{self._name} cannot be opened: {error.detail}") from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return self._runtime.run(inputs)
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:_MESSAGE_CHARS]
            raise ModelError(f"{self._name} refuses the rows: {why}") from error


def compare(folder: Path, spec: ModelSpec, given: bytes, other: str, *, operators: int, threads: int) -> Report:
    """Run both on the same micro-batches, as a worker would make them.

    Args:
        folder: holds model.onnx, the other one and the tokenizer.
        spec: of both; its max_batch_size is the size of the micro-batches.
        given: rows as of a job, or `null` for random ones.
        other: the other one's file name.
        operators: how many were quantized, for the report.
        threads: inside an operator.

    Raises:
        InvalidRequestError, MalformedError: rows that do not fit the model.
        ModelError: one of the two cannot be opened, or refuses the rows.
    """
    files = (folder / MODEL_FILE, folder / other)
    before, after = (_Opened(spec, file, threads) for file in files)
    encode = Tokenizer(folder / spec.text.tokenizer, spec.text.max_length).encode if spec.text else None
    most = spec.policy.max_batch_size
    random = given.strip() == b"null"
    block = _random(spec, before, encode) if random else parse(given, spec, max_rows=MAX_ROWS)
    batches = collate([block], spec, max_rows=most, encode=encode)
    pairs = [(before.run(batch.inputs), after.run(batch.inputs)) for batch in batches]
    timed = _resized(max(batches, key=_size), most)
    pass_ms = _times(before, after, timed)
    return Report(
        before=Side(before.bytes, pass_ms[0]),
        after=Side(after.bytes, pass_ms[1]),
        operators=operators,
        rows=block.count,
        random=random,
        pass_rows=most,
        outputs=tuple(agreement(t.name, [(a[t.name], b[t.name]) for a, b in pairs]) for t in spec.outputs),
    )


def agreement(name: str, pairs: Sequence[tuple[Array, Array]]) -> Agreement:
    """How far one output agrees.

    Args:
        name: of the output.
        pairs: both versions' [B, ...] of every micro-batch.
    """
    rows = sum(len(a) for a, _ in pairs)
    if not np.issubdtype(pairs[0][0].dtype, np.floating):
        same = sum(int((a == b).reshape(len(a), -1).all(axis=1).sum()) for a, b in pairs)
        return Agreement(name, same / rows, None, None, 0)
    same = None
    if all(a.ndim == 2 and a.shape[1] > 1 for a, _ in pairs):
        same = sum(int((a.argmax(axis=1) == b.argmax(axis=1)).sum()) for a, b in pairs) / rows
    apart = np.concatenate([_apart(a, b) for a, b in pairs])
    finite = apart[np.isfinite(apart)]
    largest, mean = (float(finite.max()), float(finite.mean())) if len(finite) else (None, None)
    return Agreement(name, same, largest, mean, len(apart) - len(finite))


def _apart(one: Array, other: Array) -> Array:
    """[values] float64: 0 where both are the same, or both not a number."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):
        return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))


def _size(batch: MicroBatch) -> tuple[int, int]:
    return len(batch.rows), sum(array.size for array in batch.inputs.values())


def _resized(batch: MicroBatch, rows: int) -> MicroBatch:
    """The rows again and again until there are so many."""
    numbers = np.arange(rows) % len(batch.rows)
    return MicroBatch({name: array[numbers] for name, array in batch.inputs.items()}, range(rows))


def _times(before: Runtime, after: Runtime, batch: MicroBatch) -> tuple[float, float]:
    """Median milliseconds of both, in turn, so that what else the machine does meets both alike."""
    taken: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _TIMED_S
    for number in range(_WARM_UP + _TIMED):
        if number > _WARM_UP and time.perf_counter() > end:
            break
        for runtime, times in zip((before, after), taken, strict=True):
            at = time.perf_counter()
            runtime.run(batch.inputs)
            times.append((time.perf_counter() - at) * 1000)
    return median(taken[0][_WARM_UP:]), median(taken[1][_WARM_UP:])


def _random(spec: ModelSpec, runtime: Runtime, encode: Encode | None) -> RowBlock:
    """Rows that the model takes, the same ones every time.

    Raises:
        ModelError: it takes none of those that were tried.
    """
    rng = np.random.default_rng(_SEED)
    if spec.text is not None:
        texts = [" ".join(rng.choice(_WORDS, size=rng.integers(3, 30))) for _ in range(_RANDOM_ROWS)]
        return RowBlock(len(texts), {TEXT: texts})
    values = sum(int(np.prod([_FREE_AXIS if n is None else n for n in t.shape])) for t in spec.inputs)
    count = max(1, min(_RANDOM_ROWS, _RANDOM_VALUES // max(1, values)))
    failed: Exception | None = None
    for highest in _HIGHEST:
        columns: dict[str, Column] = {t.name: _column(rng, t, count, highest) for t in spec.inputs}
        block = RowBlock(count, columns)
        try:
            for batch in collate([block], spec, max_rows=spec.policy.max_batch_size, encode=encode):
                runtime.run(batch.inputs)
            return block
        except ModelError as error:
            failed = error
    raise ModelError(f"{spec.ref} takes no random rows: give real ones with --rows ({failed})") from failed


def _column(rng: np.random.Generator, tensor: TensorSpec, count: int, highest: int) -> Array:
    shape = (count, *(_FREE_AXIS if n is None else n for n in tensor.shape))
    if tensor.is_float:
        return rng.normal(size=shape).astype(DTYPES[tensor.dtype])
    if tensor.dtype == "BYTES":
        return rng.choice(np.array(["a", "b", "c"], dtype=object), size=shape)
    return rng.integers(0, 2 if tensor.dtype == "BOOL" else highest, size=shape).astype(DTYPES[tensor.dtype])
