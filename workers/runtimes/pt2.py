"""A torch.export archive (.pt2), read without PyTorch: checked, and written anew without anything that would run code.

What torch.export.load does with a file as it comes: it unpickles the sample inputs (and falls back to unpickling
anything), tensors that are marked as pickled, and custom objects; it evaluates the expressions of sizes as Python; it
imports what the tree of inputs and outputs names; it looks operators up by any path below `torch`; it writes names into
source that is compiled; and it loads compiled libraries. So none of that reaches it. Kept are the weights as plain
bytes, and a graph whose operators, names, expressions and trees are of the few kinds that a model needs.

The format is that of PyTorch 2.9 and later; earlier ones pickled the weights.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from batchline.errors import ModelError
from workers.sniff import zip_kind

_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_CONFIGS = {_WEIGHTS: "model_weights_config.json", _CONSTANTS: "model_constants_config.json"}
_COPIED = ("archive_format", "archive_version", "byteorder", ".data/version")
_AGAIN = "save it again with torch.export.save of PyTorch 2.9 or later"

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|")
_PAYLOAD = re.compile(r"(weight|tensor)_[0-9]+")
_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims|quantized)\.(?P<name>(?:__(?:i?(?:and|or|xor|lshift|rshift))__)|_?[A-Za-z][A-Za-z0-9_]*)"
    r"\.[A-Za-z][A-Za-z0-9_]*"
    r"|torch\.ops\.higher_order\.(?:cond|map_impl|scan|associative_scan|while_loop|flex_attention"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(?:getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|invert)"
    r"|math\.[a-z0-9]+"
    r"|torch\._?sym_[a-z0-9_]+"
)
_FORBIDDEN = frozenset({"from_file", "save", "_print"})
"""Operators of aten that touch files or the terminal."""
_TREES = {
    "builtins.list": False,
    "builtins.tuple": False,
    "builtins.dict": True,
    "collections.OrderedDict": True,
    "torch.fx.immutable_collections.immutable_list": False,
    "torch.fx.immutable_collections.immutable_dict": True,
}
"""What inputs and outputs may be made of, and whether it has keys; others import what the file names."""
_CALLS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Mod", "PythonMod",
    "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "Where", "floor", "ceiling", "FloorToInt", "CeilToInt",
    "TruncToInt", "TruncToFloat", "RoundToInt", "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "LShift",
    "RShift", "ToFloat", "Identity", "Eq", "Ne", "Equality", "Unequality", "Lt", "Le", "Gt", "Ge", "StrictLessThan",
    "StrictGreaterThan", "LessThan", "GreaterThan", "And", "Or", "Not", "true", "false", "oo", "int_oo",
    "IntInfinity", "NegativeIntInfinity", "Infinity",
})  # fmt: skip
"""What the expression of a size may call: arithmetic."""
_SYNTAX = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.keyword, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_SYMBOL = re.compile(r"-?[a-zA-Z]*[0-9]*")
_MOST_CHARS = 10_000
_MAPPINGS = frozenset(
    {"tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values", "as_string_to_argument",
     "range_constraints"}
)  # fmt: skip
"""Dictionaries whose keys are names of the model's own."""


@dataclass(frozen=True, slots=True)
class Archive:
    """What of a file PyTorch may see."""

    data: bytes
    """For torch.export.load."""
    outputs: tuple[str, ...]
    """Names of the leaves of what the model returns, in order."""


def clean(data: bytes, *, device: str) -> Archive:
    """Check an archive, and write it anew.

    Args:
        data: the file.
        device: `cpu` or `cuda:N`; everything in the program that names a device names this one afterwards.

    Raises:
        ModelError: it is refused; says why and what to do.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _rewritten(_Members(archive, len(data)), device)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as e:
        raise ModelError("it is a damaged or truncated .pt2 archive: copy or save it again") from e
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as e:
        raise ModelError(f"it is no torch.export program that can be read ({type(e).__name__} {e}): {_AGAIN}") from e


class _Members:
    """The files of an archive by their path below its root folder."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        names = archive.namelist()
        root = next(
            (n.removesuffix("archive_format") for n in names if n.count("/") == 1 and n.endswith("/archive_format")),
            None,
        )
        if root is None:
            kind, advice = zip_kind(names)
            raise ModelError(f"it is {kind}, not a torch.export program: {advice}")
        self._archive = archive
        self._members = {i.filename.removeprefix(root): i for i in archive.infolist() if i.filename.startswith(root)}
        if any(i.compress_type != zipfile.ZIP_STORED for i in self._members.values()):
            raise ModelError(f"its archive is compressed, which torch.export.save never does: {_AGAIN}")
        if sum(i.file_size for i in self._members.values()) > size:
            raise ModelError(f"its archive counts bytes more than once: {_AGAIN}")
        self.names = frozenset(self._members)

    def read(self, name: str) -> bytes:
        if name not in self.names:
            raise ModelError(f"its archive has no {name}: {_AGAIN}")
        return self._archive.read(self._members[name])


