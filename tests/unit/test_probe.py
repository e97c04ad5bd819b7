"""The probe admits an ONNX file that can be served and says of any other what is wrong and what to do."""

import gzip
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batchline.errors import ModelError
from workers.probe import Signature, TensorSignature, probe

OPSET = [helper.make_opsetid("", 17)]


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes=None, inputs=None, outputs=None, opsets=OPSET, **kinds):
    nodes = nodes or [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [value("x", ["rows", 64])],
        outputs or [value("y", ["rows", 64])],
        initializer=kinds.pop("initializer", []),
    )
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **kinds)


def external(name="w", location="../../etc/passwd", shape=(64,)):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def branch(name, tensor):
    """A subgraph that gives one constant, kept in an attribute of a node."""
    node = helper.make_node("Constant", [], [name], name=f"constant_{name}", value=tensor)
    return helper.make_graph([node], name, [], [value(name, [64])])


@pytest.fixture
def saved(tmp_path):
    def save(what, name="model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(what if isinstance(what, bytes) else what.SerializeToString())
        return path

    return save


def refusal(path: Path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        probe(path, **options)
    return caught.value.detail


def test_signature_has_protocol_names_and_null_for_free_axes(saved):
    """dtype is the Open Inference Protocol's, the first axis counts rows, a free axis is None."""
    path = saved(model())
    signature = probe(path)
    assert signature == Signature(
        inputs=(TensorSignature("x", "FP32", (None, 64)),),
        outputs=(TensorSignature("y", "FP32", (None, 64)),),
        batchable=True,
        opset=17,
        bytes=path.stat().st_size,
        sha256=signature.sha256,
    )
    assert len(signature.sha256) == 64


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.DOUBLE, "FP64"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.STRING, "BYTES"),
    ],
)
def test_every_served_element_type_has_its_protocol_name(saved, element, dtype):
    """Strings are BYTES; the numbers have their width in their name."""
    identity = helper.make_node("Identity", ["x"], ["y"])
    signature = probe(
        saved(model([identity], [value("x", [None, None, 3], element)], [value("y", [None, None, 3], element)]))
    )
    assert signature.inputs == (TensorSignature("x", dtype, (None, None, 3)),)


def test_weights_listed_as_inputs_are_no_inputs(saved):
    """Old exporters list initializers among the inputs; nobody submits those."""
    add = helper.make_node("Add", ["x", "w"], ["y"])
    weights = numpy_helper.from_array(np.zeros(64, np.float32), "w")
    signature = probe(saved(model([add], [value("x", ["n", 64]), value("w", [64])], initializer=[weights])))
    assert [tensor.name for tensor in signature.inputs] == ["x"]


def test_first_axis_of_one_is_served_row_by_row(saved):
    """A model exported for one row is admitted and not batchable."""
    signature = probe(saved(model(None, [value("x", [1, 64])], [value("y", [1, 64])])))
    assert signature.batchable is False
    assert signature.inputs[0].shape == (1, 64)


def test_output_without_shape_gets_the_inferred_one(saved):
    """Exporters may leave an output's shape out; shape inference fills it in."""
    signature = probe(saved(model(None, None, [value("y", None)])))
    assert signature.outputs == (TensorSignature("y", "FP32", (None, 64)),)


def test_fixed_batch_of_eight_is_refused(saved):
    """A model that wants eight rows at a time cannot take what is there."""
    message = refusal(saved(model(None, [value("x", [8, 64])], [value("y", [8, 64])])))
    assert "exactly 8 rows" in message
    assert "free first axis" in message


def test_scalar_is_refused(saved):
    """A tensor without axes has no row axis."""
    mean = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)
    assert "output 'y' is a scalar" in refusal(saved(model([mean], None, [value("y", [])])))


def test_input_without_shape_is_refused(saved):
    """Rows cannot be checked against an unknown shape."""
    assert "declares no shape" in refusal(saved(model(None, [value("x", None)])))


def test_complex_numbers_are_refused(saved):
    """The protocol has no name for them."""
    identity = helper.make_node("Identity", ["x"], ["y"])
    both = [value("x", ["n", 2], TensorProto.COMPLEX64)], [value("y", ["n", 2], TensorProto.COMPLEX64)]
    assert "COMPLEX64" in refusal(saved(model([identity], *both)))


