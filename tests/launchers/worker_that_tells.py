"""The worker, slow, and telling a file of each pass: which process, when, its first row (-x[0, 0]) and how many."""

import json
import os
import runpy
import time

from workers.runtimes import onnx_runtime

_run = onnx_runtime.OnnxRuntime.run
_out = os.open(os.environ["TELL_TO"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_row_s = float(os.environ["TELL_ROW_S"])


def run(self, inputs):
    x = inputs["x"]
    if x[0, 1]:  # rows of zeros warm the model up
        told = {"pid": os.getpid(), "at": time.time(), "first": -int(x[0, 0]), "rows": len(x)}
        assert (x[:, 0] == -(told["first"] + onnx_runtime.np.arange(len(x)))).all()
        os.write(_out, json.dumps(told).encode() + b"\n")
        time.sleep(_row_s * len(x))
    return _run(self, inputs)


onnx_runtime.OnnxRuntime.run = run
runpy.run_module("workers", run_name="__main__", alter_sys=True)
