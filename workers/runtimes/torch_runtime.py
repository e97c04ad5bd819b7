"""PyTorch on the CPU or on a CUDA device: programs that torch.export.save wrote.

The CUDA way has never run on a GPU: only its refusal to fall back to the CPU is tested.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchline.errors import ModelError, OutOfMemoryError
from batchline.model import ModelSpec
from batchline.rows import Array
from workers.runtimes import pt2
from workers.runtimes.contract import OpenRuntime

torch: Any = importlib.import_module("torch")  # untyped: types are checked where PyTorch is not installed, too
_signature: Any = importlib.import_module("torch.export.graph_signature")

log = logging.getLogger("workers")

TorchTensor = Any
"""A torch.Tensor."""

# Arrays over the bytes of a job cannot be written, and are not: see `Program.writes`.
warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")

DTYPES: dict[Any, str] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "FP32",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
"""PyTorch's data types -> what a client sends and gets; bfloat16 travels as FP32, which holds all its values."""

_NO_ROOM = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
_LOST = ("device-side assert", "illegal memory access", "unspecified launch failure", "cublas_status_", "cudnn_status_")
_LOST_DEVICE = 71


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a program; a free axis is what PyTorch calls it, else its length."""

    name: str
    dtype: Any
    """PyTorch's."""
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """An opened program, as a function of flat tensors: its own ones first, as `arguments` has them."""

    module: Callable[..., Sequence[Any]]
    arguments: tuple[Any, ...]
    """The program's own tensors and constants; an Ellipsis for each input, in the order of `inputs`."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    places: tuple[int, ...]
    """Where each of `outputs` is in what the function returns."""
    ranges: Mapping[str, tuple[int, int | None]]
    """Least and most of each free axis, by its name; None: no bound."""
    writes: bool
    """Whether some operator may write into what it is given."""

    def run(self, inputs: Sequence[TorchTensor]) -> list[TorchTensor]:
        """One tensor for each output."""
        given = iter(inputs)
        with torch.inference_mode():
            values = self.module(*(next(given) if a is ... else a for a in self.arguments))
        return [values[place] for place in self.places]


def open_program(data: bytes, device: str) -> Program:
    """Open what torch.export.save wrote; nothing of the file is unpickled, imported or evaluated: see `pt2`.

    Raises:
        ModelError: it is refused or cannot be opened; says why.
    """
    archive = pt2.clean(data, device=device)
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        exported = torch.export.load(io.BytesIO(archive.data))
        return _program(exported, archive.outputs)
    except ModelError:
        raise
    except Exception as e:  # of any class: whatever a strange graph makes PyTorch stumble over
        why = f"{type(e).__name__}: {first_line(e)}"
        raise ModelError(f"PyTorch {torch.__version__} cannot open it: {why}; save it again with this version") from e


def _program(exported: Any, names: Sequence[str]) -> Program:
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    arguments: list[Any] = []
    inputs: list[Tensor] = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is not _signature.InputKind.USER_INPUT:
            arguments.append(_own(exported, spec.target or ""))
        elif isinstance(spec.arg, _signature.ConstantArgument):
            arguments.append(spec.arg.value)
        elif isinstance(spec.arg, _signature.TensorArgument):
            arguments.append(...)
            inputs.append(_tensor(spec.arg.name, values[spec.arg.name]))
        else:
            raise ModelError(f"its input {spec.arg.name!r} is a number and no tensor: pass it as a tensor [B]")
    outputs: list[Tensor] = []
    places: list[int] = []
    specs = exported.graph_signature.output_specs
    for place, (spec, name) in enumerate(zip(specs, names, strict=True)):
        if isinstance(spec.arg, _signature.TensorArgument):
            outputs.append(_tensor(name, values[spec.arg.name]))
            places.append(place)
        elif not isinstance(spec.arg, _signature.ConstantArgument):
            raise ModelError(f"its output {name!r} is a number and no tensor: return a tensor [B, ...]")
    return Program(
        exported.graph_module,
        tuple(arguments),
        tuple(inputs),
        tuple(outputs),
        tuple(places),
        {str(symbol): _bounds(found) for symbol, found in exported.range_constraints.items()},
        _writes(exported.graph_module),
    )


def _writes(module: Any) -> bool:
    graphs = [m.graph for m in module.modules() if isinstance(m, torch.fx.GraphModule)]
    schemas = [getattr(node.target, "_schema", None) for graph in graphs for node in graph.nodes]
    return any(getattr(schema, "is_mutable", False) for schema in schemas)


def _own(exported: Any, target: str) -> TorchTensor:
    found = exported.state_dict.get(target)
    return (exported.constants[target] if found is None else found).detach()


def _tensor(name: str, value: TorchTensor) -> Tensor:
    return Tensor(name, value.dtype, tuple(d if isinstance(d, int) else str(d) for d in value.shape))


def _bounds(found: Any) -> tuple[int, int | None]:
    most = str(found.upper)
    return int(found.lower), int(most) if most.isdecimal() else None


def first_line(error: Exception) -> str:
    """What an error says, shortly."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def resolved(device: str) -> str:
    """`cpu` or `cuda:N`.

    Raises:
        ModelError: there is no such device here.
    """
    if device == "cpu":
        return device
    index = int(device.partition(":")[2] or 0)
    if index >= (count := torch.cuda.device_count()):
        raise ModelError(
            f"the model was to run on {device}, and PyTorch {torch.__version__} sees {count} CUDA devices here: install"
            " a build of PyTorch for CUDA, check the driver, or set BATCHLINE_DEVICE=cpu."
        )
    return f"cuda:{index}"


