"""The rows of the batch benchmarks: scikit-learn's breast_cancer, 30 columns, drawn again and again with jitter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLUMNS = 30
ROW_GROUP = 100_000
_AT_ONCE = 500_000


@dataclass(frozen=True)
class Table:
    """Where the rows and the model stand.

    Attributes:
        rows: a Parquet file: `id` int64 from 0, then f0 to f29 float32; row groups of 100,000.
        model: an ONNX file, "features" [B, 30] float32 -> "label" [B] int64, "probabilities" [B, 2] float32.
        count: how many rows.
    """

    rows: Path
    model: Path
    count: int


def prepare(folder: Path, count: int, hidden: tuple[int, ...] = (64,)) -> Table:
    """Make both in a folder unless they are there; the same bytes on every run.

    Args:
        folder: where to.
        count: rows.
        hidden: layers of the net; one of 64 is as large as the digits benchmark's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = Table(folder / "rows.parquet", folder / "net.onnx", count)
    if not made.rows.exists():
        _write(made.rows, _train(made.model, hidden), count)
    return made


def _train(path: Path, hidden: tuple[int, ...]) -> np.ndarray:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_breast_cancer
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    net = make_pipeline(StandardScaler(), MLPClassifier(hidden, max_iter=300, random_state=7)).fit(x, y)
    model = to_onnx(
        net, initial_types=[("features", FloatTensorType([None, COLUMNS]))], options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3}, name="breast_cancer",
    )  # fmt: skip
    path.write_bytes(model.SerializeToString())
    return x.astype(np.float32)


def _write(path: Path, x: np.ndarray, count: int) -> None:
    """Draw `count` rows from x [N, 30] with 1 % jitter and write them, half a million in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(7)
    names = ["id", *(f"f{i}" for i in range(COLUMNS))]
    schema = pa.schema([("id", pa.int64()), *((name, pa.float32()) for name in names[1:])])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, _AT_ONCE):
            some = min(_AT_ONCE, count - start)
            drawn = x[random.integers(0, len(x), some)]
            drawn *= random.normal(1.0, 0.01, drawn.shape).astype(np.float32)
            columns = [np.arange(start, start + some), *np.ascontiguousarray(drawn.T)]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True)), schema), row_group_size=ROW_GROUP)
