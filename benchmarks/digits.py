"""The benchmarks' model and rows: scikit-learn's digits, a small net as ONNX, and the answers ONNX Runtime gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson


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
    """Make the model and the rows in folder, once; the same bytes of rows for every side of every benchmark."""
    made = Digits(folder / "digits.onnx", folder / "digits.json")
    if not made.rows.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _train(made.model)
        _answer(made)
    return made


def _train(path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_digits(return_X_y=True)
    net = make_pipeline(StandardScaler(), MLPClassifier(hidden_layer_sizes=(64,), max_iter=60, random_state=0))
    net.fit(x[:1400], y[:1400])
    onnx = to_onnx(net, x[:1].astype(np.float32), options={"zipmap": False})
    path.write_bytes(onnx.SerializeToString())


def _answer(digits: Digits) -> None:
    """Write the rows with ONNX Runtime's own answers to all of them in one pass."""
    import onnxruntime
    from sklearn.datasets import load_digits

    x = load_digits(return_X_y=True)[0].astype(np.float32)
    session = onnxruntime.InferenceSession(digits.model, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {session.get_inputs()[0].name: x})
    text = {"rows": x.tolist(), "labels": label.tolist(), "probabilities": probabilities.tolist()}
    whole = digits.rows.with_suffix(".part")
    whole.write_bytes(orjson.dumps(text))
    whole.rename(digits.rows)
