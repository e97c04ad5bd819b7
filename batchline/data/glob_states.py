"""Globs of many wildcards in time of pattern times path: a regular expression would try every division."""

from __future__ import annotations

import re
from collections.abc import Sequence

STAR, DEEP, FOLDERS = "*", "**", "**/"


class GlobStates:
    """A pattern as a set of states, one bit each, that all go on together, letter by letter."""

    def __init__(self, pieces: Sequence[str], letters: Sequence[str]) -> None:
        """Take a pattern apart.

        Args:
            pieces: of the pattern: one of the three wildcards, or anything else for one letter.
            letters: for each piece the regular expression of its one letter; not looked at for wildcards.
        """
        self._steps: list[tuple[int, re.Pattern[str]]] = []
        self._star = self._deep = self._folders = self._inside = 0
        bit = 1
        for piece, letter in zip(pieces, letters, strict=True):
            if piece == STAR:
                self._star |= bit
            elif piece == DEEP:
                self._deep |= bit
            elif piece == FOLDERS:  # two states: before a folder's name, and in it
                self._folders |= bit
                bit <<= 1
                self._inside |= bit
            else:
                self._steps.append((bit, re.compile(letter, re.DOTALL)))
            bit <<= 1
        self._end = bit
        self._known: dict[str, int] = {}

    def fullmatch(self, path: str) -> bool:
        """Whether the pattern is one for the whole path."""
        states = self._skipped(1)
        for letter in path:
            moved = ((states & self._taking(letter)) << 1) | (states & self._deep)
            if letter == "/":
                moved |= (states & self._inside) >> 1
            else:
                moved |= (states & (self._star | self._inside)) | ((states & self._folders) << 1)
            states = self._skipped(moved)
            if not states:
                return False
        return bool(states & self._end)

    def _taking(self, letter: str) -> int:
        """The states that this letter leads to their next."""
        if letter not in self._known:
            self._known[letter] = sum(bit for bit, wanted in self._steps if wanted.fullmatch(letter))
        return self._known[letter]

    def _skipped(self, states: int) -> int:
        """With the states behind wildcards, which may stand for nothing."""
        while True:
            more = states | ((states & (self._star | self._deep)) << 1) | ((states & self._folders) << 2)
            if more == states:
                return states
            states = more
