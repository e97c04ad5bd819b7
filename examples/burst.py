"""A burst out of idleness: 20,000 jobs at once, the autoscaler adds workers, the queue drains, the workers go again.

Run by `make burst`, which also draws the picture in docs/autoscaler.md: `python examples/burst.py [PICTURE]`. All else
lives in a temporary folder and on free ports, and is gone at the end. Exit 0 only if workers were added within two
looks of the autoscaler, every job ended exactly once and well, and the workers are at their minimum again.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import digits
import numpy as np
import psycopg2
from numpy.typing import NDArray
from world import add_model, console, run_alone, tell

from batchline.errors import BatchlineError
from batchline.job import parse_id
from batchline.local import stack
from batchline.local.plan import Addresses
from batchline.store import Store, open_store

JOBS = 20_000
ROW_MS = 5.0
"""Of one core: one worker would need JOBS times this."""
WARM_UP = 256
IDLE_S = 15.0
CLIENTS = 32
LOOK_S = 5.0
"""Between two looks of the autoscaler."""
SAMPLE_S = 0.5
PATIENCE_S = 400.0
WIDTH = 192
"""Of the square matrix that the model multiplies with again and again."""

COUNT_ENDS = """
CREATE TABLE ends (job_id uuid, status text);
CREATE FUNCTION note_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.status IN ('succeeded', 'failed', 'cancelled', 'expired') THEN
    INSERT INTO ends VALUES (NEW.id, NEW.status);
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER note_end AFTER UPDATE OF status ON jobs FOR EACH ROW EXECUTE FUNCTION note_end();
"""


@dataclass
class Seen:
    """What was seen each SAMPLE_S, by time.monotonic(); `workers` are live, `wanted` are these and those that start."""

    at: list[float] = field(default_factory=list[float])
    queued: list[int] = field(default_factory=list[int])
    workers: list[int] = field(default_factory=list[int])
    wanted: list[int] = field(default_factory=list[int])


class Watch:
    """Looks at the system from a thread of its own."""

    def __init__(self, addresses: Addresses) -> None:
        self.seen = Seen()
        self._store: Store = open_store(addresses.database_url, connections=1)
        self._connection = psycopg2.connect(addresses.database_url)
        self._connection.autocommit = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()
        self._store.close()

    def until(self, met: Any, what: str) -> float:
        """Wait until `met` says yes to what was seen since this call; returns when it was seen."""
        begun = time.monotonic()
        while not (self.seen.at and self.seen.at[-1] > begun + 2 * SAMPLE_S and met(self.seen)):
            if not self._thread.is_alive():
                raise BatchlineError(f"waiting for: {what}; the system has ended.")
            if time.monotonic() > begun + PATIENCE_S:
                raise BatchlineError(f"waiting for: {what}; not within {PATIENCE_S:g} s.")
            time.sleep(SAMPLE_S / 2)
        return self.seen.at[-1]

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')")
                (queued,) = cast("tuple[int]", cursor.fetchone())
            live = {w.id: w for w in self._store.workers.list() if w.live and not w.draining}
            here = {w.instance for w in live.values()}
            coming = [i for i in self._store.instances.list() if i.status == "starting" and i.id not in here]
            self.seen.queued.append(queued)
            self.seen.workers.append(len(live))
            self.seen.wanted.append(len(live) + len(coming))
            self.seen.at.append(time.monotonic())
            self._stop.wait(SAMPLE_S)


def weigh(path: Path, rows: NDArray[np.float32], row_ms: float) -> None:
    """Give the digits model a weight: beside its net a wheel that turns until one of `rows` costs `row_ms` of a core.

    It still takes "pixels" FP32 [N, 64] and gives "label" INT64 [N], and "wheel" FP32 [N] with it.
    """
    import onnx

    net, turns = onnx.load(path), 4
    for _ in range(3):
        path.write_bytes(_with_wheel(net, turns))
        turns = max(1, round(turns * row_ms / _row_ms(path, rows)))
    path.write_bytes(_with_wheel(net, turns))


def _with_wheel(net: Any, turns: int) -> bytes:
    """The net and a loop of `turns` products; no chain of them, because each would keep a packed matrix of its own."""
    from onnx import TensorProto, helper, numpy_helper

    model = type(net)()
    model.CopyFrom(net)
    graph, rng = model.graph, np.random.default_rng(7)
    matrix = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
    spread = rng.standard_normal((64, WIDTH)).astype(np.float32) / 64
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["wheel_in", "wheel_matrix"], ["wheel_out"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("wheel_in", TensorProto.FLOAT, [None, WIDTH]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("wheel_out", TensorProto.FLOAT, [None, WIDTH]),
        ],
    )
    graph.initializer.extend([
        numpy_helper.from_array(matrix, "wheel_matrix"),
        numpy_helper.from_array(spread, "wheel_spread"),
        numpy_helper.from_array(np.array(turns, np.int64), "wheel_turns"),
        numpy_helper.from_array(np.array(True), "wheel_go"),
    ])  # fmt: skip
    graph.node.extend([
        helper.make_node("MatMul", ["pixels", "wheel_spread"], ["wheel_begin"]),
        helper.make_node("Loop", ["wheel_turns", "wheel_go", "wheel_begin"], ["wheel_end"], body=body),
        helper.make_node("ReduceMean", ["wheel_end"], ["wheel"], axes=[1], keepdims=0),
    ])  # fmt: skip
    kept = [output for output in graph.output if output.name == "label"]
    del graph.output[:]
    graph.output.extend([*kept, helper.make_tensor_value_info("wheel", TensorProto.FLOAT, [None])])
    return cast("bytes", model.SerializeToString())


def _row_ms(path: Path, rows: NDArray[np.float32]) -> float:
    """CPU time of a row, of one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {"pixels": rows})
    began = time.thread_time()
    session.run(None, {"pixels": rows})
    return (time.thread_time() - began) * 1000 / len(rows)


