"""A table scored into a table by upsert, against the loop that one writes by hand."""

from __future__ import annotations

import functools
import io

from benchmarks import loops
from benchmarks.harness import Bench, Goal, Report, Sample, durability, interleave
from benchmarks.loops import FEATURES
from benchmarks.product import Product, product
from benchmarks.rig import sql
from benchmarks.scoring import score
from benchmarks.table import Table

SUMMARY = "SQL table -> net -> SQL table, upsert: rows/s against server-side cursor -> ONNX Runtime -> COPY -> upsert"
ROWS = 500_000
LOOP_ROWS = 16384
_SCORES = "CREATE TABLE {0} (id bigint PRIMARY KEY, label bigint, probabilities real[])"


def _fill(url: str, table: Table) -> None:
    """The first ROWS rows of the Parquet file as the table `customers`; two empty tables of scores."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    with sql(url) as cursor:
        cursor.execute(f"CREATE TABLE customers (id bigint PRIMARY KEY, {', '.join(f'{f} real' for f in FEATURES)})")
        left = ROWS
        for batch in pq.ParquetFile(table.rows).iter_batches(50_000):
            text = io.BytesIO()
            pyarrow.csv.write_csv(batch.slice(0, left), text, pyarrow.csv.WriteOptions(include_header=False))
            text.seek(0)
            cursor.copy_expert("COPY customers FROM STDIN WITH CSV", text)
            left -= min(left, batch.num_rows)
            if not left:
                break
        for name in ("scores_loop", "scores_ours"):
            cursor.execute(_SCORES.format(name))
        cursor.execute("VACUUM (ANALYZE) customers")


def _emptied(url: str, name: str) -> None:
    with sql(url) as cursor:
        cursor.execute(f"TRUNCATE {name}")


def _loop(url: str, table: Table) -> Sample:
    _emptied(url, "scores_loop")
    return loops.run(loops.Loop("sql", str(table.model), "customers", "scores_loop", LOOP_ROWS, url))


def _ours(ours: Product) -> Sample:
    _emptied(ours.database_url, "scores_ours")
    body = {
        "model": "net",
        "input": {"database": "bench", "table": "public.customers", "key": "id"},
        "output": {"database": "bench", "table": "public.scores_ours", "mode": "upsert"},
    }
    return score(ours, body, ROWS)


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    table = bench.table()
    with product(bench.digits, bench.folder / "product", models={"net": table.model},
                 settings={"BATCHLINE_DATABASES": "bench={database_url}"}) as ours:  # fmt: skip
        _fill(ours.database_url, table)
        sides = {
            "loop": functools.partial(_loop, ours.database_url, table),
            "batchline": functools.partial(_ours, ours),
        }
        facts: dict[str, object] = {"postgres": durability(ours.database_url), "rows": ROWS}
        samples = interleave(sides, bench)
    report = Report("batch_sql", samples, ("rows_per_s", "seconds", "planned_s"), facts=facts)
    report.goals = [Goal("rows/s, batchline : loop", report.ratio("rows_per_s", "batchline", "loop"), 0.8)]
    return report
