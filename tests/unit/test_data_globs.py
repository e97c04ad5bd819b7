"""Globs: many wildcards match what a regular expression does, in no more time than pattern times path."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.data.glob_states import GlobStates
from batchline.data.uris import glob_matcher

_EXPRESSIONS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]", "[!a]": "[^/a]", "[ab]": "(?!/)[ab]"}
_PIECES = st.lists(st.sampled_from([*_EXPRESSIONS, "a", "b", "/"]), max_size=8)


@given(_PIECES, st.text("ab/\n", max_size=12))
def test_states_match_what_a_regular_expression_matches(pieces: list[str], path: str) -> None:
    """Whatever the pattern: states and expression say the same of every path."""
    letters = [_EXPRESSIONS.get(piece, piece) for piece in pieces]
    expected = re.compile("".join(letters), re.DOTALL).fullmatch(path) is not None
    assert GlobStates(pieces, letters).fullmatch(path) == expected


@pytest.mark.parametrize("pattern", ["*" * 500 + ".csv", "a*" * 200 + "b.csv", "/**/a*" * 50, "**a" * 100 + "b"])
def test_many_wildcards_do_not_hang(pattern: str) -> None:
    """A pattern that a regular expression would try for ever is answered at once."""
    began = time.monotonic()
    assert not glob_matcher(pattern).fullmatch("/" + "a" * 200 + "/" + "a" * 200 + ".parquet")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/in/*/*/*.csv", "/in/a/b/c.csv", True),
        ("/in/*/*/*.csv", "/in/a/b/c/d.csv", False),
        ("/in/**/a*b*.csv", "/in/x/y/aabb.csv", True),
        ("/in/**/a*b*.csv", "/in/ab.csv", True),
        ("/in/[*]*-*-*", "/in/*1-2-3", True),
        ("/in/[!x]*-*-*", "/in/x1-2-3", False),
    ],
)
def test_several_wildcards(pattern: str, path: str, *, matches: bool) -> None:
    """`*` stays within a folder, `**/` crosses any number of them, also when there are many."""
    assert bool(glob_matcher(pattern).fullmatch(path)) == matches
