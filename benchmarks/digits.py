"""The benchmarks' rows: all of scikit-learn's digits, with the answers ONNX Runtime gives to the demo's model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from examples.digits import build


@dataclass(frozen=True)
class Digits:
    """Where the model and its rows stand.

    Attributes:
        model: an ONNX file, input [B, 64] float32 in 0..16, outputs label [B] int64 and probabilities [B, 10] float32.
        rows: a JSON file {"rows": [[64 numbers], ...], "labels": [...], "probabilities": [[10 numbers], ...]}.
    """

    model: Path
    rows: Path


def prepare(folder: Path) -> Digits:
    """Make the model and the rows in folder; the same bytes of rows for every side of every benchmark."""
    made = Digits(folder / "model.onnx", folder / "rows.json")
    build(folder)
    _answer(made)
    return made


def _answer(digits: Digits) -> None:
    """Write the rows with ONNX Runtime's own answers to all of them in one pass."""
    import onnxruntime
    from sklearn.datasets import load_digits

    x = load_digits(return_X_y=True)[0].astype(np.float32)
    session = onnxruntime.InferenceSession(digits.model, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {session.get_inputs()[0].name: x})
    text = {"rows": x.tolist(), "labels": label.tolist(), "probabilities": probabilities.tolist()}
    digits.rows.write_bytes(orjson.dumps(text))
