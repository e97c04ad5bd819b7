"""`python -m scheduler`: settings, store, queue, chores, loop."""

from __future__ import annotations

import signal
import sys
import threading

from batchline import logs, metrics, settings
from batchline.clock import SystemClock
from batchline.errors import BatchlineError
from batchline.queue.celery_queue import CeleryNudger
from batchline.queue.hints import Hints
from batchline.store import migrations, open_store
from scheduler.chores.dispatch import dispatch
from scheduler.chores.expire import expire
from scheduler.chores.prune import prune
from scheduler.chores.rescue import rescue
from scheduler.leader import Leader


def main() -> int:
    config = settings.load()
    logs.configure(level=config.log_level)
    migrations.check(config.database_url)
    store = open_store(config.database_url, connections=2)
    hints = Hints(config.redis_url)
    nudger = CeleryNudger(config.redis_url, hints)
    metrics.serve(config.metrics_port, config.metrics_host)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    chores = (dispatch(config, store, nudger), rescue(config, store), expire(store), prune(config, store))
    leader = Leader(store, chores, SystemClock(), lease_s=config.leader_lease_s, worker_lease_s=config.lease_s)
    leader.run(stop)
    nudger.close()
    hints.close()
    store.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BatchlineError as e:
        sys.exit(f"scheduler: {e.detail}")
