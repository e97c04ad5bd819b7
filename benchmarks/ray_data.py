"""The peer of batches: Ray Data in an environment of its own, up for as long as it is measured."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import orjson

from benchmarks.harness import Sample
from benchmarks.peer import environment
from benchmarks.processes import BenchmarkError
from benchmarks.table import Table

SOURCE = Path(__file__).resolve().parent / "peers" / "ray_data"


@contextlib.contextmanager
def ray_data(table: Table, folder: Path) -> Generator[Callable[[int], Sample]]:
    """Ray, started; what is yielded scores the table with a batch size of so many rows."""
    python = environment(SOURCE) / "python"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            [str(python), str(SOURCE / "score.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "RAY_USAGE_STATS_ENABLED": "0"},
        )  # fmt: skip
    task = {"model": str(table.model), "source": str(table.rows), "target": str(folder / "out"), "rows": table.count}

    def score(batch_rows: int) -> Sample:
        if process.stdin is None or process.stdout is None:
            raise BenchmarkError("Ray Data has no pipes")
        process.stdin.write(orjson.dumps(task | {"batch_rows": batch_rows}) + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise BenchmarkError(f"Ray Data failed:\n{(folder / 'ray.log').read_text(errors='replace')[-1500:]}")
        return orjson.loads(line)

    try:
        yield score
    finally:
        process.communicate(timeout=60)