def _rewritten(members: _Members, device: str) -> Archive:
    _refuse_other_kinds(members)
    checks = _Checks(device)
    program = json.loads(members.read(_MODEL))
    graph = cast("dict[str, Any]", program["graph_module"])
    entry = next(e for e in graph["module_call_graph"] if e["fqn"] == "" and e["signature"])
    # The rest is for people, or for Python modules that we do not rebuild.
    graph |= {"module_call_graph": [], "metadata": {}, "treespec_namedtuple_fields": {}}
    program = checks.walk(program | {"graph_module": graph, "guards_code": []})
    program["graph_module"]["module_call_graph"] = [{"fqn": "", "signature": checks.walk(entry["signature"])}]
    _refuse_state(graph)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for folder, name in _CONFIGS.items():
            config = json.loads(members.read(folder + name))["config"]
            paths = {_payload(fqn, meta) for fqn, meta in config.items()}
            archive.writestr(f"model/{folder}{name}", json.dumps({"config": checks.walk(config, mapping=True)}))
            for path in sorted(paths):
                archive.writestr(f"model/{folder}{path}", members.read(folder + path))
        archive.writestr(f"model/{_MODEL}", json.dumps(program))
        archive.writestr(f"model/{_SAMPLES}", b"")
        for name in _COPIED:
            archive.writestr(f"model/{name}", members.read(name))
    return Archive(written.getvalue(), tuple(leaves(entry["signature"]["out_spec"])))


def _refuse_other_kinds(members: _Members) -> None:
    if any(n.startswith("data/aotinductor/") for n in members.names):
        raise ModelError(
            "it holds compiled libraries (AOTInductor), which are never loaded: save the exported program itself with"
            " torch.export.save"
        )
    models = sorted(n for n in members.names if n.startswith("models/"))
    if models != [_MODEL]:
        raise ModelError(
            f"it holds {len(models)} programs ({', '.join(models)[:200]}): save one, with torch.export.save"
        )
    if f"{_WEIGHTS}model.pt" in members.names or f"{_CONSTANTS}model.pt" in members.names:
        raise ModelError(f"its weights are pickled, as PyTorch before 2.9 did: {_AGAIN}")


def _payload(fqn: str, meta: dict[str, Any]) -> str:
    if meta["use_pickle"] or not _PAYLOAD.fullmatch(meta["path_name"]) or not meta["tensor_meta"]:
        raise ModelError(
            f"{fqn} is kept as a pickle (a tensor subclass or an object of Python), which is never loaded: make it a"
            " plain tensor before torch.export.export, or use torch.onnx.export"
        )
    return meta["path_name"]


def _refuse_state(graph: dict[str, Any]) -> None:
    """Rows must not change the model, nor may chance: both come from exports in training mode."""
    own: set[str] = set()
    for spec in graph["signature"]["input_specs"]:
        ((kind, value),) = spec.items()
        if kind in {"parameter", "buffer", "tensor_constant"}:
            own.add(value["arg"]["name"])
    for spec in graph["signature"]["output_specs"]:
        if list(spec) != ["user_output"]:
            raise ModelError(f"running it changes its state or its input ({', '.join(spec)}): {_EVAL}")
    for node in _nodes(graph["graph"]):
        for given in node["inputs"]:
            name, arg = given["name"], given["arg"]
            if (name in {"train", "training"} and arg.get("as_bool")) or (name == "dropout_p" and arg.get("as_float")):
                raise ModelError(f"{node['target']} runs in training mode: {_EVAL}")
        first = node["inputs"][0]["arg"].get("as_tensor") if node["inputs"] else None
        if node["target"].split(".")[-2].endswith("_") and first and first["name"] in own:
            raise ModelError(f"{node['target']} changes {first['name']} at every run: {_EVAL}")


