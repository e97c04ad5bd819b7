"""The model repository on disk: NAME/VERSION/{model.onnx, model.toml, tokenizer.json}, read, checked and added to.

A PyTorch model is a model.pt2 in the place of model.onnx.

Versions are whole numbers and never change once they are there: a new version comes as a temporary folder beside its
place and is renamed into it. The model's file itself is read by `python -m workers.probe`, a process of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from batchline.errors import BatchlineError, InvalidRequestError, ModelError
from batchline.model import (
    MODEL_FILE,
    MODEL_FILES,
    TORCH_FILE,
    BatchPolicy,
    ModelSpec,
    TensorSpec,
    TextFront,
    check_name,
    check_version,
)

POLICY_FILE = "model.toml"
_PROBE_S = 900.0
_TRIES = 100
_SHOWN = 3
_MAX_POLICY_BYTES = 64 * 1024
_MAX_BATCH_SIZE = 65_536
_MAX_DELAY_US = 10_000_000
"""Rows wait for others under a lease."""
_MAX_PREDICT_S = 86_400.0
_POOL = re.compile(r"[a-zA-Z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class Found:
    """A version in the repository, and what is wrong with it at first sight."""

    name: str
    version: str
    path: Path
    problem: str | None = None


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Signature(msgspec.Struct, frozen=True):
    """What the probe tells of a model's file; the first axis of every shape is the batch axis."""

    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    batchable: bool
    bytes: int
    sha256: str
    file: str = MODEL_FILE
    most_rows: int | None = None


class _Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    policy: BatchPolicy = BatchPolicy()
    text: TextFront | None = None


class _Answer(msgspec.Struct, frozen=True):
    error: str


class _Sound(msgspec.Struct, frozen=True):
    """What the probe says of a tokenizer that can be used."""


_T = TypeVar("_T")


def scan(repository: Path) -> list[Found]:
    """List the versions of a repository, sorted; a repository that is not there is empty.

    Folders whose name begins with a dot are work in progress and passed over. What is wrong with a folder of versions
    as a whole is told once, however much it holds (a link may lead anywhere): its version is empty.
    """
    found: list[Found] = []
    for name in _folders(repository):
        versions = _folders(name)
        strange = [v.name for v in versions if _is_refused(check_version, v.name)]
        if versions and _is_refused(check_name, name.name):
            found.append(Found(name.name, "", name, f"{name.name!r} is no model name; {name} is passed over."))
            continue
        if strange:
            shown = ", ".join(sorted(strange)[:_SHOWN]) + (", …" if len(strange) > _SHOWN else "")
            problem = f"{name} holds what is no version: {shown}; versions are whole numbers from 1."
            found.append(Found(name.name, "", name, problem))
        found += [Found(name.name, v.name, v, _problem(v)) for v in versions if v.name not in strange]
    return sorted(found, key=lambda f: (f.name, f.version.zfill(9)))


