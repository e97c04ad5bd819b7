"""Batches of requests: what is wrong with a line is told with OpenAI's codes; stretches hold all lines once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import request_lines
from scheduler.request_lines import Checked, check


def a_line(number: int, **changes: object) -> dict[str, object]:
    line: dict[str, object] = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/jobs"}
    line["body"] = {"model": "digits", "inputs": [[1, 2]]}
    return {k: v for k, v in (line | changes).items() if v is not ...}


def run(lines: list[object], endpoint: str = "/v1/jobs", **options: int) -> Checked:
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    asked = {"slice_rows": 1000, "max_line_bytes": 10_000} | options
    return check([data[at : at + 7] for at in range(0, len(data), 7)], endpoint, **asked)


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{not json", "invalid_json_line", None),
        (b"[1, 2]", "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b'{"custom_id": "' + b"x" * 10_000 + b'"}', "invalid_json_line", None),
        (b"[" * 5000, "invalid_json_line", None),
        (a_line(2, custom_id=...), "missing_required_parameter", "custom_id"),
        (a_line(2, body=...), "missing_required_parameter", "body"),
        (a_line(2, body={}), "missing_required_parameter", "body.model"),
        (a_line(2, custom_id=7), "invalid_type", "custom_id"),
        (a_line(2, body="x"), "invalid_type", "body"),
        (a_line(2, body={"model": 3}), "invalid_type", "body.model"),
        (a_line(2, custom_id=""), "invalid_custom_id", "custom_id"),
        (a_line(1), "duplicate_custom_id", "custom_id"),
        (a_line(2, method="GET"), "invalid_method", "method"),
        (a_line(2, url="/v1/chat/completions"), "invalid_url", "url"),
        (a_line(2, body={"model": "other"}), "mismatched_model", "body.model"),
        (a_line(2, body={"model": "digits", "version": "2"}), "mismatched_model", "body.model"),
    ],
)  # fmt: skip
def test_a_faulty_line_is_named_with_its_code_and_parameter(line, code, param):
    """The lines around it are not at fault."""
    found = run([a_line(1), line, a_line(3)])
    assert [(f.code, f.line, f.param) for f in found.faults] == [(code, 2, param)]
    assert len(found.faults[0].message) < 400


def test_a_file_without_faults_tells_its_model_and_how_many_lines_there_are():
    """Blank lines count as lines and are no requests; the last line needs no newline."""
    data = b"\n\n" + json.dumps(a_line(1)).encode() + b"\n  \n" + json.dumps(a_line(2)).encode()
    found = check([data], "/v1/jobs", slice_rows=10, max_line_bytes=1000)
    assert (found.faults, found.model, found.version, found.model_line) == ([], "digits", None, 3)
    assert [(s.start, s.end, s.rows) for s in found.stretches] == [(0, len(data), 2)]


def test_a_byte_order_mark_is_no_part_of_the_first_line():
    """It stays in the bytes of the first stretch, where the worker passes over it too."""
    data = b"\xef\xbb\xbf" + json.dumps(a_line(1)).encode()
    found = check([data], "/v1/jobs", slice_rows=10, max_line_bytes=1000)
    assert (found.faults, found.model) == ([], "digits")
    assert [(s.start, s.end, s.rows) for s in found.stretches] == [(0, len(data), 1)]
    assert check([b"\xef\xbb\xbf\n"], "/v1/jobs", slice_rows=10, max_line_bytes=1000).faults[0].code == "empty_file"


def test_the_model_of_v2_stands_in_the_endpoint():
    """Bodies need not name it."""
    url = "/v2/models/digits/infer"
    found = run([a_line(n, url=url, body={"inputs": []}) for n in range(3)], url)
    assert (found.faults, found.model) == ([], "digits")


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\n"])
def test_a_file_without_requests_is_refused(data):
    """Blank lines are none."""
    found = check([data], "/v1/jobs", slice_rows=10, max_line_bytes=100)
    assert [(f.code, f.line) for f in found.faults] == [("empty_file", None)]


def test_too_many_requests_are_refused(monkeypatch):
    """Told once, not by line."""
    monkeypatch.setattr(request_lines, "MAX_LINES", 5)
    assert not run([a_line(n) for n in range(5)]).faults
    assert [(f.code, f.line) for f in run([a_line(n) for n in range(6)]).faults] == [("too_many_tasks", None)]


def test_faults_are_told_to_the_hundredth():
    """A file of ten thousand bad lines is not read to its end."""
    assert len(run([b"x"] * 10_000).faults) == 100


texts = st.lists(st.sampled_from([b"", b" ", None]), max_size=60)


@given(texts, st.integers(1, 7), st.integers(1, 50), st.booleans())
def test_stretches_hold_every_request_once(kinds, slice_rows, chunk, ends):
    """However the bytes arrive: back to back, from the first byte, and each with the lines it says."""
    lines = [json.dumps(a_line(n)).encode() if kind is None else kind for n, kind in enumerate(kinds)]
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    found = check(
        [data[at : at + chunk] for at in range(0, len(data), chunk)], "/v1/jobs", slice_rows=slice_rows,
        max_line_bytes=1000,
    )  # fmt: skip
    at, wanted = 0, [line for line in lines if line.strip()]
    for stretch in found.stretches:
        assert stretch.start == at
        inside = [line for line in data[stretch.start : stretch.end].split(b"\n") if line.strip()]
        assert len(inside) == stretch.rows <= slice_rows
        assert inside == wanted[: stretch.rows]
        del wanted[: stretch.rows]
        at = stretch.end
    assert not wanted