def test_external_weights_are_refused_whatever_their_path(saved):
    """An initializer in another file could name any file of the machine."""
    add = helper.make_node("Add", ["x", "w"], ["y"])
    for location in ("../../etc/passwd", "weights.bin", "/etc/shadow", "*/_ORT_MEM_ADDR_/*"):
        message = refusal(saved(model([add], initializer=[external(location=location)])))
        assert "model.graph.initializer[w]" in message
        assert location in message
        assert "save_as_external_data=False" in message


def test_external_entries_without_the_flag_are_refused(saved):
    """Some readers follow external_data even where data_location says DEFAULT."""
    tensor = external()
    tensor.ClearField("data_location")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    assert "another file" in refusal(saved(model([add], initializer=[tensor])))


def test_external_data_in_a_subgraphs_attribute_is_refused(saved):
    """A branch of an If node hides a tensor three messages deep."""
    inner = branch("hidden", external("hidden"))
    plain = branch("plain", numpy_helper.from_array(np.zeros(64, np.float32), "plain"))
    nodes = [
        helper.make_node("If", ["c"], ["b"], name="if", then_branch=inner, else_branch=plain),
        helper.make_node("Add", ["x", "b"], ["y"]),
    ]
    condition = numpy_helper.from_array(np.array(True), "c")
    message = refusal(saved(model(nodes, initializer=[condition])))
    assert "model.graph.node[if].attribute[then_branch].g.node[constant_hidden].attribute[value].t" in message


def test_external_data_in_a_function_is_refused(saved):
    """Functions of the model carry nodes and attributes of their own."""
    function = helper.make_function(
        "own",
        "Shift",
        ["a"],
        ["r"],
        [
            helper.make_node("Constant", [], ["k"], value=external("k")),
            helper.make_node("Add", ["a", "k"], ["r"]),
        ],
        OPSET,
    )
    opsets = [*OPSET, helper.make_opsetid("own", 1)]
    call = helper.make_node("Shift", ["x"], ["y"], domain="own")
    assert "model.functions[Shift]" in refusal(saved(model([call], opsets=opsets, functions=[function])))


def test_external_data_in_a_sparse_tensor_is_refused(saved):
    """A sparse initializer holds two tensors."""
    sparse = onnx.SparseTensorProto(dims=[64])
    sparse.values.CopyFrom(external("s", shape=(1,)))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    made = model()
    made.graph.sparse_initializer.append(sparse)
    assert "sparse_initializer[0].values" in refusal(saved(made))


def test_operator_of_the_models_own_function_is_admitted(saved):
    """A foreign domain is no fault where the model brings the function itself."""
    function = helper.make_function("own", "Twice", ["a"], ["r"], [helper.make_node("Add", ["a", "a"], ["r"])], OPSET)
    opsets = [*OPSET, helper.make_opsetid("own", 1)]
    call = helper.make_node("Twice", ["x"], ["y"], domain="own")
    assert probe(saved(model([call], opsets=opsets, functions=[function]))).batchable


def test_microsofts_operators_are_admitted(saved):
    """com.microsoft is part of plain ONNX Runtime."""
    gelu = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    assert probe(saved(model([gelu], opsets=[*OPSET, helper.make_opsetid("com.microsoft", 1)]))).batchable


def test_foreign_operator_is_refused_by_name(saved):
    """An operator that needs a plug-in library is refused with its name and place."""
    node = helper.make_node("Evil", ["x"], ["y"], name="n0", domain="my.plugin")
    message = refusal(saved(model([node], opsets=[*OPSET, helper.make_opsetid("my.plugin", 1)])))
    assert "model.graph.node[n0]" in message
    assert "my.plugin.Evil" in message


def test_compiled_context_is_refused(saved):
    """An EPContext node may name a file of its own."""
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="../x.bin", embed_mode=0
    )
    assert "EPContext" in refusal(saved(model([node], opsets=[*OPSET, helper.make_opsetid("com.microsoft", 1)])))


def test_unknown_operator_is_refused_by_the_checker(saved):
    """What the standard does not know, the checker names."""
    message = refusal(saved(model([helper.make_node("Nope", ["x"], ["y"])])))
    assert "checker" in message
    assert "Nope" in message


def test_model_that_the_runtime_cannot_open_is_refused(saved):
    """Valid ONNX that ONNX Runtime rejects: the weights do not fit the input."""
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = numpy_helper.from_array(np.zeros((3, 64), np.float32), "w")
    assert "ONNX Runtime" in refusal(saved(model([product], initializer=[weights])))


