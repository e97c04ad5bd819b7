"""A running API process inside the test's own: the real application over uvicorn, and workers that only pretend."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import stack
import uvloop

from api.app import Api, build
from api.process import serve
from batchline import rows
from batchline.job import Lane, Status
from batchline.local.server import free_port
from batchline.model import ModelSpec, TensorSpec, TextFront
from batchline.queue.hints import Hints
from batchline.settings import Settings
from batchline.store import Store, open_store

ALICE, BOB, READER, SUBMITTER = "key-alice", "key-bob", "key-reader", "key-submitter"
ROW = [0.5] * 64


class SilentNudger:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.nudged: list[tuple[str, Lane]] = []

    def nudge(self, pool: str, lane: Lane, *, force: bool = False) -> None:
        self.nudged.append((pool, lane))

    def close(self) -> None:
        pass


@dataclass
class Running:
    """One API process, a client with alice's key, and the store behind both."""

    url: str
    store: Store
    http: httpx.Client
    api: Api
    nudger: Any
    database_url: str

    def call(self, method: str, path: str, key: str = ALICE, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} | more.pop("headers", {})
        return self.http.request(method, path, headers=headers, **more)

    def submit(self, inputs: Any = None, key: str = ALICE, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        body = {"model": "digits", "inputs": [ROW] if inputs is None else inputs, **more}
        return self.call("POST", "/v1/jobs", key, json=body, headers=headers)

    def jobs(self) -> int:
        return stack.query(self.database_url, "SELECT count(*) FROM jobs")[0][0]


def specs() -> list[ModelSpec]:
    """Models of every kind: plain, two inputs, all types, text, two versions."""
    kinds = ("BOOL", "UINT8", "INT64", "FP16", "FP32", "FP64", "BYTES")
    typed = tuple(TensorSpec(kind.lower(), kind, (2,)) for kind in kinds)
    plain = stack.a_spec()
    return [
        plain,
        stack.a_spec(version="2"),
        ModelSpec("typed", "1", "e" * 64, 1, typed, typed),
        ModelSpec("free", "1", "f" * 64, 1, (TensorSpec("x", "FP32", (None,)),), (TensorSpec("y", "FP32", (None,)),)),
        ModelSpec("words", "1", "a" * 64, 1, plain.inputs, (TensorSpec("e", "FP32", (2,)),), text=TextFront()),
    ]


def prepared(database_url: str) -> Store:
    """A store with models, and keys for two tenants."""
    store = open_store(database_url)
    for spec in specs():
        store.catalogue.register_model(spec)
    store.catalogue.add_key(ALICE, tenant="alice", name="a", scopes=("admin",))
    store.catalogue.add_key(BOB, tenant="bob", name="b", scopes=("admin",))
    store.catalogue.add_key(READER, tenant="alice", name="r", scopes=("read",))
    store.catalogue.add_key(SUBMITTER, tenant="alice", name="s", scopes=("submit",))
    return store


@contextmanager
def running_api(database_url: str, redis_url: str, nudger: Any = None, **changes: Any) -> Iterator[Running]:
    """Serve on a free port until the end of the block; `changes` are fields of Settings."""
    store = prepared(database_url)
    port = free_port()
    blobs = tempfile.TemporaryDirectory(prefix="batchline-blobs-")
    settings = Settings(
        **{"database_url": database_url, "redis_url": redis_url, "port": port, "blobs": f"file://{blobs.name}"}
        | changes
    )
    nudger = nudger or SilentNudger()
    api = build(settings, store, nudger, Hints(redis_url))
    server = serve(api, "127.0.0.1", port)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve()), daemon=True)
    thread.start()
    deadline = threading.Event()
    for _ in range(1000):
        if server.started or deadline.wait(0.01):
            break
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=30.0) as client:
        yield Running(url, store, client, api, nudger, database_url)
    server.should_exit = True
    thread.join(timeout=20)
    store.close()
    blobs.cleanup()


def echo(block: rows.RowBlock) -> list[dict[str, Any]]:
    """A model that answers every input under its own name, `label` 7 for digits, and `y` and `e` made of what came."""
    out: list[dict[str, Any]] = []
    for i in range(block.count):
        row = {name: _plain(column[i]) for name, column in block.columns.items()}
        row |= {"label": 7, "y": row.get("x"), "e": [float(len(str(row.get("text")))), "NaN"]}
        out.append(row)
    return out


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@contextmanager
def fake_worker(
    running: Running, redis_url: str, model: Callable[[rows.RowBlock], list[dict[str, Any]]] = echo, **ends: Any
) -> Iterator[None]:
    """Claims and finishes through the store as a worker would, without a model; `ends` are fields of FinishedJob."""
    worker_id = stack.a_worker(running.store)
    hints = Hints(redis_url)
    stop = threading.Event()

    def work() -> None:
        ids = [record.id for record in running.store.catalogue.models()]
        while not stop.wait(0.005):
            for model_id in ids:
                jobs = running.store.claims.claim(worker_id, model_id, Lane.ONLINE, rows=64).jobs
                if jobs:
                    outputs = [json.dumps(model(rows.unpack(job.payload))) for job in jobs]
                    done = [stack.done(job, **{"outputs": out} | ends) for job, out in zip(jobs, outputs, strict=True)]
                    running.store.claims.finish(worker_id, done)
                    hints.publish([job.id for job in jobs])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
        hints.close()


FAILED = {
    "status": Status.FAILED,
    "outputs": "[null]",
    "errors": '[{"row": 0, "code": "row_error", "message": "the row is odd"}]',
    "rows_failed": 1,
}
"""How a job of one row ends when the row is to blame."""
