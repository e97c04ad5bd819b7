"""`python -m autoscaler`: every few seconds, one line a pool: what is seen, what is wanted, and why."""

from __future__ import annotations

import collections
import logging
import signal
import sys
import threading

from autoscaler.observe import observe
from autoscaler.policy import Limits, decide
from batchline import logs, settings
from batchline.clock import SystemClock
from batchline.errors import BatchlineError
from batchline.store import migrations, open_store

log = logging.getLogger("autoscaler")
EVERY_S = 5.0


def main() -> int:
    config = settings.load(needs=("database_url",))
    logs.configure(level=config.log_level)
    migrations.check(config.database_url)
    store = open_store(config.database_url, connections=1)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    clock = SystemClock()
    limits = Limits()
    wanted: dict[str, collections.deque[tuple[float, int]]] = collections.defaultdict(
        lambda: collections.deque(maxlen=1000)
    )
    while not stop.is_set():
        try:
            for pool, seen in observe(store).items():
                now = clock.monotonic()
                decision = decide(seen, limits, wanted[pool], now)
                wanted[pool].append((now, -(-seen.queued_rows // limits.rows_per_worker)))
                log.info(
                    "advice",
                    extra={
                        "pool": pool,
                        "queued_rows": seen.queued_rows,
                        "workers": seen.workers,
                        "desired": decision.desired,
                        "reason": decision.reason,
                    },
                )
        except BatchlineError as e:
            log.warning("cannot observe", extra={"error": e.detail})
        stop.wait(EVERY_S)
    store.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BatchlineError as e:
        sys.exit(f"autoscaler: {e.detail}")
