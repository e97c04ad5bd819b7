"""Reads the signature of a model's file, and refuses one that is not safe to serve: `python -m workers.probe PATH`.

Runs as a process of its own, so that a file that makes a parser crash or eat memory harms nobody. The bytes are read
once: what is hashed, checked and opened by ONNX Runtime is the same. Prints one JSON object; exit 0 with the
signature, 1 with {"error": ...}. ONNX files are read here, torch.export programs in `probe_torch`.
"""

from __future__ import annotations

import hashlib
import resource
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batchline.errors import ModelError
from batchline.model import MODEL_FILE, TORCH_FILE
from workers.sniff import foreign_format, is_zip

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = 2**31 - 1
"""Protobuf's own limit; larger models need external data, which is refused."""

_CPU_S = 600
_MEMORY_BYTES = 12 * 2**30
_MESSAGE_CHARS = 1000

_KNOWN_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
"""What a plain onnxruntime has kernels or schemas for, as its own get_all_operator_schema() lists them."""

_DTYPES = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "BOOL": "BOOL",
    "STRING": "BYTES",
}


class TensorSignature(msgspec.Struct, frozen=True):
    """One input or output: dtype in the Open Inference Protocol's words, shape with None for a free axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Signature(msgspec.Struct, frozen=True):
    """What a model takes and gives; the first axis of every tensor is the batch axis.

    `batchable` says that the first axis of every input and output is free; if not, rows must run one at a time.
    """

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    batchable: bool
    opset: int
    """0 for what is no ONNX file."""
    bytes: int
    sha256: str
    file: str = MODEL_FILE
    """What a version's folder calls a file of this kind."""
    most_rows: int | None = None
    """More rows at once the model does not take; None: no bound is known."""


def probe(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> Signature:
    """Check one model's file and read its signature.

    Args:
        path: a regular file of any name.
        max_bytes: the largest file to look at.

    Returns:
        The signature; the file is one that ONNX Runtime, or PyTorch, has opened.

    Raises:
        ModelError: the file is refused; the message says what, where and what to do next.
    """
    data = _read(path, max_bytes)
    if is_zip(data[:4]):
        return _probe_torch(data)
    model = _parse(path, data)
    _refuse_external_data(model)
    _refuse_foreign_operators(model)
    model = _with_output_shapes(model)
    inputs, outputs = _signature(model)
    _refuse_bad_batch_axes(inputs, outputs)
    _check(model)
    _open_session(data)
    return Signature(
        inputs=inputs,
        outputs=outputs,
        batchable=all(t.shape[0] is None for t in (*inputs, *outputs)),
        opset=max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=0),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _probe_torch(data: bytes) -> Signature:
    from workers import probe_torch  # noqa: PLC0415  # ONNX files need nothing of it

    told = probe_torch.read(data)
    inputs, outputs = (tuple(TensorSignature(*t) for t in side) for side in (told.inputs, told.outputs))
    return Signature(
        inputs=inputs,
        outputs=outputs,
        batchable=all(t.shape[0] is None for t in (*inputs, *outputs)),
        opset=0,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        file=TORCH_FILE,
        most_rows=told.most_rows,
    )


def probe_text(path: Path, max_length: int, inputs: Sequence[str]) -> dict[str, str]:
    """Open a tokenizer as a worker would, and run it once.

    Args:
        path: the file.
        max_length: most tokens of a row.
        inputs: the names of the model's inputs.

    Returns:
        An empty object.

    Raises:
        ModelError: the tokenizer cannot serve this model.
    """
    from workers.text import Tokenizer  # noqa: PLC0415  # see _onnx

    Tokenizer(path, max_length).encode(["a text"], inputs)
    return {}


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path.name} is not a regular file: name the .onnx file itself")
        if status.st_size > max_bytes:
            raise ModelError(
                f"{path.name} has {status.st_size} bytes, the limit is {max_bytes}: quantize the model or split it"
            )
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelError(
            f"{path.name} cannot be read ({error.strerror}): check the path and its permissions"
        ) from error
    if len(data) > max_bytes:
        raise ModelError(f"{path.name} grew while it was read: wait until it is written and import again")
    if not data:
        raise ModelError(f"{path.name} is empty: copy or export the model again")
    return data


def _onnx() -> Any:
    try:
        import onnx  # noqa: PLC0415  # a missing runtime is an answer, not a traceback
    except ImportError as error:
        raise ModelError(
            "the package onnx is not installed here, so no model can be checked:"
            " install batchline[worker-cpu] or batchline[worker-gpu]"
        ) from error
    return onnx


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    """Parse without touching any other file; a parser this lenient takes random bytes, so the checker must follow."""
    foreign = foreign_format(data[:512])
    if foreign:
        kind, advice = foreign
        raise ModelError(f"{path.name} is {kind}, not ONNX: {advice}")
    onnx = _onnx()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:
        raise ModelError(f"{path.name} is no ONNX file, or a truncated one: copy or export the model again") from error
    if not model.ir_version or not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"{path.name} holds no ONNX graph: export the model to ONNX and import that file")
    return model