def test_zipmap_is_refused_with_the_option_that_removes_it(saved):
    """A classifier converted with ZipMap gives a list of maps."""
    entry = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    maps = helper.make_value_info("p", helper.make_sequence_type_proto(entry))
    zipmap = helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    opsets = [*OPSET, helper.make_opsetid("ai.onnx.ml", 1)]
    message = refusal(saved(model([zipmap], [value("x", [None, 2])], [maps], opsets)))
    assert "{'zipmap': False}" in message


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def zipped(tmp_path: Path) -> bytes:
    path = tmp_path / "z"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (pickle.dumps(Bomb()), "pickle"),
        (pickle.dumps({"weights": [0.0]}, protocol=2), "pickle"),
        (pickle.dumps({"weights": [0.0]}, protocol=0), "ONNX"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"\x78\x9c\x6b\x60", "zlib"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 80, "HDF5"),
        (b"\x93NUMPY\x01\0", "NumPy"),
        (b"\x10\0\0\0ORTM" + b"\0" * 80, ".ort"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"w":{"dtype":"F32"}}', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html>", "HTML"),
        (b"\0" * 100, "ONNX"),
        (b"\x08\x08", "no ONNX graph"),
    ],
)
def test_other_formats_are_refused_by_content_not_by_name(saved, data, kind):
    """Whatever its name says, a file that is not ONNX is refused and never unpickled."""
    assert kind in refusal(saved(data, "model.onnx"))


def test_pytorch_archive_is_refused(saved, tmp_path):
    """A .pt file is a zip with a pickle in it."""
    assert "PyTorch" in refusal(saved(zipped(tmp_path), "model.onnx"))


def test_empty_file_is_refused(saved):
    """A copy that never began."""
    assert "is empty" in refusal(saved(b""))


def test_truncated_file_is_refused_wherever_it_ends(saved):
    """A copy that broke off never passes, whatever the byte."""
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    data = model([helper.make_node("MatMul", ["x", "w"], ["y"])], initializer=[weights]).SerializeToString()
    for cut in (1, 2, 17, len(data) // 2, len(data) - 200, len(data) - 7, len(data) - 1):
        assert refusal(saved(data[:cut]))


def test_file_over_the_limit_is_refused_unread(saved):
    """The size is judged before the content."""
    assert "the limit is 10" in refusal(saved(b"x" * 11), max_bytes=10)


def test_only_regular_files_are_read(tmp_path):
    """A folder or a pipe is refused at once and does not block."""
    pipe = tmp_path / "model.onnx"
    os.mkfifo(pipe)
    assert "not a regular file" in refusal(pipe)
    assert "not a regular file" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "none.onnx")


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "workers.probe", *map(str, arguments)], check=False, capture_output=True, timeout=60
    )
    return done.returncode, json.loads(done.stdout)


def test_command_prints_json_and_tells_by_its_exit_status(saved):
    """0 with the signature, 1 with the reason, 2 for a wrong call; always one JSON object."""
    status, answer = run(saved(model(), "good.onnx"))
    assert status == 0
    assert answer["inputs"] == [{"name": "x", "dtype": "FP32", "shape": [None, 64]}]
    status, answer = run(saved(pickle.dumps(Bomb()), "bad.onnx"))
    assert status == 1
    assert "pickle" in answer["error"]
    assert run()[0] == 2


def run_with_probe(expression):
    """Run the command with another probe in its place; its answer is printed as JSON."""
    code = f"import resource, workers.probe as p; p.probe = lambda path: {expression}; raise SystemExit(p.main(['m']))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


def test_command_bounds_its_memory_and_time_before_it_opens_the_file():
    """A hostile file may not take the machine: address space, processor time and core dumps are limited."""
    _, (memory_bytes, cpu_s, core_bytes) = run_with_probe(
        "[resource.getrlimit(k)[0] for k in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_CORE)]"
    )
    assert 0 < memory_bytes <= 12 * 2**30
    assert 0 < cpu_s <= 600
    assert core_bytes == 0


def test_memory_beyond_the_bound_is_an_answer():
    """Asking for too much is refused like any other fault, as JSON."""
    status, answer = run_with_probe("bytearray(2**62)")
    assert status == 1
    assert "more memory" in answer["error"]