def submit(addresses: Addresses, rows: Sequence[list[float]]) -> list[str]:
    """One job for each row, from CLIENTS connections; the ids in the order of the rows.

    By plain HTTP: the SDK retries and checks more than a burst on two cores, which the workers need, has time for.
    """
    url = urlsplit(addresses.api_urls[0])
    key = addresses.key_path.read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    bodies = [json.dumps({"model": "burst", "inputs": [row]}) for row in rows]

    def some(first: int) -> list[str]:
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        found: list[str] = []
        for body in bodies[first::CLIENTS]:
            connection.request("POST", "/v1/jobs", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 202:
                raise BatchlineError(f"a job was answered with {answer.status}: {text.decode()}")
            found.append(json.loads(text)["id"])
        connection.close()
        return found

    ids = [""] * len(rows)
    with ThreadPoolExecutor(CLIENTS) as pool:
        for first, found in enumerate(pool.map(some, range(CLIENTS))):
            ids[first::CLIENTS] = found
    return ids


def ended_once(addresses: Addresses, ids: Sequence[str]) -> tuple[int, int]:
    """How many of the ids ended exactly once and well, and how many ends there are that should not be."""
    with psycopg2.connect(addresses.database_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT job_id, count(*), min(status) FROM ends GROUP BY job_id")
        ends = {str(job): (count, status) for job, count, status in cursor.fetchall()}
    connection.close()
    wanted = {str(parse_id(job)) for job in ids}
    good = sum(ends.get(job) == (1, "succeeded") for job in wanted)
    return good, sum(count for count, _ in ends.values()) - good


def draw(seen: Seen, start: float, path: Path) -> None:
    """Queue and workers over the seconds since the burst began."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    queue, workers = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    at = np.array(seen.at) - start
    queue.fill_between(at, seen.queued, alpha=0.4)
    queue.set_title(f"{JOBS:,} jobs out of idleness, workers as processes of one machine")
    queue.set_ylabel("jobs queued and running")
    workers.step(at, seen.wanted, where="post", linestyle="--", color="tab:orange", label="with those that start")
    workers.step(at, seen.workers, where="post", color="tab:orange", label="live workers")
    workers.set_ylabel("workers")
    workers.set_ylim(0, max(seen.wanted) + 0.5)
    workers.set_yticks(range(max(seen.wanted) + 1))
    workers.set_xlabel("seconds since the burst began")
    workers.legend(loc="lower right", fontsize="small")
    for panel in (queue, workers):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def burst(addresses: Addresses, rows: Sequence[list[float]], watch: Watch) -> tuple[float, list[str], bool]:
    """Submit, and wait until all is as before; (when it began, ids, whether workers were added in time)."""
    start = time.monotonic()
    ids = submit(addresses, rows)
    tell("burst", f"{len(ids):,} jobs submitted in {time.monotonic() - start:.0f} s")
    added = watch.until(lambda seen: max(seen.wanted) > 1, "a worker is added")
    added = next(at for at, wanted in zip(watch.seen.at, watch.seen.wanted, strict=False) if wanted > 1) - start
    watch.until(lambda seen: max(seen.workers) > 1, "the added worker serves")
    serving = next(at for at, workers in zip(watch.seen.at, watch.seen.workers, strict=False) if workers > 1) - start
    tell("up", f"the autoscaler asked for workers {added:.1f} s after the first job, they served after {serving:.1f} s")
    drained = watch.until(lambda seen: seen.queued[-1] == 0, "the queue is empty") - start
    tell("drained", f"the last job ended after {drained:.0f} s, with {max(watch.seen.workers)} workers at most")
    back = watch.until(lambda seen: seen.wanted[-1] == 1, "the added workers go") - start
    tell("down", f"at one worker again after {back:.0f} s, {back - drained:.0f} s after the last job")
    return start, ids, added <= 2 * LOOK_S + SAMPLE_S


def run(folder: Path, picture: Path) -> bool:
    """The whole example with all its files in a folder, but for the picture."""
    with console.status("weighing the model, starting servers …"):
        held_out = digits.build(folder / "built")
        weigh(folder / "built" / "model.onnx", held_out.rows[:64], ROW_MS)
        addresses = stack.up(folder, detach=True, flower=False)
        options = {"policy": {"max_batch_size": 32}}
        spec = add_model(folder, addresses, "burst", folder / "built", options)
    tell("model", f"{spec.ref}, made to cost {ROW_MS:g} ms of one core for a row")
    rows = [held_out.rows[i % len(held_out.rows)].tolist() for i in range(JOBS)]
    watch = Watch(addresses)
    watch.start()
    try:
        with console.status("measuring a worker …"):
            submit(addresses, rows[:WARM_UP])
            watch.until(lambda seen: seen.queued[-1] == 0 and seen.wanted[-1] == 1, "the first rows are done")
            with psycopg2.connect(addresses.database_url) as connection, connection.cursor() as cursor:
                cursor.execute(COUNT_ENDS)
            connection.close()
            idle_until = time.monotonic() + IDLE_S
            watch.until(lambda seen: seen.at[-1] > idle_until, "idle")
        start, ids, in_time = burst(addresses, rows, watch)
        time.sleep(IDLE_S / 3)  # for the picture
    finally:
        watch.stop()
    good, odd = ended_once(addresses, ids)
    tell("jobs", f"{good:,} of {len(set(ids)):,} ended exactly once, and well; {len(ids) - good} lost, {odd} odd ends")
    if not in_time:
        tell("late", f"the autoscaler looks every {LOOK_S:g} s and should have asked for workers at its second look")
    draw(watch.seen, start, picture)
    tell("picture", str(picture))
    return in_time and good == len(ids) == JOBS and odd == 0


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "burst.png").resolve()
    sys.exit(run_alone("burst", lambda folder: run(folder, target)))
