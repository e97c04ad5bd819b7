"""Wall time as Postgres has it: what is compared with rows goes by the clock that wrote them."""

from __future__ import annotations

import logging
import math
from datetime import datetime, timedelta

from batchline.clock import Clock
from batchline.errors import StoreUnavailableError
from batchline.metrics import CLOCK_OFF
from batchline.store.postgres import Database

log = logging.getLogger("batchline.store")

_ASK_S = 60.0
"""Two clocks drift apart by less than a hundredth of a second within it."""
_ASK_AGAIN_S = 5.0
_TELL_S = 30.0
"""A machine whose own clock is off by more is told of: AWS refuses requests of one that is off by minutes."""


class StoreClock:
    """Postgres' wall time, asked for once a minute and carried on by this machine's monotonic time.

    Steps of this machine's own wall clock change nothing; while Postgres is away time goes on by itself.
    """

    def __init__(self, db: Database, own: Clock) -> None:
        """Args:
        db: asked by `refresh`, and by nothing else.
        own: this machine's; its wall time counts until Postgres has answered for the first time.
        """
        self._db = db
        self._own = own
        self._due = -math.inf
        self._then: tuple[datetime, float] | None = None
        self._told = False

    def refresh(self) -> None:
        """Ask Postgres if it is time (blocking); for one thread, called every few seconds at least."""
        at = self._own.monotonic()
        if at >= self._due:
            self._due = at + (_ASK_S if self._ask() else _ASK_AGAIN_S)

    def now(self) -> datetime:
        """Never blocks."""
        known = self._then
        if known is None:
            return self._own.now()
        then, since = known
        return then + timedelta(seconds=self._own.monotonic() - since)

    def monotonic(self) -> float:
        return self._own.monotonic()

    def _ask(self) -> bool:
        begun = self._own.monotonic()
        try:
            then: datetime = self._db.run("SELECT clock_timestamp()")[0][0]
        except StoreUnavailableError as e:
            log.info("Postgres was not asked for the time", extra={"error": e.detail})
            return False
        self._then = then, (begun + self._own.monotonic()) / 2
        off_s = (self._own.now() - then).total_seconds()
        CLOCK_OFF.set(off_s)
        if abs(off_s) > _TELL_S and not self._told:
            log.warning("this machine's clock is off from Postgres', which counts", extra={"seconds": round(off_s)})
        self._told = abs(off_s) > _TELL_S
        return True
