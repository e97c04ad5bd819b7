"""Online jobs beside a batch: one client's latency while slices run and eight and more wait, against an idle system."""

from __future__ import annotations

import functools
import statistics
import threading
from typing import Any, Self

from benchmarks.harness import Bench, Goal, Report, Sample, durability, interleave, turn
from benchmarks.product import Product, product
from benchmarks.scoring import call
from benchmarks.table import Table

SUMMARY = "online p95 while a batch runs and at least 8 slices wait, against 2 x idle + the bulk pass's p95"
GAP_S = 0.01
WAITING = 8
_SLICE_ROWS = 50_000
_FILES, _POSTGRES = "into files", "into Postgres"


class Busy:
    """Batches under way for as long as the block lasts; at least WAITING slices are queued all the time.

    Args:
        ours: where.
        table: what is scored.
        output: where to; None is the default sink, Postgres, which the online jobs use too.
    """

    def __init__(self, ours: Product, table: Table, output: dict[str, str] | None) -> None:
        self._ours = ours
        source = {"uri": f"file://{table.rows}", "format": "parquet", "key": "id"}
        self._body: dict[str, Any] = {"model": "net", "input": source} | ({"output": output} if output else {})
        self._ids: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="batches", daemon=True)
        self.fewest = 10**9

    def __enter__(self) -> Self:
        self._submit()
        while call(self._ours, "GET", f"/v1/batches/{self._ids[0]}")["status"] == "validating":
            self._over.wait(0.05)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for batch in self._ids:
            if call(self._ours, "GET", f"/v1/batches/{batch}")["status"] in ("validating", "in_progress"):
                call(self._ours, "POST", f"/v1/batches/{batch}/cancel")

    def _submit(self) -> None:
        self._ids.append(call(self._ours, "POST", "/v1/batches", self._body)["id"])

    def _keep(self) -> None:
        while not self._over.wait(0.25):
            queued = sum(call(self._ours, "GET", f"/v1/batches/{b}")["rows"]["queued"] for b in self._ids[-2:])
            self.fewest = min(self.fewest, queued // _SLICE_ROWS)
            if queued < 3 * WAITING * _SLICE_ROWS:
                self._submit()

    def pass_p95_ms(self) -> float:
        """The median over finished slices of the p95 of their passes."""
        found = [
            job["timings_ms"]["pass_p95"]
            for batch in self._ids
            for slim in call(self._ours, "GET", f"/v1/jobs?batch={batch}&status=succeeded&limit=20")["data"]
            if (job := call(self._ours, "GET", f"/v1/jobs/{slim['id']}"))["timings_ms"]
        ]
        return statistics.median(found) if found else 0.0


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    table = bench.table()
    settings = {"BATCHLINE_DATA_ROOTS": str(bench.folder), "BATCHLINE_SLICE_ROWS": str(_SLICE_ROWS)}
    with product(bench.digits, bench.folder / "product", models={"net": table.model}, settings=settings) as ours:
        load = bench.load("product", ours.ports, key=ours.key, clients=1, gap_s=GAP_S)

        def beside(output: dict[str, str] | None) -> Sample:
            with Busy(ours, table, output) as busy:
                sample = turn(load, ours.processes)
            return sample | {"pass_p95_ms": busy.pass_p95_ms(), "waiting": float(busy.fewest)}

        files = {"uri": f"file://{bench.folder / 'scores'}", "format": "parquet"}
        sides = {
            "idle": lambda: turn(load, ours.processes),
            _FILES: functools.partial(beside, files),
            _POSTGRES: functools.partial(beside, None),
        }
        facts: dict[str, object] = {"postgres": durability(ours.database_url)}
        samples = interleave(sides, bench)
    report = Report("batch_online", samples, ("p50_ms", "p95_ms", "p99_ms", "pass_p95_ms", "waiting"), facts=facts)
    for side in (_FILES, _POSTGRES):
        pairs = zip(samples[side], samples["idle"], strict=True)
        over = statistics.median(b["p95_ms"] / (2 * i["p95_ms"] + b["pass_p95_ms"]) for b, i in pairs)
        report.goals += [
            Goal(f"p95 beside a batch {side} : 2 x idle p95 + pass p95", over, 1.0, at_least=False),
            Goal(f"slices waiting, at least, {side}", report.median(side, "waiting"), WAITING, unit="slices"),
        ]
    return report
