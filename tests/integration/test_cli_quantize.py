"""`batchline models quantize`: the next version of a model, beside the one that keeps its traffic."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_models
from cli_runner import Run, runner

from batchline.store import Store
from batchline.traffic import Rule

POLICY = """# ours
[policy]
max_batch_size = 8

[policy.padding]
mode = "none"
"""


@pytest.fixture
def run(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, on a database of its own; its exit code and both outputs."""
    call = runner(tmp_path, monkeypatch, capfd)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BATCHLINE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("BATCHLINE_BLOBS", f"file://{tmp_path / 'blobs'}")
    return call


def known(store: Store) -> list[str]:
    return [record.spec.ref for record in store.catalogue.models()]


def test_a_copy_becomes_the_next_version_and_takes_no_traffic(
    run: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its model.toml as it stands, compared on given rows; a rule that was set stays as it is."""
    source = small_models.scores(tmp_path / "source" / "model.onnx", 64).parent
    (source / "model.toml").write_text(POLICY)
    assert run("models", "import", "net", str(source))[0] == 0
    (tmp_path / "rows.json").write_text(json.dumps([[float(i % 7)] * 64 for i in range(20)]))
    code, out, err = run("models", "quantize", "net", "--rows", str(tmp_path / "rows.json"), "--json")
    assert "net@1 is pinned as production" in err
    told = json.loads(out)
    assert (code, told["model"], told["quantized"], told["rows"], told["random"]) == (0, "net@1", "net@2", 20, False)
    assert told["after"]["bytes"] < told["before"]["bytes"]
    folder = tmp_path / "models" / "net" / "2"
    assert (folder / "model.toml").read_text() == POLICY
    assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model.toml"]
    assert known(store) == ["net@1", "net@2"]
    assert store.traffic.rules()["net"].production == 1
    assert len(list((tmp_path / "blobs" / "models").iterdir())) == 2
    rule = store.traffic.put("net", Rule(1, None, shadow=2))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps([[1.0] * 64]).encode())))
    code, out, err = run("models", "quantize", "net@1", "--rows", "-")
    assert (code, err) == (0, "")
    assert "net@3 is in the catalogue and takes no traffic" in out
    assert store.traffic.rules()["net"] == rule


def test_random_rows_are_said_to_be_random(run: Run, store: Store, tmp_path: Path) -> None:
    """A text model with its tokenizer and policy, both from the blob store: the folder of models is empty here."""
    source = tmp_path / "source"
    small_models.token_scores(source)
    assert run("models", "import", "text", str(source), "--tokenizer", "tokenizer.json", "--padding", "pad")[0] == 0
    shutil.rmtree(tmp_path / "models")
    code, out, err = run("models", "quantize", "text")
    assert code == 0
    assert "over 256 random rows" in out
    assert "give real ones with --rows" in err
    before, after = (record.spec for record in store.catalogue.models())
    assert (after.version, after.text, after.policy, after.inputs) == ("2", before.text, before.policy, before.inputs)
    assert after.size_bytes < before.size_bytes
    folder = tmp_path / "models" / "text" / "2"
    assert tomllib.loads((folder / "model.toml").read_text())["text"]["tokenizer"] == "tokenizer.json"


def test_what_cannot_be_quantized_adds_nothing(run: Run, store: Store, tmp_path: Path) -> None:
    """One sentence and exit 1, no version, no rule: nothing to quantize, rows that do not fit, other bytes, unknown."""
    for name, make in (("double", small_models.double), ("net", small_models.scores)):
        assert run("models", "import", name, str(make(tmp_path / f"{name}.onnx")))[0] == 0
    (tmp_path / "rows.json").write_text("[[1.0]]")
    for words, reason in (
        (("double",), "double@1 has nothing to quantize"),
        (("net", "--rows", str(tmp_path / "rows.json")), "/0 has 1 values where x takes 32"),
        (("net@2",), "net has no version '2'"),
        (("nobody",), "no model 'nobody' in the catalogue"),
    ):
        code, out, err = run("models", "quantize", *words)
        assert (code, out) == (1, "")
        assert reason in err
    assert run("models", "quantize", "net", "--rows", str(tmp_path / "none.json"))[0] == 2
    (tmp_path / "models" / "net" / "1" / "model.onnx").write_bytes(b"spoilt")
    code, _, err = run("models", "quantize", "net")
    assert (code, "other bytes than the catalogue knows" in err) == (1, True)
    assert known(store) == ["double@1", "net@1"]
    assert store.traffic.rules() == {}
    assert sorted(p.name for p in (tmp_path / "models").glob("*/*")) == ["1", "1"]


def test_a_copy_that_cannot_be_added_leaves_no_rule(run: Run, store: Store, tmp_path: Path) -> None:
    """The blob store takes nothing."""
    assert run("models", "import", "net", str(small_models.scores(tmp_path / "net.onnx")))[0] == 0
    shutil.rmtree(tmp_path / "blobs")
    (tmp_path / "blobs").write_text("no folder")
    assert run("models", "quantize", "net")[0] == 1
    assert known(store) == ["net@1"]
    assert store.traffic.rules() == {}
