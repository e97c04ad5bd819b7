"""A world of its own for each example: a temporary folder, free ports, none of the caller's settings."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from batchline.errors import BatchlineError
from batchline.local import stack
from batchline.local.plan import Addresses
from batchline.model import ModelSpec
from batchline.registry import import_model
from batchline.store import open_store

console = Console(highlight=False, soft_wrap=True)


def tell(what: str, line: str) -> None:
    """One line of the report."""
    console.print(f"{what:<9} {line}", markup=False)


def run_alone(name: str, run: Callable[[Path], bool]) -> int:
    """Run an example in a folder of its own, stop what it started there, clean up.

    Args:
        name: of the example, for its folder.
        run: may start the system in the folder it is given; models go to the folder's `models`. True when all is well.

    Returns:
        The exit code: 0; 1 when all is not well, and the folder stays; 130 when somebody interrupted it.
    """
    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix=f"batchline-{name}-"))
    for variable in [n for n in os.environ if n.startswith("BATCHLINE_")] + ["DATABASE_URL", "REDIS_URL"]:
        os.environ.pop(variable, None)
    os.environ |= {"BATCHLINE_PORT": "0", "BATCHLINE_FLOWER_PORT": "0", "BATCHLINE_MODELS": str(folder / "models")}
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reports to its maker otherwise, and leaves a file behind
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    code = 1
    try:
        code = 0 if run(folder) else 1
    except KeyboardInterrupt:
        code = 130
    except BatchlineError as e:
        tell("failed", e.detail)
    finally:
        with console.status("stopping …"):
            stack.down(folder)
    if code == 1:
        tell("failed", f"stopped; the logs are in {folder / 'logs'}")
        return code
    shutil.rmtree(folder, ignore_errors=True)
    tell("done", f"stopped and cleaned up, {time.perf_counter() - began:.0f} s in all")
    return code


def add_model(folder: Path, addresses: Addresses, name: str, source: Path, options: dict[str, Any] | None) -> ModelSpec:
    """Put a model into the running system of the folder."""
    store = open_store(addresses.database_url, connections=1)
    try:
        return import_model(folder / "models", name, source, store.catalogue.register_model, options)
    finally:
        store.close()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
