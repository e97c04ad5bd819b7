"""torch.export archives without PyTorch: what is kept of one, and what would run code and is refused."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from batchline import registry
from batchline.errors import ModelError, RuntimeMissingError, SettingsError
from batchline.model import ModelSpec
from workers.probe import probe
from workers.runtimes import pt2
from workers.runtimes.choice import Runtimes


def tensor(*sizes: Any) -> dict[str, Any]:
    return {
        "dtype": 7,
        "sizes": [{"as_int": s} if isinstance(s, int) else {"as_expr": {"expr_str": s, "hint": None}} for s in sizes],
        "requires_grad": False,
        "device": {"type": "cuda", "index": 3},
        "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }


def tree(*children: Any, kind: str | None = None, context: str | None = "null") -> dict[str, Any]:
    return {"type": kind, "context": context if kind else None, "children_spec": list(children)}


LEAF = tree()
ROWS = "Symbol('s77', positive=True, integer=True)"


def program() -> dict[str, Any]:
    """{"y": x + w} as torch.export.save writes it."""
    given = [{"name": n, "arg": {"as_tensor": {"name": v}}, "kind": 1} for n, v in (("self", "x"), ("other", "p_w"))]
    node = {
        "target": "torch.ops.aten.add.Tensor",
        "inputs": given,
        "outputs": [{"as_tensor": {"name": "add"}}],
        "metadata": {"stack_trace": "File m.py, line 1"},
        "name": "add",
    }
    inputs = tree(tree(LEAF, kind="builtins.tuple"), tree(kind="builtins.dict", context="[]"), kind="builtins.tuple")
    outputs = tree(LEAF, kind="builtins.dict", context='["y"]')
    return {
        "graph_module": {
            "graph": {
                "inputs": [{"as_tensor": {"name": "p_w"}}, {"as_tensor": {"name": "x"}}],
                "outputs": [{"as_tensor": {"name": "add"}}],
                "nodes": [node],
                "tensor_values": {"p_w": tensor(4), "x": tensor(ROWS, 4), "add": tensor(ROWS, 4)},
                "sym_int_values": {},
                "sym_bool_values": {},
                "custom_obj_values": {},
            },
            "signature": {
                "input_specs": [
                    {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}},
                    {"user_input": {"arg": {"as_tensor": {"name": "x"}}}},
                ],
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "add"}}}}],
            },
            "module_call_graph": [
                {
                    "fqn": "",
                    "signature": {
                        "inputs": [],
                        "outputs": [],
                        "in_spec": json.dumps([1, inputs]),
                        "out_spec": json.dumps([1, outputs]),
                    },
                }
            ],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": 10},
        "range_constraints": {"s77": {"min_val": 0, "max_val": None}},
        "guards_code": ["__import__('os').abort()"],
    }


def weights(**changes: Any) -> dict[str, Any]:
    payload = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": tensor(4)}
    return {"config": {"w": payload | changes}}


class Bomb:
    def __reduce__(self) -> Any:
        return (os.abort, ())


def archive(model: Any = None, config: Any = None, kind: int = zipfile.ZIP_STORED, **members: bytes | None) -> bytes:
    """An archive; `members` replaces some, None leaves one out."""
    content: dict[str, bytes | None] = {
        "data/weights/weight_0": bytes(16),
        "data/weights/model_weights_config.json": json.dumps(config or weights()).encode(),
        "data/constants/model_constants_config.json": b'{"config": {}}',
        "models/model.json": json.dumps(model or program()).encode(),
        "data/sample_inputs/model.pt": pickle.dumps(Bomb()),
        "archive_format": b"pt2",
        "archive_version": b"0",
        ".data/version": b"6\n",
        "byteorder": b"little",
    }
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", kind) as file:
        for name, data in (content | members).items():
            if data is not None:
                file.writestr(f"net/{name}", data)
    return written.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(ModelError) as caught:
        pt2.clean(data, device="cpu")
    return caught.value.detail


def test_what_is_kept_has_no_pickle_no_code_and_one_device() -> None:
    """Sample inputs are emptied, guards and metadata left out, devices replaced, weights copied as they are."""
    found = pt2.clean(archive(), device="cuda:1")
    assert found.outputs == ("y",)
    with zipfile.ZipFile(io.BytesIO(found.data)) as kept:
        assert kept.read("model/data/sample_inputs/model.pt") == b""
        assert kept.read("model/data/weights/weight_0") == bytes(16)
        text = kept.read("model/models/model.json") + kept.read("model/data/weights/model_weights_config.json")
    have = json.loads(text[: text.index(b'{"config"')])
    assert have["guards_code"] == []
    assert have["graph_module"]["graph"]["nodes"][0]["metadata"] == {}
    assert text.count(b'{"type": "cuda", "index": 1}') == 4
    assert b'"index": 3' not in text


def change(path: str, value: Any) -> bytes:
    """An archive whose program has something else at a dotted path."""
    model = copy.deepcopy(program())
    *parents, last = path.split(".")
    place: Any = model
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[int(last) if last.isdigit() else last] = value
    return archive(model)


NODE = "graph_module.graph.nodes.0"
EXPRESSION = "graph_module.graph.tensor_values.x.sizes.0.as_expr.expr_str"
OUTPUTS = "graph_module.module_call_graph.0.signature.out_spec"
FACTORY = {"default_factory_module": "os", "default_factory_name": "abort", "dict_context": "[]"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        *(
            (change(f"{NODE}.target", target), "not served")
            for target in (
                "torch.os.system",
                "torch.load",
                "torch.hub.load",
                "torch.ops.aten.from_file.default",
                "torch.ops.aten.save.default",
                "torch.ops.aten.add.__class__",
                "torch.ops.aten.__class__.mro",
                "torch.ops.load_library",
                "torch.ops.mine.op.default",
                "_operator.methodcaller",
                "#extension:op",
                "os.system",
            )
        ),
        *(
            (change(EXPRESSION, text), "no expression")
            for text in (
                "__import__('os').abort()",
                "Symbol('s77').__class__",
                "[x for x in ()]",
                "lambda: 0",
                "Symbol('s 77')",
                "eval('1')",
                "S('1')",
                "1 +",
                "(" * 5000,
            )
        ),
        (change("range_constraints", {"abort()": {"min_val": 0, "max_val": None}}), "no expression"),
        (change(f"{NODE}.name", "x):\n import os\ndef f(y"), "no name of a value"),
        (change("graph_module.graph.tensor_values", {"a b": tensor(1)}), "no name of a value"),
        (
            change(OUTPUTS, json.dumps([1, tree(kind="collections.defaultdict", context=json.dumps(FACTORY))])),
            "defaultdict",
        ),
        (
            change(
                OUTPUTS, json.dumps([1, tree(LEAF, kind="builtins.dict", context='[{"__enum__": 1, "fqn": "os:x"}]')])
            ),
            "strings as keys",
        ),
        (change("graph_module.graph.custom_obj_values", {"o": {"name": "o", "class_fqn": "C"}}), "objects of Python"),
        (change("graph_module.graph.tensor_values.x.device.type", "xpu"), "'xpu'"),
        (change(f"{NODE}.inputs.0.arg", {"as_operator": "torch.os.system"}), "not served"),
        (change(f"{NODE}.inputs.1", {"name": "train", "arg": {"as_bool": True}, "kind": 1}), "model.eval()"),
        (
            change("graph_module.signature.output_specs.0", {"buffer_mutation": {"arg": {"name": "add"}}}),
            "model.eval()",
        ),
        (archive(config=weights(use_pickle=True)), "pickle"),
        (archive(config=weights(path_name="../../etc/passwd")), "pickle"),
        (archive(config=weights(path_name="custom_obj_0")), "pickle"),
        (archive(**{"data/weights/model.pt": pickle.dumps(Bomb())}), "before 2.9"),
        (archive(**{"data/aotinductor/model/m.so": b"\x7fELF"}), "AOTInductor"),
        (archive(**{"models/other.json": b"{}"}), "2 programs"),
        (archive(**{"models/model.json": b"[]"}), "no torch.export program"),
        (archive(**{"models/model.json": b"{"}), "no torch.export program"),
        (archive(**{"data/weights/weight_0": None}), "no data/weights/weight_0"),
        (archive(kind=zipfile.ZIP_DEFLATED), "compressed"),
        (archive()[:-40], "damaged"),
    ],
)
def test_whatever_would_run_code_is_refused(data: bytes, said: str) -> None:
    """By what it is, before PyTorch sees any of it."""
    assert said in refusal(data)


def test_names_of_outputs() -> None:
    """Keys where there are some, numbers where there are none, one behind the other where they are nested."""
    inner = tree(LEAF, LEAF, kind="builtins.tuple")
    assert pt2.leaves(json.dumps([1, LEAF])) == ["output_0"]
    assert pt2.leaves(json.dumps([1, tree(LEAF, inner, kind="builtins.list")])) == [
        "output_0",
        "output_1_0",
        "output_1_1",
    ]
    nested = tree(LEAF, inner, kind="builtins.dict", context='["a", "b"]')
    assert pt2.leaves(json.dumps([1, nested])) == ["a", "b_0", "b_1"]


def test_without_pytorch_the_probe_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But what is wrong with the file itself comes first."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "workers.runtimes.torch_runtime", raising=False)
    (tmp_path / "good").write_bytes(archive())
    (tmp_path / "bad").write_bytes(change(EXPRESSION, "abort()"))
    with pytest.raises(ModelError, match=r"install batchline\[torch\]"):
        probe(tmp_path / "good")
    with pytest.raises(ModelError, match="no expression"):
        probe(tmp_path / "bad")


def a_signature(file: str, **changes: Any) -> registry.Signature:
    return registry.Signature((), (), batchable=True, bytes=1, sha256="0" * 64, file=file, **changes)


def test_a_file_is_named_by_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive becomes model.pt2 whatever it was called; a folder must have one model, under its kind's name."""
    (tmp_path / "x.bin").write_bytes(archive())
    version, folder = registry.install(tmp_path / "models", "net", tmp_path / "x.bin")
    assert [p.name for p in folder.iterdir()] == ["model.pt2"]
    assert registry.scan(tmp_path / "models")[0].problem is None
    monkeypatch.setattr(registry, "probe", lambda _: a_signature("model.onnx"))
    with pytest.raises(ModelError, match=r"call it model\.onnx"):
        registry.read_version(folder, "net", version)
    monkeypatch.setattr(registry, "probe", lambda _: a_signature("model.pt2", most_rows=24))
    spec = registry.read_version(folder, "net", version)
    assert spec.files == {"model.pt2": "0" * 64}
    assert (spec.policy.max_batch_size, spec.policy.max_bulk_batch_size) == (24, 24)
    (folder / "model.onnx").write_bytes(b"onnx")
    assert "a version is one model" in str(registry.scan(tmp_path / "models")[0].problem)
    with pytest.raises(ModelError, match="a version is one model"):
        registry.install(tmp_path / "models", "net", folder)


def test_a_process_without_a_runtime_says_which(tmp_path: Path) -> None:
    """Without PyTorch programs are for others, without ONNX Runtime ONNX files; without both nothing starts."""
    program = ModelSpec("net", "1", "0" * 64, 1, (), (), file="model.pt2")
    onnx = ModelSpec("net", "2", "0" * 64, 1, (), ())
    Runtimes("cpu", 1, lambda package: package == "onnxruntime").check(onnx)
    with pytest.raises(RuntimeMissingError, match=r"net@1 needs PyTorch.*batchline\[torch\]"):
        Runtimes("cpu", 1, lambda package: package == "onnxruntime").check(program)
    Runtimes("cpu", 1, lambda package: package == "torch").check(program)
    with pytest.raises(RuntimeMissingError, match="needs ONNX Runtime"):
        Runtimes("cpu", 1, lambda package: package == "torch").check(onnx)
    with pytest.raises(SettingsError, match="No runtime"):
        Runtimes("cpu", 1, lambda _: False)
