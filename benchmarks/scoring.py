"""Batches as a user runs them: POST /v1/batches, poll until it has ended, and how fast that was."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any

import orjson

from benchmarks.harness import Sample
from benchmarks.processes import BenchmarkError
from benchmarks.product import Product

_POLL_S = 0.02
_LIMIT_S = 900.0
_ENDED = {"completed", "failed", "expired", "cancelled"}


def score(ours: Product, body: dict[str, Any], rows: int, *, processes: bool = True) -> Sample:
    """Run one batch from submit to its end.

    Returns:
        rows/s over the whole of it, submit and polls included; where the time went, in seconds; CPU seconds by process.

    Raises:
        BenchmarkError: it did not complete, or not with all rows.
    """
    before = {p.name: p.cpu_s() for p in ours.processes}
    start = time.perf_counter()
    batch = call(ours, "POST", "/v1/batches", body)
    seen: dict[str, float] = {}
    while batch["status"] not in _ENDED:
        if time.perf_counter() - start > _LIMIT_S:
            raise BenchmarkError(f"a batch took more than {_LIMIT_S:.0f} s: {batch}")
        time.sleep(_POLL_S)
        batch = call(ours, "GET", f"/v1/batches/{batch['id']}")
        seen.setdefault(batch["status"], time.perf_counter() - start)
    spent_s = time.perf_counter() - start
    if batch["status"] != "completed" or batch["rows"]["succeeded"] != rows:
        raise BenchmarkError(f"a batch ended as {batch['status']}: {batch['rows']}, {batch['errors']}")
    sample = {"rows_per_s": rows / spent_s, "seconds": spent_s, "planned_s": seen.get("in_progress", 0.0)}
    if processes:
        sample |= {f"{p.name}_cpu_s": p.cpu_s() - before[p.name] for p in ours.processes}
    return sample


def call(ours: Product, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One request; its JSON.

    Raises:
        BenchmarkError: the answer was none of 2xx.
    """
    request = urllib.request.Request(
        f"http://127.0.0.1:{ours.ports[0]}{path}", orjson.dumps(body) if body is not None else None,
        {"Authorization": f"Bearer {ours.key}", "Content-Type": "application/json"}, method=method,
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return orjson.loads(answer.read())
    except urllib.error.HTTPError as e:
        raise BenchmarkError(f"{method} {path} answered {e.code}: {e.read()[:600]!r}") from e
