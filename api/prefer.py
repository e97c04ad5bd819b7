"""The Prefer header (RFC 7240), as far as it is honoured here: `wait` and `respond-async`."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_WAIT_S = 60

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_WORD = rf"{_NAME}|{_QUOTED}"
_PREFERENCE = re.compile(
    rf"\s*({_NAME})\s*(?:=\s*({_WORD})?)?\s*(?:;\s*(?:{_NAME}\s*(?:=\s*(?:{_WORD})?)?)?\s*)*(?:,|$)"
)


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
    if not header:
        return NONE
    wait_s: int | None = None
    respond_async = False
    text = header.decode("latin-1")
    at = 0
    while at < len(text):
        match = _PREFERENCE.match(text, at)
        if match is None:
            comma = text.find(",", at)
            if comma < 0:
                break
            at = comma + 1
            continue
        at = max(match.end(), at + 1)
        name, value = match.group(1).lower(), (match.group(2) or "").strip('"')
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and wait_s is None:
            wait_s = min(int(value), MAX_WAIT_S) if value.isascii() and value.isdigit() and len(value) < 10 else 0
    return Preferences(wait_s or 0, respond_async)
