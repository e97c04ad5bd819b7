"""What torch.export.save writes, through the real probe and into the runtime; needs PyTorch."""

from __future__ import annotations

import io
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_nets as nets

from batchline import registry
from batchline.errors import ModelError, OutOfMemoryError
from batchline.model import ModelSpec
from workers.probe import probe
from workers.runtimes import pt2
from workers.runtimes.torch_runtime import TorchRuntime, open_program

ROWS = nets.ROWS


def imported(tmp_path: Path, file: Path, **policy: Any) -> tuple[ModelSpec, bytes]:
    """The spec as the probe's own process reads it, and the bytes in the repository."""
    spec = registry.import_model(tmp_path / "models", "net", file, lambda _: 1, {"policy": policy} if policy else None)
    return spec, (tmp_path / "models" / "net" / spec.version / "model.pt2").read_bytes()


def opened(tmp_path: Path, file: Path) -> TorchRuntime:
    spec, data = imported(tmp_path, file)
    return TorchRuntime(spec, data, device="cpu")


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        probe(path)  # in this process: PyTorch is here already
    return caught.value.detail


def test_a_program_answers_as_the_module_that_it_was_made_of(tmp_path: Path) -> None:
    """Names are the keys of what forward returns; batches of 1 and of 50 give what eager PyTorch gives."""
    file, net = nets.digits(tmp_path / "m.pt2")
    spec, data = imported(tmp_path, file)
    assert [(t.name, t.dtype, t.shape) for t in (*spec.inputs, *spec.outputs)] == [
        ("x", "FP32", (64,)),
        ("logits", "FP32", (10,)),
        ("label", "INT64", ()),
    ]
    assert (spec.file, spec.policy.max_batch_size) == ("model.pt2", 64)
    runtime = TorchRuntime(spec, data, device="cpu")
    for count in (1, 50):
        rows = np.random.default_rng(count).normal(size=(count, 64)).astype(np.float32)
        outputs = runtime.run({"x": rows})
        eager = net(torch.from_numpy(rows))
        np.testing.assert_allclose(outputs["logits"], eager["logits"].detach().numpy(), atol=1e-5)
        np.testing.assert_array_equal(outputs["label"], eager["label"].numpy())


def test_two_inputs_a_free_axis_and_bfloat16(tmp_path: Path) -> None:
    """A dynamic second axis is free; bfloat16 comes out as FP32 with the same values."""
    length = torch.export.Dim("length", min=1, max=64)
    both = {0: ROWS, 1: length}
    file = nets.save(tmp_path / "m.pt2", nets.Pair(), (torch.zeros(2, 3), torch.zeros(2, 3)), (both, both))
    spec, data = imported(tmp_path, file)
    assert [(t.name, t.dtype, t.shape) for t in (*spec.inputs, *spec.outputs)] == [
        ("a", "FP32", (None,)),
        ("b", "FP32", (None,)),
        ("sum", "FP32", (None,)),
        ("half", "FP32", (None,)),
    ]
    a, b = (np.random.default_rng(n).normal(size=(7, 5)).astype(np.float32) for n in (1, 2))
    outputs = TorchRuntime(spec, data, device="cpu").run({"a": a, "b": b})
    np.testing.assert_allclose(outputs["sum"], a + b, atol=1e-6)
    np.testing.assert_array_equal(
        outputs["half"], nets.Pair()(torch.from_numpy(a), torch.from_numpy(b))["half"].float()
    )


def test_a_fixed_batch_axis_means_one_row_at_a_time(tmp_path: Path) -> None:
    """Exported for one row: max_batch_size is 1; for five rows: refused, with the word that makes it dynamic."""
    net = nets.Picture()
    spec, data = imported(tmp_path, nets.save(tmp_path / "one.pt2", net, (torch.zeros(1, 3, 8, 8),)))
    assert (spec.policy.max_batch_size, spec.outputs[0].name, spec.outputs[0].shape) == (1, "output_0", (4,))
    row = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    output = TorchRuntime(spec, data, device="cpu").run({"x": row})["output_0"]
    np.testing.assert_allclose(output, net(torch.from_numpy(row)).numpy(), atol=1e-5)
    assert "dynamic_shapes" in refusal(nets.save(tmp_path / "five.pt2", net, (torch.zeros(5, 3, 8, 8),)))


