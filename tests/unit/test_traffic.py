"""Traffic rules as pure functions: who is the canary's, what a version may be called, when two outputs agree."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import stack
from hypothesis import given
from hypothesis import strategies as st

from api.traffic import agree, checked
from batchline.errors import InvalidRequestError
from batchline.job import new_job_id
from batchline.model import ModelRecord, TensorSpec, TextFront
from batchline.store.traffic_contract import Pair
from batchline.traffic import Canary, Rule, Versions, takes_part, takes_the_same
from batchline.wire_traffic import CanaryBody, TrafficBody

PERCENTS = st.floats(0, 100)


def record(version: int, name: str = "digits", **changes: Any) -> ModelRecord:
    return ModelRecord(version * 10, msgspec.structs.replace(stack.a_spec(name, str(version)), **changes), 0.0)


@given(st.binary(max_size=40), PERCENTS, PERCENTS)
def test_who_belongs_to_a_part_belongs_to_each_larger_one(by: bytes, one: float, other: float) -> None:
    """Monotone: a canary that grows keeps its jobs; and nobody is in none, everybody in all."""
    smaller, larger = sorted((one, other))
    assert takes_part(by, smaller) <= takes_part(by, larger)
    assert not takes_part(by, 0)
    assert takes_part(by, 100)


def test_a_part_never_changes_between_releases() -> None:
    """Stable: these were chosen once, by this very hash; a repeated submit may reach a process of the next release."""
    assert [n for n in range(40) if takes_part(b"key-%d" % n, 12.5)] == CHOSEN


CHOSEN = [3, 5, 7, 10, 13, 16, 22, 25, 28, 33, 39]


@pytest.mark.parametrize("percent", [0.1, 1, 5, 12.5, 50, 99.5])
def test_the_part_is_as_large_as_it_is_said(percent: float) -> None:
    """Of 20,000 ids as they are minted, within four standard deviations; fractions of a percent too."""
    ids = [new_job_id(1_700_000_000 + n / 1000).bytes for n in range(20_000)]
    part = percent / 100
    assert abs(sum(takes_part(i, percent) for i in ids) - 20_000 * part) < 4 * (20_000 * part * (1 - part)) ** 0.5


def test_without_a_rule_the_highest_version_is_all_there_is() -> None:
    """No version, production and latest mean it; canary and shadow mean nothing."""
    known = Versions([record(1), record(10), record(9)])
    assert [known.find("digits", v).spec.version for v in (None, "production", "latest", 10, "1")] == [
        "10", "10", "10", "10", "1",
    ]  # fmt: skip
    assert [known.find("digits", v) for v in ("canary", "shadow", "11", "nix", "-1", "²")] == [None] * 6
    assert known.find("other", None) is None
    assert known.must_be("digits", "canary") == "must be 1, 9, 10, production, latest"


def test_a_rule_names_versions() -> None:
    """Aliases are exactly these versions whatever the percent; what is not shared out is production's."""
    known = Versions([record(n) for n in (1, 2, 3, 4)], {"digits": Rule(2, Canary(3, 100), 1)})
    aliases = {"production": "2", "canary": "3", "shadow": "1", "latest": "4"}
    for alias, version in aliases.items():
        assert known.find("digits", alias, b"x").spec.version == version
    assert known.find("digits", None, b"x").spec.version == "3"
    assert known.find("digits", None).spec.version == "2"
    assert known.aliases("digits") == {"production": 2, "canary": 3, "shadow": 1, "latest": 4}


def test_a_version_that_cannot_be_read_is_named() -> None:
    """A newer release may have written its spec: no other version answers in its place."""
    known = Versions([record(1), record(2)], {"digits": Rule(1, Canary(7, 100), 8)})
    for version, number in ((None, 7), ("canary", 7), ("shadow", 8)):
        assert known.find("digits", version, b"x") is None
        assert f"version {number} " in known.must_be("digits", version, b"x")
    assert known.shadow("digits", record(1)) is None


def test_copies_go_only_where_their_rows_fit() -> None:
    """The same tensors, or texts both, whatever becomes of these inside."""
    other = record(2, inputs=(TensorSpec("x", "FP64", (64,)),))
    texts = [record(n, text=TextFront(), inputs=(TensorSpec("ids", "INT64", (n,)),)) for n in (3, 4)]
    assert takes_the_same(record(1), record(9))
    assert takes_the_same(*texts)
    assert not takes_the_same(record(1), other)
    assert not takes_the_same(record(1), texts[0])
    known = Versions([record(1), other], {"digits": Rule(1, None, 2)})
    assert known.shadow("digits", record(1)) is None


@pytest.mark.parametrize(
    ("body", "pointer", "told"),
    [
        (TrafficBody("9"), "/production", "must be one of 1, 2, 3"),
        (TrafficBody("production"), "/production", "must be one of"),
        (TrafficBody(1, CanaryBody("9", 5)), "/canary/version", "must be one of"),
        (TrafficBody(1, CanaryBody("1", 5)), "/canary/version", "another one than production"),
        (TrafficBody(1, None, "9"), "/shadow", "must be one of"),
        (TrafficBody(1, None, "3"), "/shadow", "takes other inputs than version 1"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(body: TrafficBody, pointer: str, told: str) -> None:
    """With the place, and what there is."""
    records = [record(1), record(2), record(3, inputs=(TensorSpec("y", "FP32", (64,)),))]
    with pytest.raises(InvalidRequestError) as refused:
        checked(body, records)
    assert [fault.pointer for fault in refused.value.faults] == [pointer]
    assert told in refused.value.faults[0].detail
    assert checked(TrafficBody(1, CanaryBody(2, 0.5), "2"), records) == Rule(1, Canary(2, 0.5), 2)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ([{"label": 3, "score": [0.9, 0.1]}], [{"label": 3, "score": [0.2, 0.8]}], True),
        ([{"label": 3, "score": [0.9]}], [{"label": 4, "score": [0.9]}], False),
        ([{"score": [[0.5, 100.0]]}], [{"score": [[0.5005, 100.09]]}], True),
        ([{"score": [0.5]}], [{"score": [0.502]}], False),
        ([{"score": [100.0]}], [{"score": [101.0]}], False),
        ([{"score": ["NaN"]}], [{"score": ["NaN"]}], True),
        ([{"score": ["NaN"]}], [{"score": [1.0]}], False),
        ([{"score": [1.0, 2.0]}], [{"score": [1.0]}], False),
        ([{"label": 1}, None], [{"label": 1}, None], True),
        ([{"label": 1}, None], [{"label": 1}, {"label": 1}], False),
        ([{"label": 1}], [{"label": 1}, {"label": 1}], False),
        ([{"label": 1}], [{"class": 1}], False),
    ],
)
def test_when_a_copy_came_to_the_same(ours: Any, theirs: Any, same: bool) -> None:
    """Labels decide where there are any; else numbers within a thousandth; all rows, in the same order."""
    assert agree(Pair(json.dumps(ours), json.dumps(theirs)), frozenset({"score"})) is same
