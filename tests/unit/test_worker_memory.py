"""A worker allocates from one heap, chosen before its libraries and threads are there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SHOW = """
import workers
import ctypes, threading
import pyarrow as pa
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=lambda: [libc.malloc(50_000) for _ in range(50)]) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(pa.default_memory_pool().backend_name, flush=True)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's means")
def test_threads_and_arrow_share_one_heap() -> None:
    """Heaps of threads that have ended are not given back: a worker would grow with the number of its slices."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MALLOC_ARENA_MAX", "ARROW_DEFAULT_MEMORY_POOL")}
    shown = subprocess.run(
        [sys.executable, "-c", _SHOW], env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert shown.startswith("system\n")
    assert shown.count("<heap nr=") == 1
