"""The job: its statuses, the only legal moves between them, its id, and its place in the queue.

State chart (ages by the database's clock; terminal statuses have no way out):

    queued --claim--> running --finish--> succeeded | failed
       |                 |--retry, give_back, rescue--> queued
       |                 |--poison--> failed
       |                 `--cancel--> cancelled
       |--cancel--> cancelled
       `--expire--> expired
"""

from __future__ import annotations

import os
import random
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec

from batchline import ids
from batchline.errors import NotFoundError
from batchline.webhook import Webhook


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Lane(StrEnum):
    """`online`: inline rows, wanted soon. `bulk`: slices of batches."""

    ONLINE = "online"
    BULK = "bulk"


class Move(StrEnum):
    """What may happen to a job."""

    CLAIM = "claim"
    FINISH = "finish"
    RETRY = "retry"
    GIVE_BACK = "give_back"
    RESCUE = "rescue"
    POISON = "poison"
    CANCEL = "cancel"
    EXPIRE = "expire"


TRANSITIONS: dict[Move, tuple[frozenset[Status], frozenset[Status]]] = {
    Move.CLAIM: (frozenset({Status.QUEUED}), frozenset({Status.RUNNING})),
    Move.FINISH: (frozenset({Status.RUNNING}), frozenset({Status.SUCCEEDED, Status.FAILED})),
    Move.RETRY: (frozenset({Status.RUNNING}), frozenset({Status.QUEUED, Status.FAILED})),
    Move.GIVE_BACK: (frozenset({Status.RUNNING}), frozenset({Status.QUEUED})),
    Move.RESCUE: (frozenset({Status.RUNNING}), frozenset({Status.QUEUED})),
    Move.POISON: (frozenset({Status.RUNNING}), frozenset({Status.FAILED})),
    Move.CANCEL: (frozenset({Status.QUEUED, Status.RUNNING}), frozenset({Status.CANCELLED})),
    Move.EXPIRE: (frozenset({Status.QUEUED}), frozenset({Status.EXPIRED})),
}
"""move -> (from, to). The SQL guards (`guard`) and the state-machine test are made from this table."""

TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})


def guard(move: Move, *, by_id: bool = False) -> str:
    """The SQL condition under which `move` is legal, for a table aliased `j`.

    Args:
        move: what is to be done.
        by_id: the rows are found by their ids, and by nothing else: the condition is written so that no index of the
            jobs of one status serves it. Planned at a moment when few jobs had that status, a statement would read the
            whole of such an index, and with it all dead entries that a held snapshot keeps there.
    """
    return f"j.status{'::text' if by_id else ''} IN ({names(TRANSITIONS[move][0])})"


def names(statuses: frozenset[Status]) -> str:
    """The statuses as an SQL list, for IN."""
    return ", ".join(f"'{status}'" for status in sorted(statuses))


def is_legal(source: Status, target: Status) -> bool:
    """Whether any single move leads from source to target."""
    return any(source in sources and target in targets for sources, targets in TRANSITIONS.values())


