"""`python -m scheduler`: settings, store, queue; the leader's chores in a loop, slow work in threads beside it."""

from __future__ import annotations

import signal
import sys
import threading

from batchline import logs, metrics, settings, webhook
from batchline.clock import SystemClock
from batchline.data.places import places_of
from batchline.errors import BatchlineError
from batchline.queue.celery_queue import CeleryNudger
from batchline.queue.hints import Hints
from batchline.store import migrations, open_store
from scheduler.beside import Beside
from scheduler.chores.blobs import blobs, orphans
from scheduler.chores.cron import Cron
from scheduler.chores.dispatch import dispatch
from scheduler.chores.expedite import expedite
from scheduler.chores.expire import expire
from scheduler.chores.hold import hold
from scheduler.chores.prune import prune
from scheduler.chores.publish import publish
from scheduler.chores.rescue import rescue
from scheduler.chores.threshold import threshold
from scheduler.deliveries import Deliveries
from scheduler.doors import Doors
from scheduler.ending import Ender
from scheduler.finds import Finds
from scheduler.leader import Leader
from scheduler.planning import Planner
from scheduler.posting import Poster

CLOSE_S = 5.0


def main() -> int:
    config = settings.load()
    logs.configure(level=config.log_level)
    migrations.check(config.database_url)
    store = open_store(config.database_url, connections=config.connections)
    hints = Hints(config.redis_url)
    nudger = CeleryNudger(config.redis_url, hints)
    metrics.serve(config.metrics_port, config.metrics_host)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    doors, finds = Doors(places_of(config), store), Finds(store)
    chores = (
        dispatch(config, store, nudger),
        rescue(config, store),
        expire(store),
        expedite(store),
        threshold(store),
        hold(store),
        prune(config, store),
    )
    leader = Leader(store, chores, SystemClock(), lease_s=config.leader_lease_s, worker_lease_s=config.lease_s)
    slow = (
        Cron(config, store, doors, finds).chore(),
        publish(store, doors),
        blobs(config, store, doors),
        orphans(store, doors),
    )
    threads = [
        *(Beside(chore, leader.leads) for chore in slow),
        Planner(config, store, nudger, doors, finds).station(),
        Ender(config, store, doors, finds).station(),
        Deliveries(store.webhooks, Poster(webhook.parse_allowed(config.webhook_allow))),
    ]
    for thread in threads:
        thread.start()
    leader.run(stop)
    for thread in threads:
        thread.close(CLOSE_S)
    nudger.close()
    hints.close()
    store.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BatchlineError as e:
        sys.exit(f"scheduler: {e.detail}")
