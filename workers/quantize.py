"""Makes an int8 copy of a model and compares both: `python -m workers.quantize FOLDER < REQUEST`.

Runs as a process of its own, like the probe, and for the same reasons. FOLDER holds model.onnx and the tokenizer that
the spec names; the copy is written beside them. The request is JSON: the model's spec, rows as of a job or null for
random ones, and the threads of a forward pass. Prints one JSON object; exit 0 with a Report, 1 with {"error": ...}.

Weights become int8; activations are quantized as they come, with one scale for a whole micro-batch. So rows that share
a forward pass have a small say in one another's outputs, which they do not have in the original.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from batchline.errors import BatchlineError, ModelError
from batchline.model import MODEL_FILE, ModelSpec
from workers.probe import bound_this_process

QUANTIZED_FILE = "quantized.onnx"
"""What is written into the folder."""

_MESSAGE_CHARS = 1000
_SHOWN = 3
_WANTED = ("MatMul", "Gemm", "Conv", "Attention", "LSTM")
"""Operators that become integer ones if their second input, the weights, stands in the file."""
_QUANTIZED = frozenset({"MatMulInteger", "ConvInteger", "QAttention", "DynamicQuantizeLSTM"})
"""What they become."""
_INT8 = _QUANTIZED | {
    "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear",
}  # fmt: skip


class Request(msgspec.Struct, frozen=True):
    """What is asked on stdin."""

    spec: ModelSpec
    rows: msgspec.Raw = msgspec.Raw(b"null")
    threads: int = 1


def quantize(folder: Path, name: str) -> int:
    """Write the int8 copy of a folder's model.

    Args:
        folder: holds model.onnx.
        name: what the model is called in a refusal.

    Returns:
        How many operators became integer ones.

    Raises:
        ModelError: the model cannot be read, is quantized already, has nothing to quantize, or a package is missing.
    """
    try:
        import onnx  # noqa: PLC0415  # a missing package is an answer, not a traceback
        from onnxruntime import quantization  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(
            f"the package {error.name} is not installed here, so no model can be quantized: install"
            " batchline[worker-cpu] or batchline[worker-gpu]"
        ) from error
    try:
        model = onnx.load(folder / MODEL_FILE)
    except Exception as error:  # protobuf's own, of many classes
        raise ModelError(f"{name} cannot be read as ONNX: import the model again from its source") from error
    kinds = [node.op_type for node in model.graph.node]
    narrow = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    tables = {f"{t.name} in int8" for t in model.graph.initializer if t.data_type in narrow and len(t.dims) > 1}
    if found := sorted(_INT8.intersection(kinds) or tables):
        raise ModelError(
            f"{name} is quantized already: it has {', '.join(found[:_SHOWN])}{', …' if len(found) > _SHOWN else ''};"
            " name the version that it was made from"
        )
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {output for node in model.graph.node if node.op_type == "Constant" for output in node.output}
    if not any(weights.intersection(node.input[1:2]) for node in model.graph.node if node.op_type in _WANTED):
        has = ", ".join(sorted(set(kinds))[:_SHOWN])
        raise ModelError(
            f"{name} has nothing to quantize: no {', '.join(_WANTED)} with weights of its own among its operators"
            f" ({has}{', …' if len(set(kinds)) > _SHOWN else ''}); it is served best as it is"
        )
    target = folder / QUANTIZED_FILE
    try:
        quantization.quantize_dynamic(model, target, weight_type=quantization.QuantType.QInt8)
        made = [node.op_type for node in onnx.load(target).graph.node]
    except Exception as error:  # of many classes; some are bare assertions
        raise ModelError(f"ONNX Runtime cannot quantize {name}: {type(error).__name__} {error}") from error
    count = sum(kind in _QUANTIZED for kind in made)
    if not count:
        raise ModelError(f"{name} has nothing to quantize: ONNX Runtime left all its operators as they are")
    return count


def main(arguments: Sequence[str]) -> int:
    """Print the report or the reason as JSON; return the exit status."""
    answer: Any
    if len(arguments) != 1:
        answer, status = {"error": "usage: python -m workers.quantize FOLDER < REQUEST"}, 2
    else:
        try:
            bound_this_process()
            answer, status = _run(Path(arguments[0]), sys.stdin.buffer.read()), 0
        except BatchlineError as error:
            answer, status = {"error": _told(error)[:_MESSAGE_CHARS]}, 1
        except MemoryError:
            answer, status = {"error": "quantizing the model wants more memory than it may use"}, 1
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    return status


def _run(folder: Path, body: bytes) -> object:
    request = msgspec.json.decode(body, type=Request)
    operators = quantize(folder, request.spec.ref)
    from workers.comparison import compare  # noqa: PLC0415  # needs what `quantize` has just asked for

    return compare(
        folder, request.spec, bytes(request.rows), QUANTIZED_FILE, operators=operators, threads=request.threads
    )


def _told(error: BatchlineError) -> str:
    faults = [f"{fault.pointer.removeprefix('/inputs') or 'the array'} {fault.detail}" for fault in error.faults]
    return f"{error.detail} {'; '.join(faults[:_SHOWN])}".strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
