"""Which model next, and taking its jobs: few questions to Postgres, and none of its answers lost."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from batchline.errors import StoreUnavailableError
from batchline.job import ClaimedJob, Lane
from batchline.metrics import CLAIMED
from batchline.store.contract import Claim, Claims, Head
from workers.models import LoadedModel

log = logging.getLogger("workers")

_HEADS_S = 0.05
"""So long is an answer about the heads of the queues good enough to choose by, where one model has all the work."""
_WHOLE_S = 0.5
"""So often is a queue looked at from its very beginning: jobs that come back, and urgent ones, have old ranks."""
_CHEAP_S = 0.01
"""A look at the whole that takes longer than this is dear: something keeps vacuum from removing dead entries (a
snapshot held open, a long dump), and each look reads all of them."""
_DEAR_SHARE_BUSY = 0.02
_DEAR_SHARE_EMPTY = 0.1
"""Dear looks at the whole may take these shares of the time, while there is other work and while there is none."""
_LONGEST_BUSY_S = 10.0
_LONGEST_EMPTY_S = 2.0
"""Yet no longer is waited for the next one: Postgres may merely be slow, and what came back waits below the floor."""
_SLACK_US = 200_000
"""By how much of rank a job may be committed after those behind it."""
_FAR_US = 1_800_000_000
"""So far ahead of the clock rank copies of jobs for shadow versions, and hardly anything else."""
_LOADED_BONUS_US = 1_000_000
"""By how much of rank a loaded model goes before one that must be loaded first."""
_DOUBT_S = 60.0
"""After a lost reply the statement may still be under way on the server: twice its timeout."""
_RECONCILE_S = 1.0


def preferred(heads: Sequence[Head], is_loaded: Callable[[int], bool], *, may_load: bool) -> Head | None:
    """Choose among the heads of one pool.

    Args:
        heads: first jobs of each model, by rank.
        is_loaded: whether a model is in memory.
        may_load: False while another model is being loaded.

    Returns:
        The first head; a loaded model's if one is within a second of rank.
    """
    if not heads:
        return None
    bound = heads[0].rank + _LOADED_BONUS_US if may_load else None
    for head in heads:
        if bound is not None and head.rank > bound:
            break
        if is_loaded(head.model_id):
            return head
    return heads[0] if may_load else None


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is in hand after claiming: the jobs, why no more were taken, and whether the queue has more."""

    jobs: list[ClaimedJob]
    rows: int
    flush_reason: str
    more: bool


@dataclass(slots=True)
class _Known:
    """What is known of the queues of one lane. Floors spare the dead entries of what was claimed before."""

    heads: list[Head] = field(default_factory=list[Head])
    at: float = 0.0
    models: set[int] = field(default_factory=set[int])
    """Whose heads have ever been seen."""
    lowest: int = 0
    """The floor of a look at the heads."""
    floors: dict[int, int] = field(default_factory=dict[int, int])
    """Those of claims, by model: never above a head that was seen."""
    whole_at: float = 0.0
    whole_s: tuple[float, float] = (0.0, 0.0)
    """What the last two looks at the whole took; the quicker counts, since a busy machine only ever adds."""

    def is_good(self, now: float) -> bool:
        """Whether the last look is good enough to choose by.

        Who claims by an old look may use up the nudge for a job of another model that has come since, and that job
        would wait until somebody looks unasked: no old look where there are others, nor where only copies wait.
        """
        if not self.heads or len(self.models) > 1 or now - self.at > _HEADS_S:
            return False
        far = time.time() * 1e6 + _FAR_US
        return any(h.rank <= far for h in self.heads)

    def may_look(self, now: float, *, busy: bool) -> bool:
        """Whether it is time for a look at the whole."""
        dear_s = max(0.0, min(self.whole_s) - _CHEAP_S)
        if busy:
            return now - self.whole_at > min(_WHOLE_S + dear_s / _DEAR_SHARE_BUSY, _LONGEST_BUSY_S)
        return now - self.whole_at > min(dear_s / _DEAR_SHARE_EMPTY, _LONGEST_EMPTY_S)

    def note(self, heads: list[Head], started: float, *, whole: bool) -> None:
        """Keep an answer about the heads, and what follows from it for the floors."""
        self.at = time.monotonic()
        self.heads = heads
        self.models |= {h.model_id for h in heads}
        if whole:
            self.whole_at, self.whole_s = self.at, (self.whole_s[1], self.at - started)
        normal = [h for h in heads if not h.suspect]
        if normal:
            lowest = min(h.rank for h in normal)
            now = int(time.time() * 1e6)
            # While only copies wait, what clients submit next ranks before them and must not wait for a look at all.
            lowest = (now if lowest > now + _FAR_US else lowest) - _SLACK_US
            self.lowest = lowest if whole else max(self.lowest, lowest)
        for h in normal:
            self.floors[h.model_id] = h.rank - _SLACK_US if whole else min(self.floors.get(h.model_id, 0), h.rank)


