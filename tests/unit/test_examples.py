"""The example models are what the demo says of them: they are admitted, they are right, and batches change nothing."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from workers.probe import probe
from workers.text import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMISED = 1e-5


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def session(folder):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return folder, example("digits").build(folder)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    module = example("minilm")
    module.build(folder)
    return session(folder), Tokenizer(folder / "tokenizer.json", module.MAX_LENGTH), module, folder


def test_digits_model_is_admitted_and_reads_unseen_digits(digits):
    """At least 97 of 100 held-out digits are read right."""
    folder, held_out = digits
    signature = probe(folder / "model.onnx")
    assert [(t.name, t.dtype, t.shape) for t in (*signature.inputs, *signature.outputs)] == [
        ("pixels", "FP32", (None, 64)),
        ("label", "INT64", (None,)),
        ("probabilities", "FP32", (None, 10)),
    ]
    labels, _ = session(folder).run(None, {"pixels": held_out.rows})
    assert held_out.rows.shape == (450, 64)
    assert np.mean(labels == held_out.labels) >= 0.97


def test_digits_do_not_depend_on_the_micro_batch(digits):
    """A row gives the same probabilities alone, in sevens and among all."""
    folder, held_out = digits
    net, rows = session(folder), held_out.rows[:140]
    whole = net.run(["probabilities"], {"pixels": rows})[0]
    for size in (1, 7):
        parts = [net.run(["probabilities"], {"pixels": rows[i : i + size]})[0] for i in range(0, len(rows), size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=PROMISED)


def embed(minilm, texts, width=None):
    """Embeddings [N, 384] of N texts, padded on the right to the longest or to a width."""
    net, tokenizer, _, _ = minilm
    columns = tokenizer.encode(texts, [tensor.name for tensor in net.get_inputs()])
    width = width or max(map(len, columns["input_ids"]))
    padded = {n: np.stack([np.pad(r, (0, width - len(r))) for r in rows]) for n, rows in columns.items()}
    return net.run(["sentence_embedding"], padded)[0]


def test_nearest_neighbour_of_each_sentence_is_its_pair(minilm):
    """The vocabulary belongs to the weights: meanings that are near come out near, and each vector has length 1."""
    vectors = embed(minilm, minilm[2].SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert likeness.argmax(axis=1).tolist() == [i ^ 1 for i in range(len(vectors))]


def test_embedding_does_not_depend_on_padding_or_company(minilm):
    """Alone, padded to 64 tokens, and in one padded batch: the same within the promise."""
    sentences = minilm[2].SENTENCES
    alone = np.concatenate([embed(minilm, [sentence]) for sentence in sentences])
    np.testing.assert_allclose(embed(minilm, sentences), alone, rtol=0, atol=PROMISED)
    np.testing.assert_allclose(embed(minilm, sentences[:3], width=64), alone[:3], rtol=0, atol=PROMISED)


def test_text_model_is_admitted_with_two_free_axes(minilm):
    """Rows and tokens are free; pooling inside the model leaves one vector a row."""
    signature = probe(minilm[3] / "model.onnx")
    assert {t.shape for t in signature.inputs} == {(None, None)}
    assert [(t.name, t.dtype, t.shape) for t in signature.outputs] == [("sentence_embedding", "FP32", (None, 384))]


def test_churn_model_is_admitted_and_foretells_what_it_never_saw(tmp_path):
    """At least 95 of 100 outcomes that were held out; the stand-ins are the same at every call."""
    module = example("churn")
    found = module.build(tmp_path)
    signature = probe(tmp_path / "model.onnx")
    assert [(t.name, t.dtype, t.shape) for t in (*signature.inputs, *signature.outputs)] == [
        ("features", "FP32", (None, 30)),
        ("label", "INT64", (None,)),
        ("probabilities", "FP32", (None, 2)),
    ]
    held_out = ~found.known
    labels, _ = session(tmp_path).run(None, {"features": found.features[held_out].astype(np.float32)})
    assert held_out.sum() == 143
    assert np.mean(labels == found.churned[held_out]) >= 0.95
    assert (module.customers().known == found.known).all()