def test_the_bound_of_a_batch_axis_bounds_the_micro_batch(tmp_path: Path) -> None:
    """Dim(max=24): neither jobs nor batches run more rows at once."""
    rows = torch.export.Dim("batch", max=24)
    file = nets.save(tmp_path / "m.pt2", nets.Table(), (torch.zeros(2, dtype=torch.int64),), ({0: rows},))
    policy = imported(tmp_path, file)[0].policy
    assert (policy.max_batch_size, policy.max_bulk_batch_size) == (24, 24)


class Changing(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.add_(1) * 2


def test_what_a_model_writes_into_is_a_copy(tmp_path: Path) -> None:
    """Rows may be tried again in smaller parts: an operator in place must not change them."""
    runtime = opened(tmp_path, nets.save(tmp_path / "m.pt2", Changing(), (torch.zeros(2, 3),), ({0: ROWS},)))
    rows = np.zeros((2, 3), np.float32)
    assert runtime.run({"x": rows})["output_0"].tolist() == [[2.0] * 3] * 2
    assert not rows.any()


class Twice(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cat([x, x])


class Scalar(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.sum()


class Complex(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.fft.fft(x)


class Alike(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x @ x.T


class Dropping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: Any) -> Any:
        return self.drop(x)


@pytest.mark.parametrize(
    ("net", "train", "said"),
    [
        (Twice(), False, "rows: return one for each row"),
        (Scalar(), False, "scalar"),
        (Complex(), False, "complex64"),
        (Alike(), False, "rows would depend on one another"),
        (Dropping(), True, "model.eval()"),
        (nets.Picture(), True, "model.eval()"),
    ],
)
def test_programs_that_cannot_be_served_are_refused_with_the_reason(
    tmp_path: Path, net: Any, train: bool, said: str
) -> None:
    """What comes out must be one value for each row, which is the row's own and can be sent."""
    example = torch.zeros(2, 3, 8, 8) if isinstance(net, nets.Picture) else torch.zeros(2, 3)
    assert said in refusal(nets.save(tmp_path / "m.pt2", net, (example,), ({0: ROWS},), train=train))


class Bomb:
    def __reduce__(self) -> Any:
        return (os.abort, ())


def test_pickles_and_torchscript_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """A state_dict, a whole module, TorchScript: none is opened, all are told of torch.export.save."""
    net = nets.Digits()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    torch.save({"bomb": Bomb()}, tmp_path / "bomb.pt")
    torch.save(net.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    for name in ("weights.pt", "bomb.pt", "old.pt", "script.pt"):
        said = refusal(tmp_path / name)
        assert "torch.export.save" in said
        assert ("TorchScript" in said) == (name == "script.pt")


def changed(file: Path, into: Path, **members: Any) -> Path:
    """A copy of an archive with some members' content given, or changed by a function."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(into, "w") as new:
        for name in old.namelist():
            short = name.partition("/")[2]
            change = members.pop(short, None)
            data = old.read(name)
            new.writestr(name, data if change is None else change(data) if callable(change) else change)
    assert not members
    return into


def test_pickles_inside_an_archive_are_never_unpickled(tmp_path: Path) -> None:
    """torch.export.load itself would run the bomb in the sample inputs; here they never reach it."""
    bomb = io.BytesIO()
    torch.save(({"bomb": Bomb()},), bomb)
    file, _ = nets.digits(tmp_path / "m.pt2")
    armed = changed(file, tmp_path / "bomb.pt2", **{"data/sample_inputs/model.pt": bomb.getvalue()})
    naive = subprocess.run(
        [sys.executable, "-c", f"import torch; torch.export.load({str(armed)!r})"], capture_output=True, check=False
    )
    assert naive.returncode < 0  # the bomb is one
    assert probe(armed).batchable
    open_program(armed.read_bytes(), "cpu")
    assert pickle.dumps(Bomb()) not in pt2.clean(armed.read_bytes(), device="cpu").data


def test_a_program_that_was_exported_on_cuda_runs_where_the_worker_says(tmp_path: Path) -> None:
    """Devices in the file are replaced; a CUDA device that is not there is an error and never the CPU."""
    file, net = nets.digits(tmp_path / "m.pt2")

    def on_cuda(data: bytes) -> bytes:
        return data.replace(b'"type": "cpu", "index": null', b'"type": "cuda", "index": 0')

    names = ("models/model.json", "data/weights/model_weights_config.json")
    moved = changed(file, tmp_path / "cuda.pt2", **dict.fromkeys(names, on_cuda))
    assert b"cuda" in moved.read_bytes()
    spec, data = imported(tmp_path, moved)
    rows = np.ones((3, 64), np.float32)
    outputs = TorchRuntime(spec, data, device="cpu").run({"x": rows})
    np.testing.assert_allclose(outputs["logits"], net(torch.from_numpy(rows))["logits"].detach(), atol=1e-5)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="BATCHLINE_DEVICE=cpu"):
            TorchRuntime(spec, data, device="cuda:0")


def test_memory_that_is_not_there_is_told_apart_from_rows_that_are_wrong(tmp_path: Path) -> None:
    """The allocator's words, on the CPU as on CUDA, are OutOfMemoryError, on which the predictor halves."""
    file = nets.save(tmp_path / "m.pt2", nets.Table(), (torch.zeros(2, dtype=torch.int64),), ({0: ROWS},))
    runtime = opened(tmp_path, file)
    with pytest.raises(IndexError):
        runtime.run({"i": np.array([0, 99])})
    with pytest.raises(RuntimeError) as told:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (told.value, torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):

        def fails(*_: Any, error: Exception = error) -> Any:
            raise error

        object.__setattr__(runtime._program, "module", fails)
        with pytest.raises(OutOfMemoryError):
            runtime.run({"i": np.array([0])})


def test_a_lost_device_ends_the_process_instead_of_refusing_rows(tmp_path: Path) -> None:
    """After a device-side assert every call fails: rows must not be found guilty of that."""
    file = nets.save(tmp_path / "m.pt2", nets.Table(), (torch.zeros(2, dtype=torch.int64),), ({0: ROWS},))
    spec, data = imported(tmp_path, file)
    lost: list[None] = []
    runtime = TorchRuntime(spec, data, device="cpu", lost=lambda: lost.append(None))

    def fails(*_: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    object.__setattr__(runtime._program, "module", fails)
    with pytest.raises(RuntimeError):
        runtime.run({"i": np.array([0])})
    assert not lost  # on the CPU those are words like any other
    runtime._device, runtime._given = torch.device("cuda:0"), lambda array, _: torch.from_numpy(array)
    with pytest.raises(RuntimeError):
        runtime.run({"i": np.array([0])})
    assert lost


def test_the_runtime_costs_little_beside_bare_pytorch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Micro-batches of 64 rows, arrays to arrays, in turn with the module called by hand; the ratio is printed."""
    torch.set_num_threads(1)
    net = torch.nn.Sequential(
        *(layer for _ in range(4) for layer in (torch.nn.Linear(512, 512), torch.nn.ReLU()))
    ).eval()
    runtime = opened(tmp_path, nets.save(tmp_path / "m.pt2", net, (torch.zeros(2, 512),), ({0: ROWS},)))
    name = next(t.name for t in runtime._program.inputs)
    rows = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)

    def bare() -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy(rows)).numpy()

    ways = {"bare": bare, "runtime": lambda: runtime.run({name: rows})["output_0"]}
    np.testing.assert_allclose(ways["runtime"](), ways["bare"](), atol=1e-5)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(200):
        for way, call in ways.items():
            at = time.perf_counter()
            call()
            taken[way].append(time.perf_counter() - at)
    spent = {way: statistics.median(times) for way, times in taken.items()}
    ratio = spent["bare"] / spent["runtime"]
    with capsys.disabled():
        print(
            json.dumps({"rows_per_s": {w: round(64 / s) for w, s in spent.items()}, "runtime / bare": round(ratio, 3)})
        )
    assert ratio > 0.5
