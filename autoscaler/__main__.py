"""`python -m autoscaler`: observe, decide and act until told to stop, as BATCHLINE_AUTOSCALER says.

The file is read again when it changes, so that the kill switch needs no restart.

`python -m autoscaler status [--json]` tells what is wanted now and ends; `python -m autoscaler check` tells whether the
configuration works, asking the providers.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autoscaler import config as configuration
from autoscaler.budget import Budgets, online_of
from autoscaler.clock import StoreClock
from autoscaler.config import Config
from autoscaler.loop import Autoscaler, decide, facts_of
from autoscaler.observe import Observer
from autoscaler.providers import NONE, Provider, ProviderError, build
from autoscaler.publish import Publisher
from autoscaler.tables import decode
from batchline import logs, metrics, settings
from batchline.clock import SystemClock
from batchline.errors import BatchlineError, SettingsError
from batchline.store import Store, migrations, open_store
from batchline.store.cost_contract import Standing

if TYPE_CHECKING:
    from autoscaler.cloudwatch import CloudWatch
    from autoscaler.interruptions import Interruptions

log = logging.getLogger("autoscaler")
_CONNECTIONS = 2


def main(arguments: list[str]) -> int:
    given = settings.load(needs=("database_url",))
    logs.configure(level=given.log_level)
    path = Path(given.autoscaler) if given.autoscaler else None
    config = configuration.load(path) if path else configuration.ADVICE
    if arguments[:1] == ["check"]:
        _checked(config)
        _channel(config)
        _listener(config, None)
        print("the configuration works")
        return 0
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
    channel = _channel(config)
    providers, publisher = _checked(config), Publisher(channel)
    scaler = Autoscaler(store, config, providers, _clock(store), lease_s=lease_s, publisher=publisher)
    threads = [thread for thread in (channel, _listener(config, scaler)) if thread is not None]
    for thread in threads:
        thread.start()
    scaler.run(stop, _reread(path, scaler) if path else lambda: None)
    for thread in threads:
        thread.close()


def _clock(store: Store) -> StoreClock:
    return StoreClock(store.db, SystemClock())


def _channel(config: Config) -> CloudWatch | None:
    """CloudWatch, if the file has a table of that name, and if it works.

    Raises:
        SettingsError: it cannot work, or boto3 is not installed.
    """
    if config.cloudwatch is None:
        return None
    try:
        from autoscaler.cloudwatch import CloudWatch, Options  # noqa: PLC0415 - boto3 is an extra
    except ImportError as e:
        raise SettingsError(f"cloudwatch needs {e.name}, which is not installed: pip install 'batchline[data]'") from e
    channel = CloudWatch(decode(config.cloudwatch, Options, "cloudwatch"), stack=config.stack)
    channel.check()
    return channel


def _listener(config: Config, scaler: Autoscaler | None) -> Interruptions | None:
    """Who hears of spot interruptions, if the file names their queue, and if it works.

    Raises:
        SettingsError: it cannot work, or boto3 is not installed.
    """
    if config.interruptions is None:
        return None
    try:
        from autoscaler.interruptions import Interruptions, Options  # noqa: PLC0415 - boto3 is an extra
    except ImportError as e:
        told = f"interruptions needs {e.name}, which is not installed: pip install 'batchline[data]'"
        raise SettingsError(told) from e
    options = decode(config.interruptions, Options, "interruptions")
    listener = Interruptions(
        options,
        leads=lambda: scaler is not None and scaler.leads,
        obey=lambda instance, reason: scaler.interrupted(instance, reason) if scaler else None,
    )
    listener.check()
    return listener


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
            config = configuration.load(path)
            scaler.configure(config, _checked(config))
        except SettingsError as e:
            log.error("the changed configuration is refused; the one before stays", extra={"error": e.detail})  # noqa: TRY400
        except Exception:
            log.exception("the changed configuration is refused; the one before stays")
        else:
            log.info("configuration read again", extra={"path": str(path)})

    return reread


def _checked(config: Config) -> Mapping[str, Provider]:
    """The provider of each pool that has one.

    Raises:
        SettingsError: what cannot work, of all pools, one a line. A provider that does not answer now may do so later.
    """
    providers, faults = dict[str, Provider](), list[str]()
    for pool in config.pools.values():
        if pool.provider == NONE:
            continue
        try:
            providers[pool.pool] = build(pool.provider, pool.pool, pool.options, stack=config.stack)
            providers[pool.pool].check()
        except SettingsError as e:
            faults += [f"pools.{pool.pool}: {fault}" for fault in e.detail.split("\n")]
        except ProviderError as e:
            log.warning("provider not checked", extra={"pool": pool.pool, "error": e.detail})
    if faults:
        raise SettingsError("\n".join(faults))
    return providers


def _status(store: Store, config: Config, *, as_json: bool) -> str:
    clock = _clock(store)
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
