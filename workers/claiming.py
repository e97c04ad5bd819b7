"""Which model next, and taking its jobs: few questions to Postgres, and none of its answers lost."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchline.errors import StoreUnavailableError
from batchline.job import ClaimedJob, Lane
from batchline.metrics import CLAIMED
from batchline.store.contract import Claim, Claims, Head
from workers.models import LoadedModel

log = logging.getLogger("workers")

_HEADS_S = 0.05
"""So long is an answer about the heads of the queues good enough to choose by."""
_FLOOR_S = 0.5
"""So often is the queue looked at from its very beginning: jobs that come back have old ranks."""
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


class Claimer:
    """Used under the slot only: one thread at a time."""

    def __init__(self, claims: Claims, pool: str, held: Callable[[], list[uuid.UUID]]) -> None:
        self._claims = claims
        self._pool = pool
        self._held = held
        self._heads: dict[Lane, tuple[float, list[Head]]] = {}
        self._whole_at = 0.0
        self._lowest = 0
        self._floors: dict[tuple[int, Lane], tuple[int, float]] = {}
        self._suspect_last = False
        self._doubt_until = 0.0
        self._reconciled_at = 0.0

    def choose(
        self, worker_id: uuid.UUID, lane: Lane, is_loaded: Callable[[int], bool], *, may_load: bool
    ) -> Head | None:
        """The head to serve next; suspects and normal work take turns."""
        self._sort_out(worker_id)
        at, heads = self._heads.get(lane, (0.0, []))
        if not heads or time.monotonic() - at > _HEADS_S:
            heads = self._ask(lane)
        normal = preferred([h for h in heads if not h.suspect], is_loaded, may_load=may_load)
        suspect = preferred([h for h in heads if h.suspect], is_loaded, may_load=may_load)
        chosen = normal if suspect is None or (normal is not None and self._suspect_last) else suspect
        self._suspect_last = chosen is not None and chosen.suspect
        return chosen

    def others_wait(self, lane: Lane, model_id: int) -> bool:
        """Whether, at the last look, other models or suspects had work too."""
        return any(h.suspect or h.model_id != model_id for h in self._heads.get(lane, (0.0, []))[1])

    def _ask(self, lane: Lane) -> list[Head]:
        now = time.monotonic()
        whole = now - self._whole_at > _FLOOR_S
        heads = self._claims.heads(self._pool, lane, floor=0 if whole else self._lowest)
        if not heads and not whole and self._lowest:
            whole, heads = True, self._claims.heads(self._pool, lane)
        if whole:
            self._whole_at = now
            self._lowest = min((h.rank for h in heads if not h.suspect), default=0)
        self._heads[lane] = (now, heads)
        return heads

    def take(self, worker_id: uuid.UUID, head: Head, lane: Lane, *, rows: int) -> list[ClaimedJob]:
        """Take jobs of a model that is not loaded; raises as `claim` does."""
        if head.suspect:
            return self.claim_suspect(worker_id, head.model_id)
        self._heads.clear()
        return self._guarded(lambda: self._claims.claim(worker_id, head.model_id, lane, rows=rows)).jobs

    def claim(self, worker_id: uuid.UUID, model: LoadedModel, lane: Lane, *, rows: int) -> Claim:
        """Take jobs of a model that fill `rows`.

        Raises:
            StoreUnavailableError: jobs may be ours without our knowledge; later calls sort that out.
        """
        key = (model.id, lane)
        now = time.monotonic()
        floor, whole_at = self._floors.get(key, (0, 0.0))
        if now - whole_at > _FLOOR_S:
            floor = 0
        claim = self._guarded(lambda: self._claims.claim(worker_id, model.id, lane, rows=rows, floor=floor))
        if not claim.jobs and floor:
            floor = 0
            claim = self._guarded(lambda: self._claims.claim(worker_id, model.id, lane, rows=rows))
        self._floors[key] = (claim.first_rank, whole_at if floor else now)
        if claim.jobs:
            CLAIMED.labels(model.spec.ref).inc(len(claim.jobs))
        else:
            self._strike(lane, model.id)
        return claim

    def claim_suspect(self, worker_id: uuid.UUID, model_id: int) -> list[ClaimedJob]:
        """Take the model's first suspect, if it is still there; raises as `claim` does."""
        self._heads.clear()
        return self._guarded(lambda: self._claims.claim_suspect(worker_id, model_id)).jobs

    def doubt(self) -> None:
        """Jobs may be running under our name that are not in hand."""
        self._doubt_until = time.monotonic() + _DOUBT_S

    def _strike(self, lane: Lane, model_id: int) -> None:
        """The model's queue is empty: forget its head. One that was merely emptied is worth a try while the look lasts:
        the next nudge is likely to be for the same model, and saves a question.
        """
        at, heads = self._heads.get(lane, (0.0, []))
        self._heads[lane] = (at, [h for h in heads if h.suspect or h.model_id != model_id])

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
