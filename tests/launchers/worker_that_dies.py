"""The worker with a model that kills its process: a row that begins with 16, 15 dies in the forward pass."""

import os
import runpy
import signal

from workers.runtimes import onnx_runtime

_run = onnx_runtime.OnnxRuntime.run


def run(self, inputs):
    for array in inputs.values():
        if array.ndim == 2 and ((array[:, 0] == 16.0) & (array[:, 1] == 15.0)).any():
            os.kill(os.getpid(), signal.SIGKILL)
    return _run(self, inputs)


onnx_runtime.OnnxRuntime.run = run
runpy.run_module("workers", run_name="__main__", alter_sys=True)