def _folders(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return []


def _is_refused(check: Callable[[str], str], text: str) -> bool:
    try:
        check(text)
    except InvalidRequestError:
        return True
    return False


def _problem(path: Path) -> str | None:
    have = [name for name in MODEL_FILES if (path / name).is_file()]
    if len(have) > 1:
        return f"{path} has {' and '.join(have)}: a version is one model, take the other out."
    return None if have else f"{path} has no {' or '.join(MODEL_FILES)}: put the model there."


def _model_in(folder: Path) -> Path:
    if problem := _problem(folder):
        raise ModelError(problem)
    return next(folder / name for name in MODEL_FILES if (folder / name).is_file())


def read_spec(path: Path, name: str, version: str, signature: Signature) -> ModelSpec:
    """Put a version's signature and its model.toml together.

    Args:
        path: the version's folder.
        name: the model's.
        version: the version's.
        signature: what the probe told of its model's file.

    Raises:
        ModelError: model.toml does not say what it may say; names the file and the key.
    """
    extra = _read_policy(path / POLICY_FILE)
    policy = extra.policy
    fault = _policy_fault(policy)
    if fault:
        raise ModelError(f"{path / POLICY_FILE}: {fault}.")
    if policy.padding.mode == "pad" and (free := [t.name for t in signature.outputs if None in t.shape[1:]]):
        raise ModelError(
            f"{path / POLICY_FILE}: padding.mode is 'pad', and the output {free[0]} has a free axis: it would be as"
            " long as the longest row in company. Use mode 'none', or export the model with outputs of fixed shape."
        )
    if not signature.batchable:
        policy = msgspec.structs.replace(policy, max_batch_size=1)
    if most := signature.most_rows:
        bulk = min(policy.max_bulk_batch_size or most, most)
        policy = msgspec.structs.replace(
            policy, max_batch_size=min(policy.max_batch_size, most), max_bulk_batch_size=bulk
        )
    if extra.text and not _is_beside(path, extra.text.tokenizer):
        raise ModelError(f"{path / POLICY_FILE}: the tokenizer {extra.text.tokenizer!r} is not beside the model.")
    return ModelSpec(
        name=check_name(name),
        version=check_version(version),
        digest=signature.sha256,
        size_bytes=signature.bytes,
        inputs=tuple(TensorSpec(t.name, t.dtype, t.shape[1:]) for t in signature.inputs),
        outputs=tuple(TensorSpec(t.name, t.dtype, t.shape[1:]) for t in signature.outputs),
        policy=policy,
        text=extra.text,
        file=signature.file,
    )


def fault_of(repository: Path, spec: ModelSpec, *, hashed: bool) -> str | None:
    """What would keep a worker from loading this version from the repository; None when nothing is seen.

    Args:
        repository: the folder of all models.
        spec: what the catalogue knows.
        hashed: whether to read the whole file and compare its sha256; else only its size is compared.
    """
    path = repository / spec.name / spec.version / spec.file
    try:
        with path.open("rb") as file:
            same = os.fstat(file.fileno()).st_size == spec.size_bytes
            if same and hashed:
                same = hashlib.file_digest(file, "sha256").hexdigest() == spec.digest
    except OSError as e:
        return f"{path} cannot be read: {e.strerror}."
    if not same:
        return f"{path} has other bytes than the catalogue knows."
    if spec.text and not _is_beside(path.parent, spec.text.tokenizer):
        return f"{path.parent / spec.text.tokenizer} is missing."
    return None


def _policy_fault(policy: BatchPolicy) -> str | None:
    """What of a policy cannot be; not a number (nan) is within no range."""
    if not 1 <= policy.max_batch_size <= _MAX_BATCH_SIZE:
        return f"max_batch_size must be 1 to {_MAX_BATCH_SIZE}"
    if policy.max_bulk_batch_size is not None and not 1 <= policy.max_bulk_batch_size <= _MAX_BATCH_SIZE:
        return f"max_bulk_batch_size must be 1 to {_MAX_BATCH_SIZE}"
    if not 0 < policy.predict_timeout_s <= _MAX_PREDICT_S:
        return f"predict_timeout_s must be above 0 and at most {_MAX_PREDICT_S}"
    if not 0 <= policy.max_queue_delay_microseconds <= _MAX_DELAY_US:
        return f"max_queue_delay_microseconds must be 0 to {_MAX_DELAY_US}"
    if not math.isfinite(policy.padding.value):
        return "padding.value must be a finite number"
    if not _POOL.fullmatch(policy.pool):
        return f"{policy.pool!r} is no pool: use up to 100 of a-z, A-Z, 0-9, '.', '_', '-'"
    return None


def _is_beside(path: Path, name: str) -> bool:
    return Path(name).name == name and (path / name).is_file()


def _read_policy(path: Path) -> _Policy:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"{path} is not a regular file.")
        with path.open("rb") as file:
            data = file.read(_MAX_POLICY_BYTES + 1)
        if len(data) > _MAX_POLICY_BYTES:
            raise ModelError(f"{path} is larger than {_MAX_POLICY_BYTES} bytes.")
        return msgspec.convert(tomllib.loads(data.decode()), _Policy)
    except FileNotFoundError:
        return _Policy()
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as e:
        raise ModelError(f"{path} cannot be used: {e}.") from e


def probe(path: Path) -> Signature:
    """Have a model's file checked and read by a process of its own; takes a second or two.

    Raises:
        ModelError: the file is refused; the message says why and what to do.
    """
    return _checked(path, [str(path)], Signature)


def read_version(path: Path, name: str, version: str) -> ModelSpec:
    """Check a version's folder as a whole, model, policy and tokenizer; takes some seconds.

    Args:
        path: the folder.
        name: the model's.
        version: the version's.

    Raises:
        ModelError: something in it is refused; the message says what, why and what to do.
    """
    model = _model_in(path)
    signature = probe(model)
    if model.name != signature.file:
        raise ModelError(f"{model} has another name than its kind has: call it {signature.file}.")
    spec = read_spec(path, name, version, signature)
    if spec.text:
        file = path / spec.text.tokenizer
        _checked(file, ["--text", str(file), str(spec.text.max_length), *(t.name for t in spec.inputs)], _Sound)
        return with_digest(spec, spec.text, file)
    return spec


def with_digest(spec: ModelSpec, text: TextFront, tokenizer: Path) -> ModelSpec:
    """The spec with its tokenizer's sha256.

    Raises:
        ModelError: model.toml named another, or the file cannot be read.
    """
    try:
        with tokenizer.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise ModelError(f"{tokenizer} cannot be read: {e.strerror}.") from e
    if text.digest not in ("", digest):
        raise ModelError(f"{tokenizer} has other bytes than {POLICY_FILE} says: text.digest is not its sha256.")
    return msgspec.structs.replace(spec, text=msgspec.structs.replace(text, digest=digest))


