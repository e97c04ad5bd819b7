"""The model repository on disk: what is found, what is refused, and that imports are whole or not at all."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import small_models

from batchline import registry
from batchline.errors import InvalidRequestError, ModelError, StoreUnavailableError
from batchline.model import BatchPolicy, ModelSpec, Padding
from batchline.registry import Signature


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return small_models.double(tmp_path / "source.onnx")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


class Catalogue:
    """Remembers specs; refuses numbers it knows, as the real one refuses other bytes under a known version."""

    def __init__(self, known: int = 0) -> None:
        self.specs: list[ModelSpec] = []
        self.known = known

    def register(self, spec: ModelSpec) -> int:
        if int(spec.version) <= self.known:
            raise InvalidRequestError("known with other bytes")
        self.specs.append(spec)
        return len(self.specs)


def a_signature(*, batchable: bool = True) -> Signature:
    return Signature((), (), batchable=batchable, bytes=1, sha256="d")


def test_an_imported_model_is_found_with_signature_and_policy(repository: Path, onnx_file: Path) -> None:
    """Import, then scan; the spec has what the file and the policy say."""
    catalogue = Catalogue()
    policy = {"policy": {"max_batch_size": 8, "padding": {"mode": "pad", "value": 2.5}}}
    spec = registry.import_model(repository, "double", onnx_file, catalogue.register, policy)
    assert catalogue.specs == [spec]
    assert spec.ref == "double@1"
    assert spec.inputs[0].shape == (2,)
    assert spec.policy == BatchPolicy(max_batch_size=8, padding=Padding(mode="pad", value=2.5))
    assert [(f.name, f.version, f.problem) for f in registry.scan(repository)] == [("double", "1", None)]


def test_versions_count_up_and_pass_over_those_that_the_catalogue_knows(repository: Path, onnx_file: Path) -> None:
    """A new repository beside an old catalogue goes on where the old one ended."""
    catalogue = Catalogue(known=2)
    refs = [registry.import_model(repository, "double", onnx_file, catalogue.register).ref for _ in range(2)]
    assert refs == ["double@3", "double@4"]
    assert sorted(p.name for p in (repository / "double").iterdir()) == ["3", "4"]


def test_a_refused_file_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    """The reason is the probe's; the repository is as it was."""
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(ModelError, match="pickle"):
        registry.import_model(repository, "bad", bad, Catalogue().register)
    assert list(repository.iterdir()) == []


def test_a_refusal_names_the_file_that_was_given(repository: Path, tmp_path: Path) -> None:
    """Not the copy that was checked, whose folder is gone by then: of a file, and of a folder with a policy."""
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"")
    with pytest.raises(ModelError) as refused:
        registry.import_model(repository, "bad", bad, Catalogue().register)
    assert refused.value.detail.startswith(f"{bad}: ")
    folder = tmp_path / "folder"
    folder.mkdir()
    small_models.double(folder / "model.onnx")
    (folder / "model.toml").write_text("[policy]\nmax_batch_size = 0\n")
    with pytest.raises(ModelError) as refused:
        registry.import_model(repository, "bad", folder, Catalogue().register)
    assert refused.value.detail.startswith(f"{folder / 'model.toml'}: ")
    assert ".import-" not in refused.value.detail


def test_an_import_that_the_catalogue_did_not_take_leaves_nothing_behind(repository: Path, onnx_file: Path) -> None:
    """Postgres away: the import fails whole and may be repeated."""

    def away(_: ModelSpec) -> int:
        raise StoreUnavailableError("away")

    with pytest.raises(StoreUnavailableError):
        registry.import_model(repository, "double", onnx_file, away)
    assert registry.scan(repository) == []


