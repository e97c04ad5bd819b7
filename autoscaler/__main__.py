"""`python -m autoscaler`: observe, decide and act until told to stop, as BATCHLINE_AUTOSCALER says.

The file is read again when it changes, so that the kill switch needs no restart.

`python -m autoscaler status [--json]` tells what is wanted now and ends; `python -m autoscaler check [FILE] [--json]`
tells whether the configuration works, asking the providers.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from autoscaler import check, parts
from autoscaler import config as configuration
from autoscaler.budget import Budgets, online_of
from autoscaler.config import Config
from autoscaler.loop import Autoscaler, decide, facts_of
from autoscaler.observe import Observer
from autoscaler.parts import Trials
from autoscaler.publish import Publisher
from batchline import logs, metrics, settings
from batchline.clock import SystemClock
from batchline.errors import BatchlineError, SettingsError
from batchline.store import Store, migrations, open_store
from batchline.store.clock import StoreClock
from batchline.store.cost_contract import Standing

log = logging.getLogger("autoscaler")
_CONNECTIONS = 2


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["check"]:
        return check.run(arguments[1:])
    given = settings.load(needs=("database_url",))
    logs.configure(level=given.log_level)
    path = Path(given.autoscaler) if given.autoscaler else None
    config = configuration.load(path) if path else configuration.ADVICE
    migrations.check(given.database_url)
    store = open_store(given.database_url, connections=_CONNECTIONS)
    try:
        if arguments[:1] == ["status"]:
            print(_status(store, config, as_json="--json" in arguments))
        else:
            metrics.serve(given.metrics_port, given.metrics_host)
            _run(store, config, path, lease_s=given.leader_lease_s)
    finally:
        store.close()
    return 0


def _run(store: Store, config: Config, path: Path | None, *, lease_s: float) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    trials = Trials()
    channel, providers = parts.channel(config, trials), parts.providers(config, trials)

    def obey(instance: str, reason: str) -> None:
        scaler.interrupted(instance, reason)

    listener = parts.listener(config, trials, leads=lambda: scaler.leads, obey=obey)
    trials.refuse()
    publisher = Publisher(channel)
    clock = StoreClock(store.db, SystemClock())
    scaler = Autoscaler(store, config, providers, clock, lease_s=lease_s, publisher=publisher)
    threads = [thread for thread in (channel, listener) if thread is not None]
    for thread in threads:
        thread.start()
    scaler.run(stop, [clock.refresh, *([_reread(path, scaler)] if path else [])])
    for thread in threads:
        thread.close()


def _reread(path: Path, scaler: Autoscaler) -> Callable[[], None]:
    """What reads the file again when it has changed; one that cannot be is refused, and the one before stays."""
    seen = path.stat().st_mtime_ns

    def reread() -> None:
        nonlocal seen
        try:
            now = path.stat().st_mtime_ns
        except OSError:
            return
        if now == seen:
            return
        seen = now
        try:
            config, trials = configuration.load(path), Trials()
            providers = parts.providers(config, trials)
            trials.refuse()
            scaler.configure(config, providers)
        except SettingsError as e:
            log.error("the changed configuration is refused; the one before stays", extra={"error": e.detail})  # noqa: TRY400
        except Exception:
            log.exception("the changed configuration is refused; the one before stays")
        else:
            log.info("configuration read again", extra={"path": str(path)})

    return reread


def _status(store: Store, config: Config, *, as_json: bool) -> str:
    clock = StoreClock(store.db, SystemClock())
    clock.refresh()
    observer, budgets = Observer(store, clock), Budgets(store.costs, clock)
    found: list[dict[str, object]] = []
    for pool, look in observer.look(config.pools).items():
        chosen = config.pools.get(pool) or configuration.advised(pool)
        standing = budgets.watch(chosen, leads=False)
        seen = online_of(look.signals) if standing is Standing.SPENT else look.signals
        decision = decide(observer, chosen, [seen], standing)
        found.append(facts_of(pool, look, decision) | {"policy": chosen.policy.name, "provider": chosen.provider})
    if as_json:
        return json.dumps({"pools": found})
    lines = [
        f"pool {f['pool']}: {f['workers']} workers ({f['pending']} more starting, {f['draining']} draining), "
        f"{f['desired']} wanted ({f['reason']}); "
        f"the oldest of {f['queued_rows']} queued rows waits for {f['oldest_age_s']} s"
        for f in found
    ]
    return "\n".join(lines) or "no workers and nothing queued"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BatchlineError as e:
        sys.exit(f"autoscaler: {e.detail}")
