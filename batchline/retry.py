"""How long to wait before trying again."""

from __future__ import annotations

import random


def backoff_s(failures: int, *, base_s: float = 1.0, cap_s: float = 300.0, rng: random.Random | None = None) -> float:
    """Seconds to wait after the n-th failure: full jitter over an exponential ceiling.

    Args:
        failures: how many times it has failed, from 1.
        base_s: ceiling of the first wait.
        cap_s: ceiling of every wait.
        rng: source of the jitter; the module's own when absent.

    Returns:
        A number in [ceiling / 2, ceiling], ceiling = min(cap_s, base_s * 2 ** (failures - 1)).
        Half of it is fixed so that a retry is never immediate ("equal jitter", AWS Architecture Blog, 2015).
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(max(failures, 1) - 1, 32))
    return ceiling / 2 + (rng or random).uniform(0, ceiling / 2)
