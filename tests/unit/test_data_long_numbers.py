"""Whole numbers beyond 64 bits in JSONL: digits are kept, and models read them as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchline.batch import DataSet, Input, Output
from batchline.data import open_source
from batchline.data.columns import Mapper
from batchline.data.contract import Places
from batchline.model import ModelSpec, TensorSpec

SPEC = ModelSpec("m", "1", "d", 1, (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", ()),))
LONG = 123456789012345678901234


def scored(path: Path, text: str, *, keep: list[str] | None = None) -> tuple[list[Any], list[Any], dict[int, str]]:
    """What is kept of each row that has no fault, what the model reads of them, and the faults."""
    path.write_text(text)
    source = open_source(Input(uri=f"file://{path}"), Places("file:///nowhere", (str(path.parent),)))
    data = DataSet("m", "1", Input(key="id", columns=["x"]), Output(uri="s3://b/x", keep=keep or []))
    mapper = Mapper(SPEC, data, source.schema())
    [piece] = source.pieces(100_000)
    [rows] = source.read(piece, mapper.reads, batch_rows=100_000, texts=mapper.texts)
    got = mapper.arrays(rows)
    x = np.asarray(got.columns["x"])
    out = mapper.output(rows.batch, got.at, 0, {"y": np.zeros(len(x), np.float32)})
    return out.drop_columns(["y"]).to_pylist(), x[:, 0].tolist(), dict(got.faults)


def test_long_keys_keep_their_digits(tmp_path: Path) -> None:
    """Beside short ones, negative ones and nulls, in rows that are not looked at first too."""
    text = "".join(f'{{"id": {n}, "x": 1}}\n' for n in (1, LONG, -LONG, "null", 2**64 - 1, *range(3000), LONG + 1))
    kept, _, faults = scored(tmp_path / "a.jsonl", text)
    assert not faults
    assert [r["id"] for r in (*kept[:5], kept[-1])] == ["1", str(LONG), str(-LONG), None, str(2**64 - 1), str(LONG + 1)]


def test_a_model_reads_long_numbers(tmp_path: Path) -> None:
    """As floats; kept beside that they keep their digits, and a column with fractions is one of floats."""
    lines = f'{{"id": 1, "x": {LONG}, "f": 0.5}}\n{{"id": 2, "x": 3, "f": {LONG}}}\n'
    kept, x, faults = scored(tmp_path / "a.jsonl", lines, keep=["x", "f"])
    assert (x, faults) == ([np.float32(LONG), 3.0], {})
    assert kept == [{"id": 1, "x": str(LONG), "f": 0.5}, {"id": 2, "x": "3", "f": float(LONG)}]


def test_a_long_number_that_comes_late_is_a_fault_of_its_row(tmp_path: Path) -> None:
    """The rows that are looked at first have told another type."""
    text = '{"id": 7, "x": 1}\n' * 2500 + f'{{"id": {LONG}, "x": 1}}\n'
    kept, _, faults = scored(tmp_path / "a.jsonl", text)
    assert list(faults) == [2500]
    assert len(kept) == 2500
    assert pa.array([r["id"] for r in kept]).type == pa.int64()
