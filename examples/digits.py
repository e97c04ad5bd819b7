"""The digits model: scikit-learn's handwritten digits, a small neural net, and the rows that it never saw."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Digits(NamedTuple):
    """N held-out digits: rows [N, 64] float32 of pixels from 0 to 16, labels [N] int64 from 0 to 9."""

    rows: NDArray[np.float32]
    labels: NDArray[np.int64]


def held_out() -> Digits:
    """The test split, 450 of the 1,797 digits; always the same ones."""
    _, rows, _, labels = _split()
    return Digits(rows, labels)


def build(folder: Path) -> Digits:
    """Train the net (64 -> 64 -> 10) and write `model.onnx` into a folder.

    The model takes "pixels" FP32 [N, 64] as they are, scaling included, and gives "label" INT64 [N] and
    "probabilities" FP32 [N, 10]. Takes about a second after the imports; the same bytes on every run.

    Args:
        folder: made if it is not there.

    Returns:
        The held-out digits.
    """
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    rows, test_rows, labels, test_labels = _split()
    net = make_pipeline(MinMaxScaler(), MLPClassifier((64,), max_iter=400, random_state=7)).fit(rows, labels)
    model = to_onnx(
        net,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
        name="digits",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Digits(test_rows, test_labels)


def _split() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    return tuple(
        train_test_split(
            pixels.astype(np.float32), labels.astype(np.int64), test_size=0.25, random_state=7, stratify=labels
        )
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]))
