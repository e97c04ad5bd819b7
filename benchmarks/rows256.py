"""256-row jobs over HTTP against a bare loop in one process: JSON decode, ONNX Runtime, JSON encode."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import orjson

from benchmarks.digits import Digits
from benchmarks.harness import Bench, Goal, Report, Sample, durability, interleave, turn
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.product import product

SUMMARY = "256-row jobs: rows/s against JSON decode, ONNX Runtime, JSON encode in one process"
ROWS = 256
CLIENTS = 16
STAGES = ("queued", "batch_wait", "predict", "write")


class Loop(msgspec.Struct):
    model: str
    data: str
    measured_s: float


def bare_loop(loop: Loop) -> Sample:
    """Decode, predict and encode jobs of 256 rows, one after the other; one thread, as the worker has."""
    import onnxruntime

    rows = orjson.loads(Path(loop.data).read_bytes())["rows"]
    bodies = [orjson.dumps({"inputs": rows[n * ROWS : (n + 1) * ROWS]}) for n in range(len(rows) // ROWS)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(loop.model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    done, start = 0, time.perf_counter()
    while (spent_s := time.perf_counter() - start) < loop.measured_s:
        x = np.asarray(orjson.loads(bodies[done % len(bodies)])["inputs"], np.float32)
        label, probabilities = session.run(None, {name: x})
        pairs = zip(label.tolist(), probabilities.tolist(), strict=True)
        orjson.dumps({"outputs": [{"label": n, "probabilities": p} for n, p in pairs]})
        done += 1
    return {"jobs_per_s": done / spent_s, "rows_per_s": done * ROWS / spent_s, "p50_ms": spent_s / done * 1e3}


def _in_process(digits: Digits, measured_s: float) -> Sample:
    loop = msgspec.json.encode(Loop(str(digits.model), str(digits.rows), measured_s))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rows256"], input=loop, capture_output=True, cwd=ROOT,
        timeout=measured_s + 60, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"the bare loop failed: {done.stderr.decode()[-1500:]}")
    return orjson.loads(done.stdout)


def breakdown(report: Report) -> list[str]:
    """Where the time of a job goes: its stages (clock), and the CPU it costs each process against the bare loop's."""
    stages = {name: report.median("batchline", f"{name}_ms") for name in STAGES}
    whole = report.median("batchline", "p50_ms")
    rest = whole - sum(stages.values())
    clock = ", ".join(f"{name} {ms:.1f}" for name, ms in stages.items())
    end = "_cpu_ms_per_job"
    costs = {
        k.removesuffix(end): report.median("batchline", k) for k in report.samples["batchline"][0] if k.endswith(end)
    }
    cpu = ", ".join(f"{name} {ms:.1f}" for name, ms in sorted(costs.items(), key=lambda item: -item[1]))
    bare = report.median("bare loop", "p50_ms")
    return [
        f"a job at p50, ms: {whole:.1f} = {clock}, rest (HTTP, JSON, commits, wake-up) {rest:.1f}",
        f"CPU of a job, ms: {sum(costs.values()):.1f} = {cpu}; the bare loop {bare:.1f}",
    ]


def run(bench: Bench) -> Report:
    with contextlib.ExitStack() as stack:
        sides = {"bare loop": lambda: _in_process(bench.digits, bench.measured_s)}
        facts: dict[str, object] = {}
        if not bench.peer_only:
            ours = stack.enter_context(product(bench.digits, bench.folder / "product"))
            load = bench.load("product", ours.ports, key=ours.key, rows=ROWS, clients=CLIENTS)
            sides["batchline"] = lambda: turn(load, ours.processes)
            facts["postgres"] = durability(ours.database_url)
        samples = interleave(sides, bench)
    report = Report("rows256", samples, ("rows_per_s", "jobs_per_s", "p50_ms", "p99_ms"), facts=facts)
    if not bench.peer_only:
        ratio = report.ratio("rows_per_s", "batchline", "bare loop")
        report.notes += breakdown(report)
        report.goals.append(Goal("rows/s, batchline : bare loop", ratio, 0.10))
    return report


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(bare_loop(msgspec.json.decode(sys.stdin.buffer.read(), type=Loop))))