def opener(device: str, threads: int) -> OpenRuntime:
    """Open models on `device` with so many threads inside an operator; the number holds for the whole process."""
    torch.set_num_threads(threads)

    def open_model(spec: ModelSpec, data: bytes) -> TorchRuntime:
        return TorchRuntime(spec, data, device=device)

    return open_model


class TorchRuntime:
    """One program. PyTorch lets go of the interpreter's lock inside its operators."""

    def __init__(
        self, spec: ModelSpec, data: bytes, *, device: str, lost: Callable[[], None] = lambda: os._exit(_LOST_DEVICE)
    ) -> None:
        """Open the model.

        Args:
            spec: what the catalogue knows of it.
            data: the file.
            device: `cpu`, `cuda` or `cuda:N`.
            lost: called when the device does not work any more for this process.

        Raises:
            ModelError: it cannot be opened, or it is not the model of the spec, or there is no such device.
        """
        try:
            self._device = torch.device(resolved(device))
            self._program = open_program(data, str(self._device))
        except ModelError as e:
            raise ModelError(f"{spec.ref} cannot be opened: {e.detail}") from e
        self._ref = spec.ref
        self._lost = lost
        elsewhere = [a for a in self._program.arguments if isinstance(a, torch.Tensor) and a.device != self._device]
        if elsewhere:
            raise ModelError(f"{spec.ref} was to run on {self._device}, and {len(elsewhere)} tensors are elsewhere.")
        told = [[t.name for t in side] for side in (spec.inputs, spec.outputs)]
        if told != [[t.name for t in side] for side in (self._program.inputs, self._program.outputs)]:
            raise ModelError(f"{spec.ref} has other inputs or outputs than the catalogue knows.")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            given = [self._given(inputs[t.name], t.dtype) for t in self._program.inputs]
            values = self._program.run(given)
            return {t.name: _taken(value) for t, value in zip(self._program.outputs, values, strict=True)}
        except (MemoryError, torch.OutOfMemoryError) as e:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemoryError("the device had no room for this micro-batch") from e
        except RuntimeError as e:
            said = str(e).lower()
            if any(sign in said for sign in _NO_ROOM):
                raise OutOfMemoryError("the machine had no room for this micro-batch") from e
            if self._device.type == "cuda" and any(sign in said for sign in _LOST):
                # After that every call fails, whatever its rows: the jobs come back, one by one if need be.
                log.error("the CUDA device is lost to this process, which ends", extra={"model": self._ref})  # noqa: TRY400
                self._lost()
            raise

    def _given(self, array: Array, dtype: Any) -> TorchTensor:
        return torch.from_numpy(array).to(self._device, dtype, copy=self._program.writes)


def _taken(value: TorchTensor) -> Array:
    value = value.detach()
    if value.dtype is torch.bfloat16:
        value = value.float()
    return np.asarray(value.cpu().resolve_conj().resolve_neg().numpy())
