"""`python -m workers.quantize`: an int8 copy of a model, how far it agrees with the model, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import pytest
import small_models
from onnx import helper, numpy_helper

from batchline import registry
from batchline.errors import ModelError
from workers.comparison import agreement
from workers.probe import probe
from workers.quantize import quantize


def asked(folder, rows=None, *, before=""):
    """What the process answers, and how it ends; `before` is run in it first."""
    spec = registry.read_spec(folder, "small", "1", probe(folder / "model.onnx"))
    request = msgspec.json.encode({"spec": spec, "rows": rows, "threads": 1})
    code = f"{before}; import sys; from workers import quantize; sys.exit(quantize.main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code.lstrip("; "), str(folder)]
    done = subprocess.run(command, input=request, capture_output=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout)


def test_a_copy_is_made_and_compared_on_rows(tmp_path):
    """Integer operators, a fourth of the weights' bytes; labels, argmax and differences over the rows given."""
    source = small_models.scores(tmp_path / "model.onnx", 256)
    (tmp_path / "model.toml").write_text("[policy]\nmax_batch_size = 8\n")
    rows = np.random.default_rng(1).normal(size=(100, 256)).round(3)
    status, told = asked(tmp_path, rows.tolist())
    assert (status, told["rows"], told["random"], told["pass_rows"], told["operators"]) == (0, 100, False, 8, 1)
    made = onnx.load(tmp_path / "quantized.onnx")
    assert "MatMulInteger" in {node.op_type for node in made.graph.node}
    assert told["before"]["bytes"] == source.stat().st_size > 2 * told["after"]["bytes"]
    assert min(told["before"]["pass_ms"], told["after"]["pass_ms"]) > 0
    scores, label = told["outputs"]
    assert (scores["output"], label["output"]) == ("y", "label")
    assert scores["same"] == label["same"] > 0.9
    assert 0 < scores["mean_difference"] < scores["largest_difference"] < 2
    assert label["largest_difference"] is None


def test_random_rows_lie_within_the_declared_tensors(tmp_path):
    """Also those of a model that takes few whole numbers only; the same rows each time."""
    small_models.scores(tmp_path / "model.onnx", embedded=3)
    told = [asked(tmp_path) for _ in range(2)]
    assert [(status, answer["random"], answer["rows"]) for status, answer in told] == [(0, True, 256)] * 2
    assert told[0][1]["outputs"] == told[1][1]["outputs"]


def test_rows_that_do_not_fit_are_named(tmp_path):
    """As at a submit; so is what the model itself refuses."""
    small_models.scores(tmp_path / "model.onnx", 2, embedded=3)
    status, told = asked(tmp_path, [[0, 1], [0, "a"]])
    assert (status, "/1/1 must be a whole number" in told["error"]) == (1, True)
    status, told = asked(tmp_path, [[0, 99]])
    assert (status, "small@1 refuses the rows" in told["error"]) == (1, True)


def test_a_missing_package_is_named(tmp_path):
    """With what to install."""
    small_models.scores(tmp_path / "model.onnx")
    status, told = asked(tmp_path, before="import sys; sys.modules['onnx'] = None")
    assert status == 1
    assert "the package onnx is not installed here" in told["error"]
    assert "batchline[worker-cpu]" in told["error"]


def test_what_is_quantized_already_is_refused(tmp_path):
    """By integer operators, and by weights kept in int8 that are multiplied out as floats."""
    small_models.scores(tmp_path / "model.onnx")
    assert quantize(tmp_path, "small@1") == 1
    (tmp_path / "quantized.onnx").replace(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="quantized already: it has DynamicQuantizeLinear, MatMulInteger; name the"):
        quantize(tmp_path, "small@1")
    nodes = [
        helper.make_node("Cast", ["w8"], ["w"], to=small_models.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    kept = numpy_helper.from_array(np.ones((2, 2), np.int8), "w8")
    axes = (small_models.FLOAT, ["N", 2])
    small_models.write(tmp_path / "model.onnx", nodes, {"x": axes}, {"y": axes}, [kept])
    with pytest.raises(ModelError, match="quantized already: it has w8 in int8"):
        quantize(tmp_path, "small@1")


def test_a_model_without_weights_to_quantize_is_refused(tmp_path):
    """No such operator, or one that multiplies what comes in; nothing is written."""
    axes = (small_models.FLOAT, ["N", 2])
    product = helper.make_node("MatMul", ["x", "z"], ["y"])
    for make in (
        small_models.double,
        lambda path: small_models.write(path, [product], {"x": axes, "z": axes}, {"y": axes}),
    ):
        make(tmp_path / "model.onnx")
        with pytest.raises(ModelError, match="small@1 has nothing to quantize: no MatMul, Gemm, Conv"):
            quantize(tmp_path, "small@1")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_what_cannot_be_read_is_refused(tmp_path):
    """Bytes that are no ONNX."""
    (tmp_path / "model.onnx").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="small@1 cannot be read as ONNX"):
        quantize(tmp_path, "small@1")


def test_agreement_counts_rows_of_labels_and_of_the_largest_value():
    """Two micro-batches; a row of several labels agrees if all do; one value a row has no argmax."""
    labels = [(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 0]])), (np.array([[5, 6]]), np.array([[5, 6]]))]
    assert agreement("l", labels).same == pytest.approx(2 / 3)
    one, other = np.array([[0.1, 0.9], [0.6, 0.4]]), np.array([[0.2, 0.8], [0.4, 0.6]])
    found = agreement("p", [(one, other)])
    assert (found.same, found.largest_difference, found.mean_difference) == (0.5, *map(pytest.approx, (0.2, 0.15)))
    assert agreement("x", [(one[:, :1], other[:, :1])]).same is None
    words = np.array(["a", "b"], dtype=object)
    assert agreement("w", [(words, words[::-1])]).same == 0


def test_what_is_not_finite_is_counted_and_spoils_no_difference():
    """NaN agrees with NaN, an infinity with its like."""
    nan, inf = float("nan"), float("inf")
    one, other = np.array([[nan], [inf], [inf], [1.0], [2.0]]), np.array([[nan], [inf], [-inf], [nan], [2.5]])
    found = agreement("y", [(one, other)])
    assert (found.non_finite, found.largest_difference, found.mean_difference) == (2, 0.5, pytest.approx(0.5 / 3))