def _nodes(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a graph and of the graphs inside it (branches, loops)."""
    for node in graph["nodes"]:
        yield node
        for given in node["inputs"]:
            if "as_graph" in given["arg"]:
                yield from _nodes(given["arg"]["as_graph"]["graph"])


_EVAL = "call model.eval() before torch.export.export, and keep no state in the model"


class _Checks:
    """Goes through the JSON of a program; what comes out names one device and nothing that is not known."""

    def __init__(self, device: str) -> None:
        kind, _, index = device.partition(":")
        self._device = {"type": kind, "index": None if kind == "cpu" else int(index or 0)}

    def walk(self, value: Any, *, mapping: bool = False) -> Any:
        """A copy of `value`; `mapping`: its keys are names of the model's own."""
        if isinstance(value, list):
            return [self.walk(v) for v in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        items = cast("dict[str, Any]", value).items()
        if mapping:
            return {k: self.walk(v) for k, v in items}
        return {k: self._field(k, v) for k, v in items}

    def _field(self, key: str, value: Any) -> Any:
        if key == "metadata":
            return {}
        if key in {"target", "as_operator"}:
            _check_operator(value)
        elif key == "expr_str":
            check_expression(value)
        elif key in {"in_spec", "out_spec"}:
            leaves(value)
        elif key in {"name", "as_name"}:
            _check_name(value or "")
        elif key in {"device", "as_device"}:
            if value["type"] not in {"cpu", "cuda"}:
                raise ModelError(f"it was exported on the device {value['type']!r}: export it on the CPU or on CUDA")
            return self._device
        elif key in {"custom_obj_values", "as_custom_obj", "custom_obj", "token"} and value:
            raise ModelError("it holds objects of Python or C++ beside its tensors: export a model without them")
        if key in _MAPPINGS:
            return self._mapping(key, value)
        return self.walk(value)

    def _mapping(self, key: str, value: dict[str, Any]) -> Any:
        for name in value:
            if key == "range_constraints":
                check_expression(name)
            else:
                _check_name(name)
        return self.walk(value, mapping=True)


def _check_name(name: str) -> None:
    if not _WORD.fullmatch(name):
        raise ModelError(f"{name[:80]!r} is no name of a value: {_AGAIN}")


def _check_operator(target: str) -> None:
    found = _OPERATOR.fullmatch(target)
    if not found or found["name"] in _FORBIDDEN:
        raise ModelError(
            f"it uses {target[:120]!r}, which is not served: only PyTorch's own operators (aten, prims, quantized) are;"
            " export the model without custom operators, or use torch.onnx.export"
        )


def check_expression(text: str) -> None:
    """Whether the expression of a size is arithmetic and nothing else; PyTorch has sympy evaluate it as Python.

    Raises:
        ModelError: it is not.
    """
    wrong = ModelError(f"{text[:120]!r} is no expression of a size: {_AGAIN}")
    if len(text) > _MOST_CHARS:
        raise wrong
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        raise wrong from e
    for node in ast.walk(tree):
        if not isinstance(node, _SYNTAX):
            raise wrong
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _CALLS):
            raise wrong
        if isinstance(node, ast.Name) and node.id not in _CALLS and not _SYMBOL.fullmatch(node.id):
            raise wrong
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _SYMBOL.fullmatch(node.value):
            raise wrong


def leaves(text: str) -> list[str]:
    """The names of the leaves of a tree of inputs or outputs, in order: keys where it has some, else `output_N`.

    Raises:
        ModelError: it is made of other things than lists, tuples and dictionaries.
    """
    version, tree = json.loads(text)
    if version != 1:
        raise ModelError(f"its trees of inputs and outputs are of version {version}: {_AGAIN}")
    return [
        "_".join(map(str, path)) if _is_named(path) else f"output_{'_'.join(map(str, path)) or 0}"
        for path in _paths(tree)
    ]


def _is_named(path: tuple[str | int, ...]) -> bool:
    return any(isinstance(part, str) for part in path)


def _paths(tree: dict[str, Any]) -> list[tuple[str | int, ...]]:
    children = cast("list[dict[str, Any]]", tree["children_spec"])
    if tree["type"] is None:
        return [()]
    if tree["type"] not in _TREES:
        raise ModelError(
            f"it takes or returns a {str(tree['type'])[:120]}: let forward take tensors, and return a tensor, a tuple"
            " or a dict"
        )
    keys = _keys(tree["context"]) if _TREES[tree["type"]] else list(range(len(children)))
    return [(key, *path) for key, child in zip(keys, children, strict=True) for path in _paths(child)]


def _keys(context: str) -> list[str]:
    keys = json.loads(context)
    if not isinstance(keys, list) or not all(isinstance(k, str | int) for k in cast("list[Any]", keys)):
        raise ModelError("the keys of what it takes or returns are no strings: return a dict with strings as keys")
    return [str(k) for k in cast("list[str | int]", keys)]
