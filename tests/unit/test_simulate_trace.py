"""Traces come from CSV or from a seed, and nonsense is refused with its line."""

import numpy as np
import pytest

from autoscaler.simulate.trace import SHAPES, Batch, load
from batchline.errors import InvalidRequestError


def test_a_csv_is_a_trace(tmp_path):
    """Online rows by step, batches with their deadlines; steps without arrivals need no line."""
    (tmp_path / "mine.csv").write_text("at_s,rows,due_s\n0,3,\n10,4.5,\n5,100,3600\n")
    trace = load(tmp_path / "mine.csv")
    assert (trace.name, trace.step_s, trace.online.tolist()) == ("mine", 5.0, [3.0, 0.0, 4.5])
    assert trace.batches == (Batch(5.0, 100.0, 3600.0),)


def test_times_may_start_anywhere(tmp_path):
    """Epoch seconds, in any order: the first arrival is the start."""
    path = tmp_path / "t.csv"
    path.write_text("at_s,rows,due_s\n1700000012,5,\n1700000000,1,\n1700000001,9,1700000600\n")
    trace = load(path)
    assert trace.online.tolist() == [1.0, 0.0, 5.0]
    assert trace.batches == (Batch(1.0, 9.0, 600.0),)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("at_s,rows\n1,2\n3,many\n", "line 3"),
        ("at_s,rows\n1,-2\n", "line 2"),
        ("when,rows\n1,2\n", "line 2"),
        ("at_s,rows,due_s\n", "empty"),
    ],
)
def test_nonsense_is_refused_with_its_line(tmp_path, text, word):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InvalidRequestError, match=word):
        load(tmp_path / "t.csv")
    with pytest.raises(InvalidRequestError, match="cannot read"):
        load(tmp_path / "none.csv")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_gives_the_same_day(shape):
    """24 hours, never a negative row, the seed decides."""
    first, second, other = (SHAPES[shape](500.0, seed) for seed in (1, 1, 2))
    assert first.seconds == 86_400
    assert first.online.min() >= 0
    assert np.array_equal(first.online, second.online)
    assert not np.array_equal(first.online, other.online)
