"""The whole system on this machine: two real models, mixed jobs, every result checked against ONNX Runtime itself.

Run by `make demo`. Everything lives in a temporary folder and on free ports, and is gone at the end. Exit 0 only if
every result came back and is right.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digits
import minilm
import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from world import add_model, console, run_alone, tell

from batchline import AsyncClient
from batchline.client import Job
from batchline.local import stack
from batchline.local.plan import Addresses

SINGLES = 500
"""Digits jobs of one row."""
MANY = (450, 256, 128, 64, 32, 16)
"""Rows of the larger digits jobs; the first holds all held-out digits."""
CLIENTS = 32
PATIENCE_S = 60.0
TOLERANCE = 1e-5
POLICIES: dict[str, dict[str, object]] = {
    "digits": {"policy": {"max_batch_size": 256}},
    # Its int8 weights are widened before they are used, so a row's result does not depend on its neighbours: padded
    # rows may run together. (A model that quantises activations would need equal shapes or max_batch_size 1.)
    "minilm": {
        "policy": {"max_batch_size": 16, "padding": {"mode": "pad"}},
        "text": {"tokenizer": "tokenizer.json", "max_length": minilm.MAX_LENGTH},
    },
}


@dataclass(frozen=True)
class Case:
    """One job to submit, and where its rows stand among the model's: `rows` are sent, `places` index the truth."""

    model: str
    rows: list[Any]
    places: list[int]


@dataclass
class Outcome:
    """What came back of one case; `latency_s` from submit to result read."""

    case: Case
    job: Job
    latency_s: float


@dataclass
class Truth:
    """What ONNX Runtime says when called directly, one row at a time: `{output: [N, ...]}` of each model."""

    outputs: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)


def build_models(folder: Path) -> tuple[digits.Digits, Truth]:
    """Write both models into `folder`/NAME and run them over all rows."""
    held_out = digits.build(folder / "digits")
    minilm.build(folder / "minilm")
    return held_out, Truth(
        {
            "digits": _run_each(folder / "digits", [{"pixels": row[None]} for row in held_out.rows]),
            "minilm": _run_each(folder / "minilm", _tokens(folder / "minilm")),
        }
    )


