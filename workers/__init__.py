"""The worker process: claim, collate, predict, write."""

import contextlib
import ctypes
import os

# ONNX Runtime's Linux wheels report to their maker over the network, from the import on, unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# One heap for all threads, and Arrow's memory in it too: glibc and Arrow's own allocator keep a heap for each thread,
# with what was its largest, and every slice has threads of its own, so that a worker would grow by half with the number
# of slices (`python -m benchmarks batch_rss`). Both are chosen before the libraries and their threads are there.
_M_ARENA_MAX = -8  # glibc's malloc.h
if "MALLOC_ARENA_MAX" not in os.environ:
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
