"""`python -m autoscaler check [FILE] [--json]`: whether the configuration works, as at start, and all that does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from autoscaler import config as configuration
from autoscaler import parts
from batchline import settings

WORKS, REFUSED, UNANSWERED = range(3)
"""Exit codes. The last: nothing is wrong as far as could be asked; it would start, and ask again."""


def run(arguments: Sequence[str]) -> int:
    """Read the file and ask whom it names; write what was found.

    Args:
        arguments: a file in place of BATCHLINE_AUTOSCALER's, and `--json`.

    Returns:
        the exit code.
    """
    named = [word for word in arguments if not word.startswith("-")]
    trials, config, file = parts.Trials(), configuration.ADVICE, named[0] if named else ""
    with trials.trial():
        file = file or settings.load(needs=("database_url",)).autoscaler
        config = configuration.load(Path(file)) if file else config
    if not trials.faults:
        parts.channel(config, trials)
        parts.providers(config, trials)
        parts.listener(config, trials, leads=lambda: False, obey=_nobody)
    if "--json" in arguments:
        told: dict[str, object] = {
            "works": not (trials.faults or trials.silent),
            "file": file or None,
            "pools": {name: pool.provider for name, pool in config.pools.items()},
            "faults": trials.faults,
            "unanswered": trials.silent,
        }
        print(json.dumps(told))
    else:
        _tell(trials, file)
    return REFUSED if trials.faults else UNANSWERED if trials.silent else WORKS


def _nobody(_instance: str, _reason: str) -> None:
    """A trial listens to no interruption."""


def _tell(trials: parts.Trials, file: str) -> None:
    for fault in trials.faults:
        print(f"autoscaler: {fault}", file=sys.stderr)
    for silent in trials.silent:
        print(f"autoscaler: not checked: {silent}", file=sys.stderr)
    if not (trials.faults or trials.silent):
        print("the configuration works" if file else "no file is named: it would only say what it would do")