def _checked(path: Path, arguments: list[str], kind: type[_T]) -> _T:
    """What `python -m workers.probe` says of a file."""
    command = [sys.executable, "-P", "-m", "workers.probe", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as e:
        raise ModelError(f"{path} could not be checked within {_PROBE_S:.0f} s; it is not used.") from e
    try:
        if done.returncode == 0:
            return msgspec.json.decode(done.stdout, type=kind)
        raise ModelError(f"{path}: {msgspec.json.decode(done.stdout, type=_Answer).error}")
    except msgspec.DecodeError as e:
        raise ModelError(
            f"{path} made its check end with status {done.returncode}; it is not used. Is it sound?"
        ) from e


def install(repository: Path, name: str, source: Path, policy: Mapping[str, object] | None = None) -> tuple[str, Path]:
    """Copy a model, unchecked, into the repository as the next version of its name.

    Args:
        repository: made if it is not there.
        name: the model's.
        source: an .onnx or .pt2 file, or a folder with model.onnx or model.pt2 and what belongs to it.
        policy: the content of model.toml; what the folder has when absent.

    Returns:
        The new version and its folder.

    Raises:
        ModelError: the source holds no model, or no place was found for it.
    """
    with _draft(repository, name, source, policy) as draft:
        return _place(draft)


@contextlib.contextmanager
def _draft(repository: Path, name: str, source: Path, policy: Mapping[str, object] | None) -> Generator[Path]:
    """A copy of the source in a folder that nobody looks at, beside its place; gone afterwards unless it was moved."""
    folder = repository / check_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".import-", dir=folder))
    try:
        _copy(source, draft)
        if policy is not None:
            (draft / POLICY_FILE).write_text(_toml(policy), encoding="utf-8")
        draft.chmod(0o755)
        yield draft
    except ModelError as e:
        detail = e.detail
        for copied in [draft] if source.is_dir() else [draft / name for name in MODEL_FILES]:
            detail = detail.replace(str(copied), str(source))
        raise ModelError(detail) from e
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if nothing was ever imported


def _place(draft: Path, after: int = 0) -> tuple[str, Path]:
    """Move a version's folder to the next free number above `after`."""
    folder = draft.parent
    for _ in range(_TRIES):
        number = max((int(p.name) for p in _folders(folder) if p.name.isdigit()), default=0)
        version = str(max(number, after) + 1)
        try:
            draft.rename(folder / version)
        except OSError:  # another import took the number: its folder is there and not empty
            continue
        return version, folder / version
    raise ModelError(f"{folder} takes no new version: is it writable, and is nobody else importing without end?")


def _copy(source: Path, into: Path) -> None:
    try:
        if source.is_dir():
            for file in sorted(source.iterdir()):
                if file.is_file():
                    shutil.copyfile(file, into / file.name)
        else:
            shutil.copyfile(source, into / _name_for(source))
    except OSError as e:
        raise ModelError(f"{source} cannot be copied: {e.strerror}.") from e
    with _model_in(into).open("rb") as file:
        os.fsync(file.fileno())


def _name_for(source: Path) -> str:
    """What a version's folder calls this file: by its first bytes, as the probe reads it; its own name says nothing."""
    with source.open("rb") as file:
        return TORCH_FILE if file.read(4) == b"PK\x03\x04" else MODEL_FILE


def _toml(tables: Mapping[str, object], prefix: str = "") -> str:
    """The little of TOML that a policy needs: tables of numbers, strings and booleans; None is left out."""
    values = {k: v for k, v in tables.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{k} = {msgspec.json.encode(v).decode()}" for k, v in values.items()]
    parts = ["\n".join(lines)] if lines else []
    for key, value in tables.items():
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, Any]", value)
            parts.append(f"[{prefix}{key}]\n{_toml(inner, f'{prefix}{key}.')}")
    return "\n\n".join(parts)


def import_model(
    repository: Path,
    name: str,
    source: Path,
    register: Callable[[ModelSpec], int],
    policy: Mapping[str, object] | None = None,
    *,
    publish: Callable[[ModelSpec, Path], None] | None = None,
) -> ModelSpec:
    """Check a model, copy it into the repository as a new version, and put it into the catalogue.

    Args:
        repository: the folder of all models.
        name: the model's.
        source: an .onnx or .pt2 file, or a folder with model.onnx or model.pt2 and what belongs to it.
        register: the catalogue's `register_model`.
        policy: the content of model.toml; what the folder has when absent.
        publish: puts the version's files where all workers reach them; called with its spec and a folder that holds
            them, before it is registered. A worker on this repository does it later when absent.

    Raises:
        ModelError: the file is refused; nothing is left in the repository.
        SinkError, SinkUnavailableError: `publish` failed; nothing is left in the repository.
        InvalidRequestError: the name is none.
    """
    with _draft(repository, name, source, policy) as draft:
        spec = read_version(draft, name, "1")
        if publish is not None:
            publish(spec, draft)
        version, path = _place(draft)
        for _ in range(_TRIES):
            spec = msgspec.structs.replace(spec, version=version)
            try:
                register(spec)
            except InvalidRequestError:  # the catalogue knows this number from another repository
                version, path = _place(path, after=int(version))
                continue
            except BatchlineError:
                shutil.rmtree(path, ignore_errors=True)
                raise
            return spec
        shutil.rmtree(path, ignore_errors=True)
    raise ModelError(f"The catalogue has other models under the next {_TRIES} versions of {name}; use another name.")
