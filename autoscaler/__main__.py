"""`python -m autoscaler`: every few seconds, one line a pool: what is seen, what is wanted, and why.

`python -m autoscaler status [--json]` tells it once and ends.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Sequence

from autoscaler.guards import guard
from autoscaler.observe import observe
from autoscaler.policies import QueueRule
from autoscaler.signals import Decision, Facts, Limits, Signals, Spent
from batchline import logs, settings
from batchline.clock import SystemClock
from batchline.errors import BatchlineError
from batchline.store import Store, migrations, open_store

log = logging.getLogger("autoscaler")
EVERY_S = 5.0
LIMITS = Limits(min_workers=1)
POLICY = QueueRule()


def main(arguments: list[str]) -> int:
    config = settings.load(needs=("database_url",))
    logs.configure(level=config.log_level)
    migrations.check(config.database_url)
    store = open_store(config.database_url, connections=1)
    if arguments[:1] == ["status"]:
        print(_status(store, as_json="--json" in arguments))
    else:
        _advise(store)
    store.close()
    return 0


def _decide(history: Sequence[Signals]) -> Decision:
    seen = history[-1]
    wanted = POLICY.decide(history, Facts(), seen.at)
    return guard(wanted, seen, LIMITS, Facts(), Spent())


def _facts(pool: str, seen: Signals, decision: Decision) -> dict[str, object]:
    return {
        "pool": pool,
        "queued_rows": round(seen.queued_rows),
        "oldest_age_s": round(seen.oldest_age_s, 1),
        "workers": seen.workers,
        "desired": decision.desired,
        "reason": decision.reason,
    }


def _status(store: Store, *, as_json: bool) -> str:
    seen = observe(store, SystemClock().now().timestamp())
    found = [_facts(pool, look, _decide([look])) for pool, look in seen.items()]
    if as_json:
        return json.dumps({"pools": found})
    lines = [
        f"pool {f['pool']}: {f['workers']} workers, {f['desired']} wanted ({f['reason']}); "
        f"the oldest of {f['queued_rows']} queued rows waits for {f['oldest_age_s']} s"
        for f in found
    ]
    return "\n".join(lines) or "no workers and nothing queued"


def _advise(store: Store) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    clock = SystemClock()
    histories: dict[str, list[Signals]] = collections.defaultdict(list)
    while not stop.is_set():
        try:
            for pool, seen in observe(store, clock.now().timestamp()).items():
                history = histories[pool]
                history.append(seen)
                log.info("advice", extra=_facts(pool, seen, _decide(history)))
                del history[: -math.ceil(POLICY.remembers_s / EVERY_S) - 1]
        except BatchlineError as e:
            log.warning("cannot observe", extra={"error": e.detail})
        stop.wait(EVERY_S)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BatchlineError as e:
        sys.exit(f"autoscaler: {e.detail}")
