"""Rows that a table refuses, from the worker's side: exact counts, and which rows they are."""

from __future__ import annotations

from pathlib import Path

import batch_rig
import pyarrow as pa
import pyarrow.parquet as pq
import small_models
import stack
from worker_rig import Rig

from batchline.batch import Input, Output, bits_to_rows
from batchline.job import Lane
from batchline.store import Store


def test_rows_that_a_table_refuses_are_counted_as_failed(
    store: Store, redis_url: str, database_url: str, tmp_path: Path
) -> None:
    """Beside rows that fail before the model, in two slices; another attempt at a slice that is in changes nothing."""
    (tmp_path / "data").mkdir()
    rig = Rig(
        store, redis_url, tmp_path / "models", databases=f"shop={database_url}", **batch_rig.settings_of(tmp_path)
    )
    model = rig.add("double", small_models.double(tmp_path / "source.onnx", 3))
    stack.query(database_url, "CREATE TABLE scores (id bigint PRIMARY KEY CHECK (id % 7 <> 0), y real[])")
    columns = {f"f{i}": [None if i == 1 and n in (14, 60) else float(n) for n in range(100)] for i in range(3)}
    path = tmp_path / "data" / "in.parquet"
    pq.write_table(pa.table({"id": range(100), **columns}), path, row_group_size=50)
    batch = batch_rig.data_set(
        store, model, "double@1", rig.settings, slice_rows=50,
        given=Input(uri=f"file://{path}", key="id"), output=Output(table="scores", database="shop", mode="append"),
    )  # fmt: skip
    stack.query(
        database_url,
        "CREATE TABLE _batchline_slices (batch text, slice int, rows bigint NOT NULL, errors bigint NOT NULL,"
        " at timestamptz NOT NULL DEFAULT now(), refused bigint[], PRIMARY KEY (batch, slice));"
        "CREATE TABLE scores_errors (batch text, row bigint, key text, code text, message text)",
    )
    while rig.engine.run(Lane.BULK)["jobs"]:
        pass
    bad = sorted({*range(0, 100, 7), 60})
    view = store.batches.read(batch)
    assert view
    counts = view.counts
    assert (counts.total, counts.succeeded, counts.failed) == (100, 100 - len(bad), len(bad))
    assert [r[0] for r in stack.query(database_url, "SELECT id FROM scores ORDER BY id")] == [
        n for n in range(100) if n not in bad
    ]
    told = stack.query(database_url, "SELECT row, key, code FROM scores_errors ORDER BY row")
    assert told == [(n, str(n), "invalid_row" if n in (14, 60) else "refused_by_table") for n in bad]
    bits = stack.query(database_url, "SELECT number, failed FROM slices ORDER BY number")
    assert [50 * number + row for number, some in bits for row in bits_to_rows(bytes(some))] == bad
