"""The Prefer header (RFC 7240), as far as it is honoured here: `wait` and `respond-async`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_WAIT_S = 60

_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[,;]|[^",;]+|"')
_MAX_LENGTH = 1000
"""A longer header prefers nothing; no client needs it."""


class Preferences(NamedTuple):
    """What the client prefers: seconds to wait (0: none asked), and whether to be answered at once with 202."""

    wait_s: int = 0
    respond_async: bool = False

    @property
    def applied(self) -> dict[str, str]:
        """The header that says so."""
        return {"Preference-Applied": f"wait={self.wait_s}"} if self.wait_s else {}


NONE = Preferences()


def parse(header: bytes | None) -> Preferences:
    """Read a Prefer header, several of them joined by commas.

    The first `wait` counts (RFC 7240, section 2); more than 60 s is taken as 60; what cannot be read is not preferred.
    """
    if not header or len(header) > _MAX_LENGTH:
        return NONE
    wait_s: int | None = None
    respond_async = False
    for preference in _preferences(header.decode("latin-1")):
        name, _, value = preference.partition("=")
        name, value = name.strip().lower(), value.strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and wait_s is None:
            wait_s = min(int(value), MAX_WAIT_S) if value.isascii() and value.isdigit() else 0
    return Preferences(wait_s or 0, respond_async)


def _preferences(text: str) -> Iterator[str]:
    """Each preference without its parameters; commas and semicolons in quotes do not divide."""
    preference, in_parameters = "", False
    for piece in _PIECE.findall(text):
        if piece == ",":
            yield preference
            preference, in_parameters = "", False
        elif piece == ";":
            in_parameters = True
        elif not in_parameters:
            preference += piece
    yield preference