def test_a_tokenizer_that_cannot_be_used_is_refused(repository: Path, tmp_path: Path) -> None:
    """It is opened at the import, not at the first job."""
    source = small_models.double(tmp_path / "source" / "model.onnx").parent
    (source / "model.toml").write_text("[text]\n")
    for content in ("garbage", "{}"):
        (source / "tokenizer.json").write_text(content)
        with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
            registry.import_model(repository, "text", source, Catalogue().register)
    assert registry.scan(repository) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[policy]\nmax_batchsize = 3\n", "max_batchsize"),
        ("[policy]\nmax_batch_size = 'many'\n", r"\$\.policy\.max_batch_size"),
        ("[polizy]\n", "polizy"),
        ("[policy.padding]\nmode = 'stretch'\n", r"\$\.policy\.padding\.mode"),
        ("[policy]\nmax_batch_size = 0\n", "max_batch_size"),
        ("[policy]\nmax_batch_size = 1000000000\n", "max_batch_size"),
        ("[policy]\nmax_batch_size = 100000000000000000000000\n", "max_batch_size"),
        ("[policy]\npredict_timeout_s = nan\n", "predict_timeout_s"),
        ("[policy]\npredict_timeout_s = inf\n", "predict_timeout_s"),
        ("[policy]\nmax_queue_delay_microseconds = 3600000000\n", "max_queue_delay_microseconds"),
        ("[policy.padding]\nvalue = nan\n", r"padding\.value"),
        ("[policy]\npool = 'a b'\n", "pool"),
        ('[policy]\npool = "a\\u0000"\n', "pool"),
        ("x = " + "[" * 5000 + "\n", "model.toml"),
        ("#" * 100_000, "larger than"),
        ("[text]\ntokenizer = 'nowhere.json'\n", "nowhere.json"),
        ("[text]\ntokenizer = '../../secret.json'\n", "secret.json"),
        ("[policy\n", "model.toml"),
    ],
)
def test_a_policy_with_a_fault_is_refused_with_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    """Unknown keys, wrong types, impossible values, a tokenizer that is not beside the model."""
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises(ModelError, match=named) as caught:
        registry.read_spec(tmp_path, "m", "1", a_signature())
    assert "model.toml" in caught.value.detail


def test_a_policy_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A pipe would keep its reader waiting, a device would never end."""
    os.mkfifo(tmp_path / "model.toml")
    with pytest.raises(ModelError, match="regular"):
        registry.read_spec(tmp_path, "m", "1", a_signature())


@pytest.mark.parametrize(
    ("mode", "shape", "refused"),
    [("pad", (None, None), True), ("pad", (None, 3), False), ("none", (None, None), False)],
)
def test_outputs_that_padding_would_lengthen_are_refused(
    tmp_path: Path, mode: str, shape: tuple[int | None, ...], refused: bool
) -> None:
    """A result must not depend on the longest row that happened to run beside it."""
    (tmp_path / "model.toml").write_text(f"[policy.padding]\nmode = '{mode}'\n")
    told = msgspec.to_builtins(a_signature()) | {"outputs": [{"name": "y", "dtype": "FP32", "shape": shape}]}
    signature = msgspec.convert(told, Signature)
    with pytest.raises(ModelError, match="free axis") if refused else nullcontext():
        registry.read_spec(tmp_path, "m", "1", signature)


def test_a_model_without_a_free_first_axis_runs_row_by_row(tmp_path: Path) -> None:
    """Its max_batch_size is 1, whatever model.toml says."""
    (tmp_path / "model.toml").write_text("[policy]\nmax_batch_size = 64\n")
    assert registry.read_spec(tmp_path, "m", "1", a_signature(batchable=False)).policy.max_batch_size == 1


def test_a_scan_names_what_is_wrong_and_passes_over_work_in_progress(repository: Path) -> None:
    """Bad names, bad versions and missing files are told, each folder once; those with a dot are nobody's business."""
    for path in (
        "Upper/1",
        "Upper/2",
        "fine/01",
        "fine/a",
        "fine/b",
        "fine/c",
        "fine/1",
        "fine/.import-x",
        ".hidden/1",
    ):
        (repository / path).mkdir(parents=True)
    found: dict[tuple[str, str], Any] = {(f.name, f.version): f.problem for f in registry.scan(repository)}
    assert set(found) == {("Upper", ""), ("fine", ""), ("fine", "1")}
    assert all(found.values())
    assert "no version: 01, a, b, …" in found["fine", ""]


def test_a_repository_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """A worker may be up before the first import."""
    assert registry.scan(tmp_path / "nowhere") == []
