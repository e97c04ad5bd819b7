"""Tiny ONNX models for tests: what goes in is easily told from what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def write(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: Any = ()) -> Path:
    """Write a model; inputs and outputs are name -> (element type, shape)."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(n, *v) for n, v in inputs.items()],
        [helper.make_tensor_value_info(n, *v) for n, v in outputs.items()],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def double(path: Path, width: int = 2) -> Path:
    """x FP32 [N, width] -> y = x + x."""
    add = helper.make_node("Add", ["x", "x"], ["y"])
    return write(path, [add], {"x": (FLOAT, ["N", width])}, {"y": (FLOAT, ["N", width])})


def scores(path: Path, width: int = 32, *, embedded: int = 0) -> Path:
    """x FP32 [N, width] -> y FP32 [N, 4] = x times random weights, and label INT64 [N], where y is largest.

    With `embedded` x is INT64 and looked up in a table of so many entries; others make the runtime refuse the pass.
    """
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(width, 4)).astype(np.float32), "w")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
    ]
    takes = {"x": (FLOAT, ["N", width])}
    if embedded:
        weights.append(numpy_helper.from_array(rng.normal(size=embedded).astype(np.float32), "table"))
        nodes = [
            helper.make_node("Gather", ["table", "x"], ["e"]),
            helper.make_node("MatMul", ["e", "w"], ["y"]),
            nodes[1],
        ]
        takes = {"x": (INT64, ["N", width])}
    return write(path, nodes, takes, {"y": (FLOAT, ["N", 4]), "label": (INT64, ["N"])}, weights)


def pick(path: Path) -> Path:
    """i INT64 [N] -> y FP32 [N] = 10 * i; any i outside of 0 to 9 makes the runtime refuse the whole pass."""
    table = helper.make_tensor("table", FLOAT, [10], [10.0 * i for i in range(10)])
    gather = helper.make_node("Gather", ["table", "i"], ["y"], axis=0)
    return write(path, [gather], {"i": (INT64, ["N"])}, {"y": (FLOAT, ["N"])}, [table])


def total(path: Path) -> Path:
    """x FP32 [N, T] -> y FP32 [N] = the sum over T, which is free."""
    axes = helper.make_tensor("axes", INT64, [1], [1])
    add = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    return write(path, [add], {"x": (FLOAT, ["N", "T"])}, {"y": (FLOAT, ["N"])}, [axes])


def logarithm(path: Path) -> Path:
    """x FP32 [N, 2] -> y = log(x): -inf at 0, NaN below."""
    log = helper.make_node("Log", ["x"], ["y"])
    return write(path, [log], {"x": (FLOAT, ["N", 2])}, {"y": (FLOAT, ["N", 2])})


def only_one(path: Path) -> Path:
    """x FP32 [1, 2] -> y = x + x, one row at a time."""
    add = helper.make_node("Add", ["x", "x"], ["y"])
    return write(path, [add], {"x": (FLOAT, [1, 2])}, {"y": (FLOAT, [1, 2])})


def token_sum(folder: Path) -> None:
    """input_ids INT64 [N, T] -> y INT64 [N] = the sum of the ids; the words a, b, c have the ids 1, 2, 3."""
    axes = helper.make_tensor("axes", INT64, [1], [1])
    add = helper.make_node("ReduceSum", ["input_ids", "axes"], ["y"], keepdims=0)
    write(folder / "model.onnx", [add], {"input_ids": (INT64, ["N", "T"])}, {"y": (INT64, ["N"])}, [axes])
    _write_tokenizer(folder)


def token_scores(folder: Path) -> None:
    """input_ids INT64 [N, T] -> y FP32 [N, 4]: random embeddings of the words a, b, c, summed, times random weights."""
    rng = np.random.default_rng(0)
    sizes = {"table": (4, 64), "w": (64, 4)}
    weights = [numpy_helper.from_array(rng.normal(size=size).astype(np.float32), n) for n, size in sizes.items()]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axes"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    axes = helper.make_tensor("axes", INT64, [1], [1])
    inputs, outputs = {"input_ids": (INT64, ["N", "T"])}, {"y": (FLOAT, ["N", 4])}
    write(folder / "model.onnx", nodes, inputs, outputs, [*weights, axes])
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
