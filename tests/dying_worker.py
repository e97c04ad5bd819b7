"""A worker whose runtime ends the process at a marked row, as a crash in native code would: started by tests only."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from batchline.rows import Array
from workers.__main__ import main
from workers.runtimes import onnx_runtime

DEADLY = 666.0


class DyingRuntime(onnx_runtime.OnnxRuntime):
    """ONNX Runtime until a row holds DEADLY."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if any((value == DEADLY).any() for value in inputs.values()):
            os._exit(139)
        return super().run(inputs)


onnx_runtime.OnnxRuntime = DyingRuntime

if __name__ == "__main__":
    sys.exit(main())
