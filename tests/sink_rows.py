"""Rows and faults as sinks get them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("note", pa.string()),
        ("label", pa.int64()),
        ("scores", pa.list_(pa.float32(), 3)),
    ]
)
ERRORS = pa.schema([("row", pa.int64()), ("id", pa.int64()), ("code", pa.string()), ("message", pa.string())])


def rows(count: int, start: int = 0) -> pa.RecordBatch:
    number = np.arange(start, start + count)
    scores = np.sin(np.arange(start * 3, (start + count) * 3)).astype(np.float32)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(number),
            pa.array([f'n "{n}",\n' for n in number.tolist()]),
            pa.array(number % 7),
            pa.FixedSizeListArray.from_arrays(pa.array(scores), 3),
        ],
        schema=SCHEMA,
    )


def faults(*numbers: int) -> pa.RecordBatch:
    told = [{"row": n, "id": n, "code": "invalid", "message": f"row {n}"} for n in numbers]
    return pa.RecordBatch.from_pylist(told, schema=ERRORS)
