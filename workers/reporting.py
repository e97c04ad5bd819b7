"""Tells Postgres with each heartbeat whose this process's time was."""

from __future__ import annotations

import logging
import uuid

from batchline.errors import StoreUnavailableError
from batchline.store.cost_contract import CostRoom
from workers.turns import Turns

log = logging.getLogger("workers")


class Reporter:
    """Used by the heartbeat's thread; what cannot be told now is told later."""

    def __init__(self, costs: CostRoom, turns: Turns) -> None:
        self._costs = costs
        self._turns = turns
        self._worker_id: uuid.UUID | None = None

    def tell(self, worker_id: uuid.UUID) -> None:
        """Report under this id; never raises, since a worker may live without being accounted for."""
        if self._worker_id not in {None, worker_id}:
            self._turns.renamed()
        self._worker_id = worker_id
        try:
            used = self._turns.used()
            self._costs.report(worker_id, used)
            self._turns.told(used)
        except StoreUnavailableError as e:
            log.info("usage not told yet", extra={"error": e.detail})
        except Exception:
            log.exception("usage not told")
