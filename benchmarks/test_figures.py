"""The arithmetic of the reports: what a figure says must follow from the samples."""

from __future__ import annotations

import pytest

from benchmarks import rows256, scaling
from benchmarks.harness import Goal, Report, goals
from benchmarks.rss import growth, slope


def test_growth_compares_the_last_fifth_with_the_first():
    """One odd sample at either end changes nothing: each fifth counts by its median."""
    assert growth([100.0] * 5 + [150.0] * 15 + [110.0] * 5) == pytest.approx(10.0)
    assert growth([900.0, *[100.0] * 24]) == pytest.approx(0.0)
    assert growth([100.0]) == 0.0


def test_slope_is_per_second():
    """Two a second, sampled every two seconds."""
    assert slope([0.0, 2.0, 4.0], [10.0, 14.0, 18.0]) == pytest.approx(2.0)
    assert slope([1.0], [10.0]) == 0.0


@pytest.mark.parametrize(("value", "at_least", "met"), [(6.0, True, True), (5.9, True, False), (6.1, False, False)])
def test_a_goal_is_met_on_its_bound(value, at_least, met):
    goal = Goal("work", value, 6.0, at_least)
    assert goal.met is met
    assert goal.must == ("≥ 6 ×" if at_least else "≤ 6 ×")


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    """A slow minute falls on both sides of one round; medians of the sides by themselves would mix rounds."""
    report = Report("r", {"a": [{"x": 2.0}, {"x": 200.0}, {"x": 9.0}], "b": [{"x": 1.0}, {"x": 100.0}, {"x": 3.0}]}, ())
    assert report.ratio("x", "a", "b") == 2.0


def test_the_table_of_goals_has_a_line_for_each():
    reports = [
        Report("a", {}, (), goals=[Goal("x", 1.0, 2.0), Goal("y", 1.0, 2.0, at_least=False)]),
        Report("b", {}, ()),
    ]
    assert goals(reports).row_count == 2


def test_the_limit_is_told_by_cores_of_each_process():
    """A job's CPU times jobs/s; the client is a process of ours that the machine's sum holds already."""
    sample = {"jobs_per_s": 1000.0, "api0_cpu_ms_per_job": 0.5, "client_cpu_ms_per_job": 0.25, "others_cores": 0.35}
    told = scaling.cores(Report("r", {"one": [sample]}, ()), "one")
    assert told.startswith("0.85 of ")
    assert told.endswith(": api0 0.50, client 0.25, others 0.10")


def test_the_stages_of_a_job_sum_up_to_its_time():
    ours = {"p50_ms": 10.0, "queued_ms": 4.0, "batch_wait_ms": 1.0, "predict_ms": 2.0, "write_ms": 1.0,
            "api0_cpu_ms_per_job": 3.0, "worker0_cpu_ms_per_job": 5.0}  # fmt: skip
    clock, cpu = rows256.breakdown(Report("r", {"batchline": [ours], "bare loop": [{"p50_ms": 1.5}]}, ()))
    assert clock.endswith("rest (HTTP, JSON, commits, wake-up) 2.0")
    assert cpu == "CPU of a job, ms: 8.0 = worker0 5.0, api0 3.0; the bare loop 1.5"
