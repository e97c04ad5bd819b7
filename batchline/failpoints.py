"""Named places where a test may stop, slow or kill a process; off unless BATCHLINE_FAILPOINTS is set.

`BATCHLINE_FAILPOINTS="api.after_commit=kill;worker.before_finish=sleep:0.5"`. Actions: `kill` (SIGKILL to this
process), `kill:N` (at the N-th passage), `sleep:S`, `raise`. Read once at import: the one exception to the rule that
settings.py alone reads the environment, so that no product code path carries a test's switch.
"""

from __future__ import annotations

import os
import signal
import time


class FailpointError(RuntimeError):
    """Raised by the action `raise`."""


def _parse(text: str) -> dict[str, str]:
    pairs = (part.split("=", 1) for part in text.split(";") if "=" in part)
    return {name.strip(): action.strip() for name, action in pairs}


_actions = _parse(os.environ.get("BATCHLINE_FAILPOINTS", ""))
_passages: dict[str, int] = {}


def hit(name: str) -> None:
    """Pass the place `name`; does nothing unless the environment named it."""
    if not _actions:
        return
    action = _actions.get(name)
    if action is None:
        return
    kind, _, argument = action.partition(":")
    _passages[name] = _passages.get(name, 0) + 1
    if kind == "kill" and _passages[name] >= int(argument or 1):
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "sleep":
        time.sleep(float(argument))
    elif kind == "raise":
        raise FailpointError(name)
