"""Batchline as a benchmark runs it: durable Postgres and Valkey of its own, and as many processes as asked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from batchline.local.servers import free_port
from batchline.registry import import_model
from batchline.store import open_store
from batchline.store.catalogue import new_key
from batchline.store.migrations.__main__ import prepare
from batchline.testing import ephemeral_postgres, ephemeral_valkey
from benchmarks.digits import Digits
from benchmarks.processes import Process, answers, running, until


@dataclass(frozen=True)
class Product:
    """A running Batchline.

    Attributes:
        ports: one per API process.
        key: an admin key.
        database_url: its Postgres, to read the durability settings from.
    """

    ports: list[int]
    key: str
    database_url: str
    processes: list[Process]


@contextlib.contextmanager
def product(
    digits: Digits,
    folder: Path,
    *,
    apis: int = 1,
    workers: int = 1,
    models: Mapping[str, Path] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Generator[Product]:
    """Start durable Postgres, Valkey, scheduler, workers and APIs; wait until all APIs are ready.

    Args:
        digits: the model `digits`.
        folder: for models, blobs and logs.
        apis: API processes, each on a port of its own.
        workers: worker processes.
        models: ONNX files of further models by name.
        settings: further environment; `{database_url}` in it becomes the database's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(ephemeral_postgres(durable=True))
        valkey = stack.enter_context(ephemeral_valkey())
        env = {
            "DATABASE_URL": postgres.url, "REDIS_URL": valkey.url, "BATCHLINE_MODELS": str(folder / "models"),
            "BATCHLINE_LOG_LEVEL": "WARNING", "OMP_NUM_THREADS": "1", "BATCHLINE_BLOBS": f"file://{folder / 'blobs'}",
        }  # fmt: skip
        env |= {name: text.replace("{database_url}", postgres.url) for name, text in (settings or {}).items()}
        key = new_key()
        prepare(postgres.url, key)
        store = open_store(postgres.url, connections=1)
        for name, model in {"digits": digits.model, **(models or {})}.items():
            import_model(folder / "models", name, model, store.catalogue.register_model)
        store.close()
        ports = [free_port() for _ in range(apis)]
        started: list[Process] = []
        for name, module, port in [
            ("scheduler", "scheduler", 0),
            *[(f"worker{n}", "workers", 0) for n in range(workers)],
            *[(f"api{n}", "api", port) for n, port in enumerate(ports)],
        ]:
            own = {"BATCHLINE_PORT": str(port)} if port else {}
            command = [sys.executable, "-m", module]
            started.append(stack.enter_context(running(name, command, folder, env={**env, **own})))
        for port, server in zip(ports, started[-apis:], strict=True):
            until(lambda port=port: answers(f"http://127.0.0.1:{port}/readyz"), server)
        servers = [Process("postgres", postgres.pid or 0), Process("valkey", valkey.pid or 0)]
        yield Product(ports, key, postgres.url, [*started, *servers])
