"""models quantize: an int8 copy of a model as its next version, and what it gains and costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from batchline.cli.output import Json, busy, note, tell, tell_json, tell_table
from batchline.cli.places import FOLDER, Folder, load_settings, opened_store
from batchline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Generator

    from batchline.agreement import Agreement, Report
    from batchline.data.model_blobs import ModelBlobs
    from batchline.model import ModelSpec
    from batchline.settings import Settings
    from batchline.store import Store
    from batchline.traffic import Versions

_QUANTIZE_S = 1800.0


class _Refusal(msgspec.Struct, frozen=True):
    error: str


def quantize(
    model: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The model; its production version if none.")],
    *,
    rows: Annotated[
        Path | None,
        typer.Option(help="A file with a JSON array of rows, or - for stdin; random ones if none."),
    ] = None,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Add an int8 copy of a model as its next version.

    The weights become int8; what a pass computes with is quantized as it comes. Both are run on the rows of --rows,
    else on random ones, and compared; agreement on random rows says little. Needs the database, not the API.
    """
    given = _read(rows) if rows is not None else None
    settings = load_settings(folder)
    name, _, version = model.partition("@")
    from batchline import registry
    from batchline.data import places_of
    from batchline.data.blobs import Blobs
    from batchline.data.model_blobs import ModelBlobs
    from batchline.traffic import Versions

    blobs = ModelBlobs(Blobs(places_of(settings)))
    with opened_store(settings) as store, tempfile.TemporaryDirectory(prefix="batchline-quantize-") as scratch:
        spec = _find(Versions(store.catalogue.models(), store.traffic.rules()), name, version)
        copy = Path(scratch)
        policy = _take(spec, settings, blobs, copy)
        with busy(f"quantizing {spec.ref} …"):
            report = _quantized(spec, given, copy, settings.intra_op_threads)
        with busy("checking the copy …"), _production_stays(store, name):
            added = registry.import_model(
                settings.models, name, copy, store.catalogue.register_model, policy, publish=blobs.publish
            )
    if as_json:
        tell_json({"model": spec.ref, "quantized": added.ref, **msgspec.to_builtins(report)})
        return
    _tell(spec.ref, added.ref, report)


def _read(path: Path) -> bytes:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        msgspec.json.decode(data, type=list[msgspec.Raw])
    except OSError as e:
        raise typer.BadParameter(f"{path} cannot be read: {e.strerror}", param_hint="--rows") from None
    except (msgspec.DecodeError, UnicodeError) as e:
        raise typer.BadParameter(f"this is no JSON array of rows: {e}", param_hint="--rows") from None
    return data


def _find(versions: Versions, name: str, version: str) -> ModelSpec:
    """The version that is meant; production if none is named."""
    if not versions.of(name):
        raise ModelError(f"There is no model {name!r} in the catalogue: see `batchline models list`.")
    record = versions.find(name, version or None)
    if record is None:
        raise ModelError(f"{name} has no version {version!r}: it {versions.must_be(name, version or None)}.")
    from batchline.model import MODEL_FILE

    if record.spec.file != MODEL_FILE:
        raise ModelError(f"{record.spec.ref} is a PyTorch program: int8 copies are made of ONNX models only.")
    return record.spec


@contextmanager
def _production_stays(store: Store, name: str) -> Generator[None]:
    """A new version of the model, added in the block, takes no traffic: without a rule the highest one would."""
    from batchline.traffic import Rule

    if name in store.traffic.rules():
        yield
        return
    highest = max(int(record.spec.version) for record in store.catalogue.models() if record.spec.name == name)
    store.traffic.put(name, Rule(highest))
    try:
        yield
    except BaseException:
        store.traffic.delete(name)
        raise
    note(f"{name}@{highest} is pinned as production: what is imported later waits for `batchline models promote` too")


def _take(spec: ModelSpec, settings: Settings, blobs: ModelBlobs, into: Path) -> dict[str, object] | None:
    """Put the files of a version into a folder: from the repository if they are there, else from the blob store.

    Returns:
        What model.toml must say where the repository has none: what the catalogue knows.

    Raises:
        ModelError: a file is nowhere, or has other bytes than the catalogue knows.
        SourceUnavailableError: the blob store does not answer.
    """
    import hashlib

    from batchline.registry import POLICY_FILE

    source = settings.models / spec.name / spec.version
    for file, digest in spec.files.items():
        try:
            data = (source / file).read_bytes()
        except OSError:
            data = blobs.fetch(digest)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ModelError(f"{source / file} has other bytes than the catalogue knows: import the model again.")
        (into / file).write_bytes(data)
    try:
        (into / POLICY_FILE).write_bytes((source / POLICY_FILE).read_bytes())
    except OSError:
        return msgspec.to_builtins({"policy": spec.policy, "text": spec.text})
    return None


def _quantized(spec: ModelSpec, rows: bytes | None, folder: Path, threads: int) -> Report:
    """Replace the folder's model by its int8 copy.

    Raises:
        ModelError: it cannot be, or the rows do not fit; the message says why.
    """
    from batchline.agreement import Report
    from batchline.model import MODEL_FILE

    request = msgspec.json.encode({"spec": spec, "rows": msgspec.Raw(rows or b"null"), "threads": threads})
    command = [sys.executable, "-P", "-m", "workers.quantize", str(folder)]
    environ = os.environ | {"TMPDIR": str(folder)}  # where ONNX Runtime keeps copies while it works
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, timeout=_QUANTIZE_S, check=False, env=environ
        )
    except subprocess.TimeoutExpired as e:
        raise ModelError(f"{spec.ref} could not be quantized within {_QUANTIZE_S:.0f} s.") from e
    try:
        if done.returncode:
            raise ModelError(msgspec.json.decode(done.stdout, type=_Refusal).error)
        report = msgspec.json.decode(done.stdout, type=Report)
    except msgspec.DecodeError as e:
        raise ModelError(f"Quantizing {spec.ref} ended with status {done.returncode}; nothing is imported.") from e
    (folder / "quantized.onnx").replace(folder / MODEL_FILE)
    return report


def _tell(before: str, after: str, report: Report) -> None:
    sides = (report.before, report.after)
    tell_table(
        ["", before, after],
        [
            ("bytes", *(f"{side.bytes:,}" for side in sides)),
            (f"ms for a pass of {report.pass_rows}", *(f"{side.pass_ms:.3f}" for side in sides)),
        ],
    )
    kind = "random rows" if report.random else "rows"
    tell_table(
        [f"over {report.rows:,} {kind}", "same label or argmax", "largest difference", "mean difference"],
        [(a.output, _share(a), _number(a.largest_difference), _number(a.mean_difference)) for a in report.outputs],
    )
    for a in report.outputs:
        if a.non_finite:
            note(f"{a.output}: {a.non_finite} values are NaN or infinite in one of both only")
    if report.random:
        note("the rows were random: give real ones with --rows before you trust the agreement")
    tell(f"{after} is in the catalogue and takes no traffic until `batchline models promote`.")


def _share(agreement: Agreement) -> str:
    return "" if agreement.same is None else f"{agreement.same:.2%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
