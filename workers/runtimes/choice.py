"""Which runtime opens which kind of model, and whether it is installed here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from batchline.errors import RuntimeMissingError, SettingsError
from batchline.model import MODEL_FILE, TORCH_FILE, ModelSpec
from workers.runtimes.contract import OpenRuntime, Runtime


@dataclass(frozen=True, slots=True)
class _Kind:
    title: str
    package: str
    module: str
    install: str


_KINDS = {
    MODEL_FILE: _Kind(
        "ONNX Runtime", "onnxruntime", "workers.runtimes.onnx_runtime", "batchline[worker-cpu] or batchline[worker-gpu]"
    ),
    TORCH_FILE: _Kind("PyTorch", "torch", "workers.runtimes.torch_runtime", "batchline[torch]"),
}


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


class Runtimes:
    """Opens models of every kind whose runtime is here; PyTorch, which takes seconds, is imported by its first."""

    def __init__(self, device: str, threads: int, installed: Callable[[str], bool] = is_installed) -> None:
        """Raises SettingsError when this process could open nothing at all.

        Args:
            device: `cpu`, `cuda` or `cuda:N`.
            threads: inside an operator.
            installed: whether a package is.
        """
        self._device = device
        self._threads = threads
        self._here = {file for file, kind in _KINDS.items() if installed(kind.package)}
        if not self._here:
            raise SettingsError("No runtime is installed here: install batchline[worker-cpu], or batchline[torch].")
        self._openers: dict[str, OpenRuntime] = {}
        if MODEL_FILE in self._here:
            self._opener(MODEL_FILE)

    def check(self, spec: ModelSpec) -> None:
        """Raises RuntimeMissingError if a model of this kind can be run by others only."""
        kind = _KINDS.get(spec.file)
        if kind is None:
            raise RuntimeMissingError(f"{spec.ref} is a {spec.file}, which this release does not know.")
        if spec.file not in self._here:
            raise RuntimeMissingError(
                f"{spec.ref} needs {kind.title}, which is not installed here: install {kind.install}, or leave it to"
                " the workers that have it."
            )

    def open(self, spec: ModelSpec, data: bytes) -> Runtime:
        """Open a model from the bytes of its file.

        Raises:
            ModelError: it cannot be opened.
            RuntimeMissingError: not here.
        """
        self.check(spec)
        return self._opener(spec.file)(spec, data)

    def _opener(self, file: str) -> OpenRuntime:
        if file not in self._openers:
            kind = _KINDS[file]
            try:
                module = importlib.import_module(kind.module)
            except (ImportError, OSError) as e:
                raise RuntimeMissingError(f"{kind.title} is installed here and cannot be imported: {e}.") from e
            self._openers[file] = module.opener(self._device, self._threads)
        return self._openers[file]