# Ids need to be unique, not secret: seeded by the system once, and anew after a fork. Nobody else can seed it.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def new_job_id(epoch_s: float | None = None) -> uuid.UUID:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then random; sorts by time of creation.

    Args:
        epoch_s: that time; without it this machine's clock is asked.
    """
    ms = time.time_ns() // 1_000_000 if epoch_s is None else int(epoch_s * 1000)
    value = (ms & (2**48 - 1)) << 80 | 0x7 << 76 | _random.getrandbits(12) << 64 | 0b10 << 62 | _random.getrandbits(62)
    return uuid.UUID(int=value)


def first_id_at(epoch_s: float) -> uuid.UUID:
    """The smallest id that can be minted at a time: what is older has a smaller id."""
    return uuid.UUID(int=(max(int(epoch_s * 1000), 0) & (2**48 - 1)) << 80)


def show_id(job_id: uuid.UUID) -> str:
    """The id as clients see it: `job_` and 26 characters; see `batchline.ids`."""
    return ids.show("job_", job_id)


def parse_id(text: str) -> uuid.UUID:
    """The inverse of `show_id`.

    Raises:
        NotFoundError: the text is no job id, so no job has it.
    """
    job_id = ids.parse("job_", text)
    if job_id is None:
        raise NotFoundError("There is no job with this id.")
    return job_id


PRIORITY_STEP_S = 60.0
"""How many seconds of waiting one step of priority is worth; ageing follows from it."""

DEADLINE_MARGIN_S = 5.0
"""A job with a deadline is ranked as if wanted this long before it."""

DEFAULT_PRIORITY = 5


def rank_us(start: float, priority: int, deadline: float | None = None) -> int:
    """A job's place in its queue: smaller is claimed first.

    Args:
        start: virtual start time of the job within its tenant's share, in epoch seconds: now, and as much later as
            the tenant is ahead (see `FairShare`).
        priority: 0 (first) to 9.
        deadline: epoch seconds by which it should be finished, or None.

    Returns:
        Microseconds: start shifted by (priority - 5) steps, and never later than the deadline less a margin.
        Since start grows with time, a waiting job overtakes newer ones of better priority by itself.
    """
    wanted = start + (priority - DEFAULT_PRIORITY) * PRIORITY_STEP_S
    if deadline is not None:
        wanted = min(wanted, deadline - DEADLINE_MARGIN_S)
    return int(wanted * 1e6)


class FairShare:
    """How far tenants are ahead of their share: start-time fair queueing (Goyal, Vin, Cheng, 1996).

    A tenant that submits faster than its share runs ahead of the clock, and its later jobs rank behind those of a
    tenant that just came. One per API process; processes need not agree exactly. Kept in monotonic time: no step of a
    wall clock puts anybody behind.
    """

    def __init__(self) -> None:
        self._next: dict[int, float] = {}

    def ahead_s(self, tenant_id: int, at_s: float, cost_s: float) -> float:
        """How long after now a job of the tenant starts virtually.

        Args:
            tenant_id: whose it is.
            at_s: now, in monotonic seconds.
            cost_s: seconds of the pool that the job costs.
        """
        start = max(at_s, self._next.get(tenant_id, at_s))
        self._next[tenant_id] = start + cost_s
        if len(self._next) > 10_000:
            self._next = {t: at for t, at in self._next.items() if at > at_s}
        return start - at_s


class NewJob(msgspec.Struct, frozen=True, gc=False):
    """A job as admission hands it to the store; complete, checked, ids minted."""

    id: uuid.UUID
    tenant_id: int
    model_id: int
    lane: Lane
    priority: int
    rank: int
    rows: int
    payload: bytes
    """The input rows, as `batchline.rows` packs them."""
    metadata: str | None = None
    """The client's metadata: the text of a JSON object."""
    deadline_at: datetime | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None
    webhook: Webhook | None = None


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """What became of one NewJob: its own id, or the first job's of its idempotency key."""

    id: uuid.UUID
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job in a worker's hands. `attempt` is the fence that every later statement carries."""

    id: uuid.UUID
    tenant_id: int
    model_id: int
    attempt: int
    failures: int
    rows: int
    suspect: bool
    queued_ms: float
    """How long it waited in the queue, by the database's clock."""
    payload: bytes


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """How one claimed job ended. `outputs` and `errors` are JSON texts (arrays), `timings` a JSON object."""

    id: uuid.UUID
    attempt: int
    status: Status
    outputs: str | None
    errors: str | None
    timings: str
    rows_failed: int
    code: str | None = None


class JobView(msgspec.Struct, frozen=True, gc=False):
    """A job as it is read back; JSON parts stay text and are passed through."""

    id: uuid.UUID
    tenant_id: int
    model: str
    version: str
    status: Status
    lane: Lane
    priority: int
    rows: int
    rows_failed: int
    attempt: int
    suspect: bool
    code: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    run_at: datetime | None
    metadata: str | None
    outputs: str | None
    errors: str | None
    timings: str | None
    position: int | None
    """How many jobs of its model and lane are ahead; None past 1,000 or when not queued."""
    result_pruned: bool
    webhook: Webhook | None = None
