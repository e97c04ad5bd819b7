"""ONNX Runtime on the CPU or on a CUDA device.

The CUDA way has never run on a GPU: only its refusal to fall back to the CPU is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from batchline.errors import ModelError, OutOfMemoryError
from batchline.model import ModelSpec
from batchline.rows import Array
from workers.runtimes.contract import OpenRuntime

_NO_ROOM = ("failed to allocate memory", "out of memory", "bad_alloc", "cuda_error_out_of_memory", "bfcarena")


def provider(device: str) -> tuple[str, dict[str, str]]:
    """The execution provider of a device (`cpu`, `cuda`, `cuda:N`) and its options."""
    if device == "cpu":
        return "CPUExecutionProvider", {}
    return "CUDAExecutionProvider", {"device_id": device.partition(":")[2] or "0"}


def opener(device: str, threads: int) -> OpenRuntime:
    """Open models on `device` with so many threads inside an operator."""

    def open_model(spec: ModelSpec, data: bytes) -> OnnxRuntime:
        return OnnxRuntime(spec, data, device=device, threads=threads)

    return open_model


class OnnxRuntime:
    """One session. ONNX Runtime lets go of the interpreter's lock while it runs."""

    def __init__(self, spec: ModelSpec, data: bytes, *, device: str, threads: int) -> None:
        """Open the model.

        Raises:
            ModelError: it cannot be opened, or the device asked for was silently not taken.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        name, wanted = provider(device)
        try:
            self._session: Any = onnxruntime.InferenceSession(data, options, providers=[(name, wanted)])
        except Exception as e:  # the runtime raises a class of its own for each status
            raise ModelError(f"{spec.ref} cannot be opened on {device}: {_first_line(e)}") from e
        if name not in self._session.get_providers():
            raise ModelError(
                f"{spec.ref} was to run on {device} and ONNX Runtime fell back to the CPU: install"
                " batchline[worker-gpu] without the CPU package, check the driver, or set BATCHLINE_DEVICE=cpu."
            )
        self._outputs = [t.name for t in spec.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except MemoryError as e:
            raise OutOfMemoryError("the machine had no room for this micro-batch") from e
        except Exception as e:
            if any(sign in str(e).lower() for sign in _NO_ROOM):
                raise OutOfMemoryError("the device had no room for this micro-batch") from e
            raise
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
