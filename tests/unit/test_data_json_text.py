"""Record batches as JSON lines: what kernels write reads back as what stood in the batch."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.data import json_text

WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def read(text: str) -> object:
    """As a client reads a number or a word that stands for one."""
    value = json.loads(text)
    return WORDS.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@settings(deadline=None)  # the first conversion loads what Arrow needs
@given(values=st.lists(st.floats(width=16), max_size=20))
def test_every_float_reads_back_as_itself(kind, values):
    """Finite ones as numbers with a point or an exponent, the others as words."""
    column = pa.array(np.array(values, dtype=kind))
    for want, text in zip(values, json_text.texts(column).to_pylist(), strict=True):
        got = read(text)
        assert isinstance(got, float)
        assert got == pytest.approx(want, rel=1e-7, nan_ok=True)


@settings(deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_float32_has_its_shortest_form(values):
    """Reading the text as float32 gives the same bits, and no text is longer than numpy's shortest."""
    array = np.array(values, np.float32)
    texts = json_text.texts(pa.array(array)).to_pylist()
    assert np.array_equal(np.array([np.float32(t) for t in texts], np.float32), array)
    assert all(len(t.strip("-")) <= max(len(str(v).strip("-")) + 4, 12) for t, v in zip(texts, array, strict=True))


@settings(deadline=None)
@given(values=st.lists(st.text(), max_size=20))
def test_every_text_is_escaped(values):
    """Quotes, backslashes, control characters and emoji survive."""
    encodable = [v for v in values if not any(0xD800 <= ord(c) <= 0xDFFF for c in v)]
    assert [json.loads(t) for t in json_text.texts(pa.array(encodable, pa.string())).to_pylist()] == encodable


def test_a_line_holds_every_column_in_order():
    """Numbers, lists, nulls, texts, truths and structs, each line with its newline."""
    batch = pa.record_batch(
        {
            "row": pa.array([0, 1]),
            'na"me': pa.array(["a", None]),
            "p": pa.FixedSizeListArray.from_arrays(pa.array(np.array([1, 0.5, math.nan, 2], np.float32)), 2),
            "ok": pa.array([True, False]),
            "nested": pa.array([[[1, 2]], []]),
        }
    )
    lines = json_text.lines(batch)
    assert [json.loads(line) for line in lines.to_pylist()] == [
        {"row": 0, 'na"me': "a", "p": [1.0, 0.5], "ok": True, "nested": [[1, 2]]},
        {"row": 1, 'na"me': None, "p": ["NaN", 2.0], "ok": False, "nested": []},
    ]
    assert json_text.joined(lines) == "".join(lines.to_pylist()).encode()
    assert json_text.joined(lines.slice(1, 1)) == lines[1].as_py().encode()
    assert json_text.joined(lines.slice(0, 0)) == b""


def test_slices_of_a_batch_are_written_alone():
    """An offset into a list column is honoured."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32)), 2)
    part = pa.record_batch({"row": pa.array([0, 1, 2, 3]), "p": lists}).slice(2, 2)
    assert [json.loads(line)["p"] for line in json_text.lines(part).to_pylist()] == [[4.0, 5.0], [6.0, 7.0]]
