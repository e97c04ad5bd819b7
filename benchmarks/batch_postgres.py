"""Parquet scored into the default sink, results in Postgres, against a bare COPY of the same results into a table."""

from __future__ import annotations

import functools

from benchmarks import loops
from benchmarks.harness import Bench, Goal, Report, Sample, durability, interleave
from benchmarks.product import Product, product
from benchmarks.rig import sql
from benchmarks.scoring import score
from benchmarks.table import Table

SUMMARY = "2 M rows, Parquet -> net -> results in Postgres: rows/s against a bare COPY of the results"
COPY_ROWS = 16384
_TABLE = "CREATE TABLE IF NOT EXISTS copied (id bigint, label bigint, probabilities real[]); TRUNCATE copied"


def _copy(url: str, scored: str) -> Sample:
    with sql(url) as cursor:
        cursor.execute(_TABLE)
    return loops.run(loops.Loop("copy", "", scored, "copied", COPY_ROWS, url))


def _ours(ours: Product, table: Table) -> Sample:
    body = {"model": "net", "input": {"uri": f"file://{table.rows}", "format": "parquet", "key": "id"}}
    sample = score(ours, body, table.count)
    with sql(ours.database_url) as cursor:
        cursor.execute("SELECT pg_total_relation_size('batch_lines')")
        sample["results_mib"] = cursor.fetchone()[0] / 2**20
        cursor.execute("TRUNCATE batch_lines")
    return sample


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    table, scored = bench.table(), str(bench.folder / "scored.parquet")
    loops.run(loops.Loop("parquet", str(table.model), str(table.rows), scored, COPY_ROWS))
    with product(bench.digits, bench.folder / "product", models={"net": table.model},
                 settings={"BATCHLINE_DATA_ROOTS": str(bench.folder)}) as ours:  # fmt: skip
        sides = {
            "COPY": functools.partial(_copy, ours.database_url, scored),
            "batchline": functools.partial(_ours, ours, table),
        }
        facts: dict[str, object] = {"postgres": durability(ours.database_url), "rows": table.count}
        samples = interleave(sides, bench)
    report = Report("batch_postgres", samples, ("rows_per_s", "seconds", "results_mib"), facts=facts)
    ratio = report.ratio("rows_per_s", "batchline", "COPY")
    report.goals = [Goal("rows/s, batchline : COPY of the results", ratio, 0.4)]
    return report
