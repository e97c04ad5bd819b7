"""When to try again, and where: pure rules over what the last try brought."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from batchline.retry import backoff_s

CAP_S = 15.0
"""The longest wait between two tries that the server did not ask for."""

_ELSEWHERE = frozenset({502, 503, 504})
_LATER = frozenset({425, 429})


@dataclass(frozen=True, slots=True)
class Failure:
    """What one try brought. `status` None: no answer came at all."""

    status: int | None
    retry_after_s: float | None = None
    in_flight: bool = False
    """A 409 since the first try of this very call is still on its way."""


@dataclass(frozen=True, slots=True)
class Again:
    """Try once more after `wait_s`; on the next server when `elsewhere`."""

    wait_s: float
    elsewhere: bool


def decide(failure: Failure, *, failures: int, servers: int, left_s: float, rng: random.Random) -> Again | None:
    """What to do after a failed try.

    Args:
        failure: the last one.
        failures: how many tries of this call have failed, this one included.
        servers: how many servers there are to choose from.
        left_s: seconds until the caller's patience ends.
        rng: source of the jitter.

    Returns:
        None: give up and raise. No answer, 502, 503 and 504 move on to the next server, at once until every server
        has been tried in this round. 429 and a key in flight hold for all servers, so the same one is asked later.
        Retry-After is the least wait, with up to a tenth more so that those who were refused together do not come
        back together.
    """
    elsewhere = failure.status is None or failure.status in _ELSEWHERE
    if not (elsewhere or failure.in_flight or failure.status in _LATER):
        return None
    if elsewhere and failures % servers:
        return Again(0.0, elsewhere=True)
    wait_s = backoff_s(max(1, failures // servers), base_s=0.2, cap_s=CAP_S, rng=rng)
    if failure.retry_after_s is not None:
        wait_s = max(wait_s if failures > servers else 0.0, failure.retry_after_s * (1 + rng.uniform(0.0, 0.1)))
    return Again(wait_s, elsewhere) if wait_s < left_s else None


def poll_wait_s(polls: int, asked_s: float, answered_in_s: float) -> float:
    """How long to wait before an unfinished job is asked for again.

    Args:
        polls: how many times it has been asked for, from 1.
        asked_s: how long the server was asked to hold the answer (`Prefer: wait`).
        answered_in_s: how long it took to answer.

    Returns:
        0 when the server held the answer, so that asking at once is no busy loop; else 0.05 s, growing to 2 s.
    """
    if asked_s >= 1.0 and answered_in_s >= asked_s / 2:
        return 0.0
    return min(2.0, 0.05 * 1.5 ** min(polls - 1, 20))


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """The Retry-After header in seconds from now, given as seconds or as a date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
