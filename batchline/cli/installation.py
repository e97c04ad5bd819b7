"""Is what is installed here whole? Python, our five packages, the runtimes of models."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("batchline", "api", "workers", "scheduler", "autoscaler")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "torch")
_OLDEST = (3, 11)


@dataclass(frozen=True)
class Finding:
    """How one part is, and if not well, what to do."""

    part: str
    well: bool
    detail: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    yield python(sys.version_info[:3])
    yield packages(_location, importlib.metadata.packages_distributions())
    yield runtime([name for name in RUNTIMES if _is_installed(name)])


def python(version: tuple[int, ...]) -> Finding:
    shown = ".".join(map(str, version))
    if version < _OLDEST:
        return Finding("python", False, shown, "Batchline needs 3.11 or newer.")
    return Finding("python", True, shown)


def packages(location: Callable[[str], Path | None], owners: Mapping[str, list[str]]) -> Finding:
    """Whether our five names are ours.

    Args:
        location: the folder that a package would be imported from.
        owners: package -> the distributions that have installed files under its name.
    """
    home = location("batchline")
    for name in PACKAGES:
        foreign = sorted(set(owners.get(name, [])) - {"batchline"})
        place = location(name)
        if foreign:
            advice = f"pip uninstall {foreign[0]}, then pip install --force-reinstall batchline."
            return Finding("packages", False, f"{foreign[0]} has written into our package {name}", advice)
        if place is None or home is None or place.parent != home.parent:
            advice = "Reinstall batchline, and run it where no folder of that name lies on Python's path."
            return Finding(
                "packages", False, f"{name} is {'missing' if place is None else f'taken from {place}'}", advice
            )
    return Finding("packages", True, f"all five come from {home.parent if home else None}")


def runtime(installed: list[str]) -> Finding:
    """The two distributions of ONNX Runtime overwrite each other's files; PyTorch stands beside either."""
    if len(set(installed) - {"torch"}) > 1:
        advice = "pip uninstall both, then install one of batchline[worker-cpu] and batchline[worker-gpu]."
        return Finding(
            "runtime",
            False,
            " and ".join(n for n in installed if n != "torch") + " are both installed and overwrite each other",
            advice,
        )
    if not installed:
        return Finding("runtime", True, "neither ONNX Runtime nor PyTorch: no worker can run here")
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in installed)
    lacks = "" if "torch" in installed else "; no PyTorch: a worker here leaves .pt2 models to others"
    return Finding("runtime", True, found + lacks)


def _location(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