class Claimer:
    """Used under the slot only: one thread at a time."""

    def __init__(self, claims: Claims, pool: str, held: Callable[[], list[uuid.UUID]]) -> None:
        self._claims = claims
        self._pool = pool
        self._held = held
        self._known = {lane: _Known() for lane in Lane}
        self._passed_over: set[int] = set()
        self._suspect_last = False
        self._doubt_until = 0.0
        self._reconciled_at = 0.0

    def choose(
        self, worker_id: uuid.UUID, lane: Lane, is_loaded: Callable[[int], bool], *, may_load: bool
    ) -> Head | None:
        """The head to serve next; suspects and normal work take turns."""
        self._sort_out(worker_id)
        known = self._known[lane]
        if not known.is_good(time.monotonic()):
            self._ask(lane, known)
        heads = self._servable(known.heads)
        normal = preferred([h for h in heads if not h.suspect], is_loaded, may_load=may_load)
        suspect = preferred([h for h in heads if h.suspect], is_loaded, may_load=may_load)
        chosen = normal if suspect is None or (normal is not None and self._suspect_last) else suspect
        self._suspect_last = chosen is not None and chosen.suspect
        return chosen

    def others_wait(self, lane: Lane, model_id: int) -> bool:
        """Whether, at the last look, other models or suspects had work too."""
        return any(h.suspect or h.model_id != model_id for h in self._known[lane].heads)

    def _ask(self, lane: Lane, known: _Known) -> None:
        """Look at the heads, from the floor or from the very beginning."""
        now = time.monotonic()
        whole = not known.lowest or known.may_look(now, busy=True)
        heads = self._claims.heads(self._pool, lane, floor=0 if whole else known.lowest)
        known.note(self._servable(heads), now, whole=whole)
        nothing = all(h.suspect for h in known.heads)  # one that cannot be run now must not hide normal work
        if nothing and not whole and known.may_look(now := time.monotonic(), busy=False):
            known.note(self._servable(self._claims.heads(self._pool, lane)), now, whole=True)

    def pass_over(self, model_id: int) -> None:
        """Never choose this model: this process cannot run it, and others of the pool may. Any thread may call this."""
        self._passed_over.add(model_id)

    def _servable(self, heads: list[Head]) -> list[Head]:
        return [h for h in heads if h.model_id not in self._passed_over] if self._passed_over else heads

    def take(self, worker_id: uuid.UUID, head: Head, lane: Lane, *, rows: int) -> list[ClaimedJob]:
        """Take jobs of a model that is not loaded; raises as `claim` does."""
        if head.suspect:
            return self.claim_suspect(worker_id, head.model_id, lane)
        self._forget()
        return self._guarded(lambda: self._claims.claim(worker_id, head.model_id, lane, rows=rows)).jobs

    def claim(self, worker_id: uuid.UUID, model: LoadedModel, lane: Lane, *, rows: int) -> Claim:
        """Take jobs of a model that fill `rows`.

        Raises:
            StoreUnavailableError: jobs may be ours without our knowledge; later calls sort that out.
        """
        floors = self._known[lane].floors
        floor = floors.get(model.id, 0)
        claim = self._guarded(lambda: self._claims.claim(worker_id, model.id, lane, rows=rows, floor=floor))
        if claim.jobs:
            floors[model.id] = max(floor, claim.first_rank)
            CLAIMED.labels(model.spec.ref).inc(len(claim.jobs))
        else:
            self._strike(lane, model.id)
        return claim

    def claim_suspect(self, worker_id: uuid.UUID, model_id: int, lane: Lane) -> list[ClaimedJob]:
        """Take the model's first suspect of a lane, if it is still there; raises as `claim` does."""
        self._forget()
        return self._guarded(lambda: self._claims.claim_suspect(worker_id, model_id, lane)).jobs

    def doubt(self) -> None:
        """Jobs may be running under our name that are not in hand."""
        self._doubt_until = time.monotonic() + _DOUBT_S

    def _strike(self, lane: Lane, model_id: int) -> None:
        """The model's queue is empty: forget its head. One that was merely emptied is worth a try while the look lasts:
        the next nudge is likely to be for the same model, and saves a question.
        """
        known = self._known[lane]
        known.heads = [h for h in known.heads if h.suspect or h.model_id != model_id]

    def _forget(self) -> None:
        """The heads are not what they were: look anew before the next choice."""
        for known in self._known.values():
            known.heads = []

    def _guarded(self, ask: Callable[[], Claim]) -> Claim:
        try:
            return ask()
        except StoreUnavailableError:
            self.doubt()
            raise

    def _sort_out(self, worker_id: uuid.UUID) -> None:
        now = time.monotonic()
        if now < self._doubt_until and now - self._reconciled_at > _RECONCILE_S:
            self._reconciled_at = now
            given = self._claims.reconcile(worker_id, self._held())
            if given:
                log.info("jobs given back after a lost reply", extra={"jobs": len(given)})