def _run_each(folder: Path, feeds: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = [session.run(None, feed) for feed in feeds]
    return {name: np.concatenate([result[i] for result in results]) for i, name in enumerate(names)}


def _tokens(folder: Path) -> list[dict[str, NDArray[Any]]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(minilm.MAX_LENGTH)
    encoded = [tokenizer.encode(sentence) for sentence in minilm.SENTENCES]
    names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return [{name: np.array([getattr(e, part)], np.int64) for name, part in names.items()} for e in encoded]


def make_cases(held_out: digits.Digits) -> list[Case]:
    """Single-row and many-row jobs of both models, shuffled; the same on every run."""
    rng = random.Random(7)
    count = len(held_out.rows)
    places = [[i % count] for i in range(SINGLES)] + [sorted(rng.sample(range(count), min(n, count))) for n in MANY]
    cases = [Case("digits", held_out.rows[p].tolist(), p) for p in places]
    every = list(range(len(minilm.SENTENCES)))
    cases += [Case("minilm", [minilm.SENTENCES[i] for i in p], p) for p in [[i] for i in every] + [every]]
    rng.shuffle(cases)
    return cases


async def run_cases(
    client: AsyncClient, cases: Sequence[Case], clients: int, on_done: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Submit and wait, `clients` jobs at a time."""
    turns = asyncio.Semaphore(clients)

    async def run(case: Case) -> Outcome:
        async with turns:
            started = time.perf_counter()
            job = await client.wait(await client.submit(case.model, case.rows), PATIENCE_S)
            on_done()
            return Outcome(case, job, time.perf_counter() - started)

    return await asyncio.gather(*map(run, cases))


def compare(outcome: Outcome, truth: Truth) -> tuple[float, str | None]:
    """The largest difference from the truth, and what is wrong with the outcome, if anything is."""
    job, case = outcome.job, outcome.case
    if job.status != "succeeded" or job.outputs is None or len(job.outputs) != len(case.rows):
        return 0.0, f"{job.id} ({case.model}, {len(case.rows)} rows) is {job.status}: {job.errors}"
    largest = 0.0
    for output, place in zip(job.outputs, case.places, strict=True):
        if output is None:
            return largest, f"{job.id}: a row has no output: {job.errors}"
        for name, expected in truth.outputs[case.model].items():
            got = np.asarray(output[name])
            if got.shape != expected[place].shape:
                return largest, f"{job.id}: {name} has shape {got.shape}, not {expected[place].shape}"
            largest = max(largest, float(np.abs(got - expected[place]).max()))
    return largest, None if largest <= TOLERANCE else f"{job.id}: differs by {largest:g}"


def tell_results(outcomes: Sequence[Outcome], held_out: digits.Digits) -> None:
    """Accuracy on digits that the net never saw, and which sentences the text model finds alike."""
    whole = next(o.job for o in outcomes if o.case.model == "digits" and len(o.case.rows) == len(held_out.rows))
    labels = np.array([(row or {})["label"] for row in whole.outputs or ()])
    right = int((labels == held_out.labels).sum())
    tell("digits", f"{right} of {len(labels)} held-out digits read right: accuracy {right / len(labels):.1%}")
    texts = next(o.job for o in outcomes if o.case.model == "minilm" and len(o.case.rows) > 1)
    vectors = np.array([(row or {})["sentence_embedding"] for row in texts.outputs or ()])
    alike = vectors @ vectors.T - 2 * np.eye(len(vectors))
    for i in range(0, len(vectors), 2):
        j = int(alike[i].argmax())
        tell("minilm" if i == 0 else "", f"{alike[i, j]:.2f}  {minilm.SENTENCES[i]}  ~  {minilm.SENTENCES[j]}")


def tell_timings(outcomes: Sequence[Outcome], wall_s: float, alone: Sequence[Outcome]) -> None:
    """Throughput, latency and how many rows shared a forward pass."""
    rows = sum(len(o.case.rows) for o in outcomes)
    singles = [o for o in outcomes if len(o.case.rows) == 1 and o.case.model == "digits"]
    shared = [o.job.timings_ms.micro_batch.rows for o in singles if o.job.timings_ms and o.job.timings_ms.micro_batch]
    p50, p95 = _percentiles(singles)
    rate = f"{len(outcomes) / wall_s:.0f} jobs/s"
    tell("speed", f"{rate}: {len(outcomes)} jobs, {rows:,} rows in {wall_s:.1f} s from {CLIENTS} clients")
    if shared:
        tell("", f"a forward pass ran {statistics.fmean(shared):.1f} rows on average where single-row jobs met")
    tell("latency", f"p50 {p50:.0f} ms, p95 {p95:.0f} ms for single rows under that load, submit to result read")
    p50, p95 = _percentiles(alone)
    tell("", f"p50 {p50:.0f} ms, p95 {p95:.0f} ms for one client alone")


def _percentiles(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """p50 and p95 of the latencies, in milliseconds."""
    cuts = statistics.quantiles([o.latency_s * 1000 for o in outcomes], n=20)
    return cuts[9], cuts[18]


async def score(addresses: Addresses, held_out: digits.Digits, truth: Truth) -> bool:
    """Run all cases, tell what came of them; True when every result is right."""
    key = addresses.key_path.read_text(encoding="utf-8").strip()
    cases = make_cases(held_out)
    single = next(c for c in cases if c.model == "digits" and len(c.rows) == 1)
    text = next(c for c in cases if c.model == "minilm" and len(c.rows) == 1)
    async with AsyncClient(",".join(addresses.api_urls), key) as client:
        loading = await run_cases(client, [single, text], 1)
        tell("first", f"both models loaded and ran within {sum(o.latency_s for o in loading):.1f} s")
        columns = (TextColumn("running"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=len(cases))
            started = time.perf_counter()
            outcomes = await run_cases(client, cases, CLIENTS, lambda: progress.advance(task))
            wall_s = time.perf_counter() - started
        alone = await run_cases(client, [single] * 40, 1)
    tell_results(outcomes, held_out)
    tell_timings(outcomes, wall_s, alone)
    compared = [compare(outcome, truth) for outcome in [*loading, *outcomes, *alone]]
    wrong = [why for _, why in compared if why]
    for why in wrong[:10]:
        tell("wrong", why)
    tell("checked", f"{len(compared) - len(wrong)} of {len(compared)} jobs equal ONNX Runtime called directly")
    tell("", f"largest difference {max(d for d, _ in compared):.1g}, allowed {TOLERANCE:g}")
    return not wrong


def start(folder: Path) -> tuple[Addresses, digits.Digits, Truth]:
    """Start the system and build the models at the same time, then put the models into it."""
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as other, console.status("starting servers, training and packing models …"):
        building = other.submit(build_models, folder / "built")
        addresses = stack.up(folder, detach=True)
        held_out, truth = building.result()
    tell("up", f"PostgreSQL, Valkey, API, worker, scheduler, autoscaler, Flower in {time.perf_counter() - began:.1f} s")
    tell("", f"API {' '.join(addresses.api_urls)}   Flower {addresses.flower_url}")
    for name, options in POLICIES.items():
        spec = add_model(folder, addresses, name, folder / "built" / name, options)
        tell("model", f"{spec.ref}, {spec.size_bytes / 1e6:.2f} MB, up to {spec.policy.max_batch_size} rows a pass")
    return addresses, held_out, truth


def run(folder: Path) -> bool:
    addresses, held_out, truth = start(folder)
    return asyncio.run(score(addresses, held_out, truth))


if __name__ == "__main__":
    sys.exit(run_alone("demo", run))
