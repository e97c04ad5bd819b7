"""`make demo` and `make demo-nightly` as a newcomer sees them: right results, exit 0, nothing left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(300)


@contextmanager
def demo(tmp_path: Path, name: str = "demo.py") -> Iterator[subprocess.Popen[str]]:
    """The running demo, all its files under tmp_path; ended with all its children whatever happens."""
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=tmp_path,
    )  # fmt: skip
    try:
        yield process
    finally:
        for left in [process.pid, *remains(tmp_path)]:
            if psutil.pid_exists(left):
                os.kill(left, signal.SIGKILL)
        process.wait()


def remains(tmp_path: Path) -> list[int]:
    """Processes that were started with files under tmp_path."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]


def test_every_result_is_right_and_nothing_is_left(tmp_path: Path) -> None:
    """Exit 0, all jobs equal ONNX Runtime, the accuracy of a sound model, no file and no process left."""
    with demo(tmp_path) as process:
        told, _ = process.communicate(timeout=240)
        assert process.returncode == 0, told
        checked = re.search(r"checked +(\d+) of (\d+) jobs equal", told)
        assert checked, told
        assert checked[1] == checked[2]
        assert int(checked[2]) > 500
        accuracy = re.search(r"accuracy ([\d.]+)%", told)
        assert accuracy, told
        assert float(accuracy[1]) > 95.0
        assert "How do I reset my password?  ~  I forgot my login credentials." in told
        assert (list(tmp_path.iterdir()), remains(tmp_path)) == ([], [])


def test_an_interrupted_demo_cleans_up(tmp_path: Path) -> None:
    """Ctrl-C while the system runs: exit 130, no file and no process left."""
    with demo(tmp_path) as process:
        assert process.stdout is not None
        told = next(line for line in process.stdout if line.startswith("up "))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
        assert process.returncode == 130, told + rest
        assert "Traceback" not in rest
        assert (list(tmp_path.iterdir()), remains(tmp_path)) == ([], [])


def test_a_table_is_scored_every_night(tmp_path: Path) -> None:
    """The schedule fires, both nights' scores are right, a changed table is scored anew, nothing is left."""
    with demo(tmp_path, "churn.py") as process:
        told, _ = process.communicate(timeout=280)
        assert process.returncode == 0, told
        assert len(re.findall(r"^checked +every score equals ONNX Runtime", told, re.MULTILINE)) == 2
        assert "143 of 143 rows in 3 slices" in told
        assert "144 of 144 rows in 3 slices" in told
        assert len(re.findall(r"^history .* submitted batch_\w+ completed$", told, re.MULTILINE)) == 2
        assert (list(tmp_path.iterdir()), remains(tmp_path)) == ([], [])
