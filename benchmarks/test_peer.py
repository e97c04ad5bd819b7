"""The comparison is fair only if the peer is right: `python -m pytest benchmarks`."""

from __future__ import annotations

import pytest

from benchmarks.digits import prepare
from benchmarks.load import Load, drive
from benchmarks.peer import peer
from benchmarks.processes import BenchmarkError


@pytest.fixture(scope="module")
def rival(tmp_path_factory):
    digits = prepare(tmp_path_factory.mktemp("digits"))
    with peer(digits, tmp_path_factory.mktemp("peer"), children=1) as started:
        yield digits, started


@pytest.mark.parametrize("manner", ["loop", "threads"])
@pytest.mark.parametrize("rows", [1, 256])
def test_every_result_of_the_peer_equals_onnx_runtimes(rival, manner, rows):
    """The load generator compares every label and probability (within 1e-5) and fails on the first that differs."""
    digits, started = rival
    load = Load(side="peer", ports=started.ports, data=str(digits.rows), manner=manner, rows=rows, clients=4,
                poll_s=0.005, warm_s=0.2, measured_s=1.5)  # fmt: skip
    assert drive(load).jobs > 0


def test_the_load_generator_fails_on_a_wrong_result(rival, tmp_path):
    """With labels shifted by one the same answers must be refused; else the check above proves nothing."""
    import orjson

    digits, started = rival
    data = orjson.loads(digits.rows.read_bytes())
    data["labels"] = [(n + 1) % 10 for n in data["labels"]]
    wrong = tmp_path / "wrong.json"
    wrong.write_bytes(orjson.dumps(data))
    with pytest.raises(BenchmarkError, match="differs from ONNX Runtime"):
        drive(Load(side="peer", ports=started.ports, data=str(wrong), clients=1, warm_s=0.1, measured_s=0.5))