def _messages(message: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every protobuf message inside this one, with its place: subgraphs, functions and attributes alike."""
    yield where, message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if hasattr(value, "ListFields"):
            yield from _messages(value, f"{where}.{field.name}")
            continue
        for index, inner in enumerate(value):
            yield from _messages(inner, f"{where}.{field.name}[{getattr(inner, 'name', '') or index}]")


def _refuse_external_data(model: onnx.ModelProto) -> None:
    onnx = _onnx()
    for where, message in _messages(model, "model"):
        if not isinstance(message, onnx.TensorProto):
            continue
        if message.external_data or message.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in message.external_data if entry.key == "location"), "?")
            raise ModelError(
                f"{where} keeps its data in another file ({location!r}): a served model must be one file;"
                " re-save it with onnx.save(model, path, save_as_external_data=False)"
            )


def _refuse_foreign_operators(model: onnx.ModelProto) -> None:
    onnx = _onnx()
    own = {(function.domain, function.name) for function in model.functions}
    for where, message in _messages(model, "model"):
        if not isinstance(message, onnx.NodeProto):
            continue
        operator = f"{message.domain}.{message.op_type}" if message.domain else message.op_type
        if message.op_type == "EPContext":
            raise ModelError(
                f"{where} is an EPContext node, a compiled blob for one device:"
                " import the ONNX file that it was compiled from"
            )
        if message.domain not in _KNOWN_DOMAINS and (message.domain, message.op_type) not in own:
            raise ModelError(
                f"{where} uses the operator {operator}, which plain ONNX Runtime does not know:"
                " re-export the model with the operators of ai.onnx, ai.onnx.ml or com.microsoft"
            )


def _with_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fill in what some exporters leave out and the checker wants: the shapes of the outputs."""
    if all(
        v.type.WhichOneof("value") != "tensor_type" or v.type.tensor_type.HasField("shape") for v in model.graph.output
    ):
        return model
    try:
        return _onnx().shape_inference.infer_shapes(model)
    except Exception as error:
        raise ModelError(
            f"the shapes of the outputs cannot be inferred: {_first_line(error)}; export with shapes"
        ) from error


def _check(model: onnx.ModelProto) -> None:
    try:
        _onnx().checker.check_model(model)
    except Exception as error:
        raise ModelError(f"the ONNX checker refuses the model: {_first_line(error)}; export the model again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _signature(model: onnx.ModelProto) -> tuple[tuple[TensorSignature, ...], tuple[TensorSignature, ...]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    inputs = tuple(_tensor(v, "input") for v in model.graph.input if v.name not in weights)
    outputs = tuple(_tensor(v, "output") for v in model.graph.output)
    if not inputs or not outputs:
        raise ModelError("the model has no input or no output: nothing could be submitted to it or read from it")
    return inputs, outputs


def _tensor(value: Any, side: str) -> TensorSignature:
    onnx = _onnx()
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type" and value.type.sequence_type.elem_type.WhichOneof("value") == "map_type":
        raise ModelError(
            f"{side} {value.name!r} is a sequence of maps (ZipMap): convert again with options={{'zipmap': False}}"
        )
    if kind != "tensor_type":
        raise ModelError(
            f"{side} {value.name!r} is a {kind or 'value without a type'}: only tensors can be served;"
            " re-export it as a tensor"
        )
    tensor = value.type.tensor_type
    element = next((name for name, number in onnx.TensorProto.DataType.items() if number == tensor.elem_type), "?")
    if element not in _DTYPES:
        raise ModelError(
            f"{side} {value.name!r} has the element type {element}: cast it to one of {', '.join(_DTYPES.values())}"
        )
    if not tensor.HasField("shape"):
        raise ModelError(
            f"{side} {value.name!r} declares no shape: re-export it with its axes declared (free ones by name)"
        )
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim)
    return TensorSignature(value.name, _DTYPES[element], shape)


def _refuse_bad_batch_axes(inputs: Sequence[TensorSignature], outputs: Sequence[TensorSignature]) -> None:
    for side, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            if not tensor.shape:
                raise ModelError(f"{side} {tensor.name!r} is a scalar: give it a first axis, which counts the rows")
    for tensor in inputs:
        if tensor.shape[0] not in {None, 1}:
            raise ModelError(
                f"input {tensor.name!r} wants exactly {tensor.shape[0]} rows at a time:"
                " re-export with a free first axis (dynamic_axes, dynamic_shapes or initial_types with None)"
            )


def _open_session(data: bytes) -> None:
    """Let the runtime that will serve the model have the last word, on the CPU and with the worker's optimisations."""
    try:
        import onnxruntime  # noqa: PLC0415  # see _onnx
    except ImportError as error:
        raise ModelError(
            "ONNX Runtime is not installed here, so no model can be checked:"
            " install batchline[worker-cpu] or batchline[worker-gpu]"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open the model: {_first_line(error)};"
            " re-export it for an opset that this version knows"
        ) from error


def bound_this_process() -> None:
    """A small file can ask for much memory and time: constants are folded when it is opened."""
    for kind, wanted in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def main(arguments: Sequence[str]) -> int:
    """Print the signature, nothing for a sound tokenizer, or the reason as JSON; return the exit status."""
    about_text = arguments[:1] == ["--text"]
    if len(arguments) < 3 if about_text else len(arguments) != 1:
        answer, status = {"error": "usage: python -m workers.probe PATH | --text PATH MAX_LENGTH INPUT ..."}, 2
    else:
        try:
            bound_this_process()
            if about_text:
                answer, status = probe_text(Path(arguments[1]), int(arguments[2]), arguments[3:]), 0
            else:
                answer, status = probe(Path(arguments[0])), 0
        except ModelError as error:
            answer, status = {"error": error.detail[:_MESSAGE_CHARS]}, 1
        except MemoryError:
            answer, status = {"error": "the model wants more memory than a check may use: make it smaller"}, 1
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
