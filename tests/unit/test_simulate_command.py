"""`batchline autoscaler simulate`: figures on stdout, a plot if asked for, nonsense refused."""

import json
import os
import sys

import numpy as np
import pytest

from autoscaler.simulate.__main__ import main
from autoscaler.simulate.compare import Target as Goal
from autoscaler.simulate.compare import compare, table
from autoscaler.simulate.fleet import World
from autoscaler.simulate.trace import Trace
from batchline.errors import BatchlineError


@pytest.fixture
def hour(tmp_path):
    """Forty quiet minutes and a burst between them, as a CSV."""
    lines = [f"{n * 5},{5000 if 240 <= n < 300 else 500},\n" for n in range(720)]
    (tmp_path / "hour.csv").write_text("".join(["at_s,rows,due_s\n", *lines]))
    return tmp_path / "hour.csv"


def test_several_policies_over_a_csv_as_json(hour, capsys):
    """One document; figures of each policy."""
    assert main(["--trace", str(hour), "--policy", "drain_time", "--policy", "keda", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["policy"] for run in told["runs"]] == ["drain_time", "keda"]
    assert told["runs"][0]["worker_hours"] > told["rows"] / 50 / 3600


def test_figures_for_people(hour, capsys):
    """Waits, deadlines, worker-hours, cost and launches."""
    assert main(["--trace", str(hour)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("p95", "missed", "worker-hours", "cost", "launches"))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_is_drawn(hour, tmp_path, ending):
    """PNG and SVG; another ending is refused."""
    pytest.importorskip("matplotlib")
    main(["--trace", str(hour), "--plot", str(tmp_path / f"out.{ending}")])
    head = (tmp_path / f"out.{ending}").read_bytes()[:6]
    assert head.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    with pytest.raises(BatchlineError, match="png"):
        main(["--trace", str(hour), "--plot", str(tmp_path / "out.bmp")])


def test_nonsense_is_refused(hour):
    """An unknown shape, a minimum above the maximum: what happened and what to do."""
    with pytest.raises(BatchlineError, match="day, flash"):
        main(["--trace", "weekend"])
    with pytest.raises(BatchlineError, match="raise that"):
        main(["--trace", str(hour), "--min-workers", "9", "--max-workers", "3"])


def test_a_comparison_searches_rivals_and_tells_the_sum(monkeypatch):
    """Each policy's best run at the target, the bound, and ours as a share of each."""
    pytest.importorskip("scipy")
    monkeypatch.setattr("autoscaler.simulate.compare._WAITS", (0.5, 1.0))
    monkeypatch.setattr("autoscaler.simulate.compare._FLOORS", (0.0, 1.0))
    rows = np.full(720, 500.0)
    rows[240:300] = 3000.0
    found = compare(Goal(), World(), [Trace("hour", 5.0, rows)], say=lambda _: None)
    assert set(found[0].found) == {"drain_time", "keda", "keda, any window", "target_in_flight", "queue"}
    assert all(one.within for one in found[0].found.values())
    assert found[0].bound.worker_hours <= min(one.result.worker_hours for one in found[0].found.values())
    assert "lower bound" in table(found)


def test_the_command_line_passes_everything_on(monkeypatch):
    """`batchline autoscaler simulate ...` becomes `python -m autoscaler.simulate ...`."""
    from batchline import cli

    seen = []

    def become(path, arguments, environment):
        seen.extend(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", become)
    told = ["--trace", "flash", "--policy", "keda", "--plot", "x.svg", "--compare", "--json", "--load", "7"]
    monkeypatch.setattr(sys, "argv", ["batchline", "autoscaler", "simulate", *told])
    with pytest.raises(SystemExit):
        cli.main()
    assert seen[1:4] == ["-P", "-m", "autoscaler.simulate"]
    assert [word for word in told if word not in seen] == []
    assert seen[-2:] == ["--load", "7"]
