"""The loop: hold the lease, look, decide, act; whatever a provider or a pool does, the next tick comes."""

from __future__ import annotations

import logging
import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from autoscaler.act import LAUNCH_KEPT_S, Hands
from autoscaler.budget import Budgets, online_of, within
from autoscaler.config import Config, PoolConfig, advised
from autoscaler.guards import guard
from autoscaler.observe import Look, Observer
from autoscaler.providers.contract import Provider
from autoscaler.publish import Publisher, kept
from autoscaler.signals import Decision, Signals
from batchline.clock import Clock
from batchline.errors import BatchlineError
from batchline.store import Store
from batchline.store.cost_contract import Standing
from batchline.store.instance_contract import Launch, Scaling
from batchline.store.instances import LEASE

log = logging.getLogger("autoscaler")

ADVICE = "autoscaler.advice"
"""The lease of who only advises. It gives way to whoever can act, so that nobody waits for one that cannot."""
_TELL_S = 60.0
"""A decision that stays the same is kept and logged this often."""
_WATCH_S = 60.0
"""A scaler that found workers at its start looks on for so long before it gives any up."""


class Autoscaler:
    """One of possibly several; only the holder of the lease acts, the others look on and are ready.

    Without a provider it only advises: then it leads while nobody holds the lease of those that act.

    Two that act at once (a paused process wakes up) do no harm: an intent needs the lease, and what follows it is
    idempotent.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        providers: Mapping[str, Provider],
        clock: Clock,
        *,
        lease_s: float,
        publisher: Publisher | None = None,
    ) -> None:
        """Args:
        store: a migrated one.
        config: pools, limits, policies.
        providers: by pool; pools without one are advised only.
        clock: wall time as Postgres has it (`StoreClock`), monotonic time for waits.
        lease_s: of the leader; at least some ticks.
        publisher: is told of what is seen, wanted and done.
        """
        self._store = store
        self._config = config
        self._clock = clock
        self._lease_s = max(lease_s, 3 * config.every_s)
        self._id = uuid.uuid4()
        self._observer = Observer(store, clock)
        self._budgets = Budgets(store.costs, clock)
        self._history: dict[str, list[Signals]] = {}
        self._told: dict[str, tuple[int, float]] = {}
        self._looks: dict[str, Look] = {}
        self._lease = LEASE
        self._leads = False
        self._led_at = -math.inf
        self._said: bool | None = None
        self._stop = threading.Event()
        self._keep_until: dict[str, float] = {}
        self._publisher = publisher or Publisher()
        self._hands: dict[str, Hands] = {}
        self.configure(config, providers)

    def configure(self, config: Config, providers: Mapping[str, Provider]) -> None:
        """Go on by another configuration; what has been seen is kept, and what is decided from now on is told."""
        self._config = config
        self._told = {}
        self._hands = {
            pool: Hands(
                self._store,
                self._id,
                config.pools[pool],
                one,
                self._clock,
                reconcile_s=config.reconcile_s,
                publisher=self._publisher,
            )
            for pool, one in providers.items()
        }

    def run(self, stop: threading.Event, before: Sequence[Callable[[], None]] = ()) -> None:
        """Work until `stop` is set, then let go of the lease; each of `before` is called before each tick."""
        self._stop = stop
        while not stop.is_set():
            begun = self._clock.monotonic()
            for call in before:
                call()
            self.tick()
            stop.wait(max(0.0, self._config.every_s - (self._clock.monotonic() - begun)))
        self.close()

    def tick(self) -> None:
        """Look, decide and act once."""
        try:
            self._lead()
            unsettled = self._store.instances.unsettled() if self._leads else []
            if self._leads:
                self._store.instances.registered()
                self._close(unsettled)
                if self._config.pools:  # without a file somebody else's may still hold
                    self._budgets.free(self._config.pools)
            for pool, hands in self._hands.items() if self._leads else ():
                moving = pool in self._looks and self._looks[pool].moving
                self._each(pool, partial(hands.tend, [x for x in unsettled if x.pool == pool], moving=moving))
            self._looks = self._observer.look(self._config.pools)
            for pool, look in self._looks.items():
                self._each(pool, partial(self._pool, pool, look))
            if self._leads:
                self._end()
        except BatchlineError as e:
            log.warning("tick failed", extra={"error": e.detail})
        except Exception:
            log.exception("tick failed")

    @property
    def id(self) -> uuid.UUID:
        """As the holder of the lease."""
        return self._id

    @property
    def leads(self) -> bool:
        """Whether it held the lease at the last tick."""
        return self._leads

    def interrupted(self, instance_id: str, reason: str) -> None:
        """An instance is about to be taken away: its workers claim nothing more and leave, whoever launched it.

        Raises:
            StoreUnavailableError: say it again.
        """
        self._store.instances.stop(self._id, instance_id, reason)
        for worker in self._store.workers.list():
            if worker.instance == instance_id and not worker.draining:
                self._store.workers.drain(worker.id)

    def close(self) -> None:
        """Let go of the lease, so that another leads at once."""
        if not self._leads:
            return
        try:
            self._store.workers.resign(self._lease, self._id)
        except BatchlineError as e:
            log.warning("lease not given back; it runs out by itself", extra={"error": e.detail})

    def _lead(self) -> None:
        lease = LEASE if self._hands else ADVICE
        if lease != self._lease:
            self.close()
            self._lease = lease
        workers = self._store.workers
        try:
            free = lease == LEASE or workers.leader(LEASE) is None
            self._led_at = self._clock.monotonic()
            self._leads = free and workers.lead(lease, self._id, lease_s=self._lease_s) is not None
        except BatchlineError:
            self._leads = False
            raise
        finally:
            self._publisher.leads(self._leads)
        if self._leads != self._said:
            log.info("leading" if self._leads else "looking on: another leads")
            self._said = self._leads

    def _leads_on(self) -> bool:
        """Whether it still leads; providers of other pools may have kept this tick for longer than a lease."""
        if self._clock.monotonic() - self._led_at > self._lease_s / 3:
            self._lead()
        return self._leads

    def _each(self, pool: str, step: Callable[[], None]) -> None:
        """One pool's step: what fails in it is no matter of the others."""
        if self._stop.is_set():
            return
        try:
            step()
        except BatchlineError as e:
            log.warning("pool failed", extra={"pool": pool, "error": e.detail})
        except Exception:
            log.exception("pool failed", extra={"pool": pool})

    def _pool(self, pool: str, look: Look) -> None:
        config = self._config.pools.get(pool) or advised(pool)
        standing = self._standing(config)
        history = self._history.setdefault(pool, [])
        if history and look.signals.at < history[-1].at:  # Postgres' clock went back: as after a start
            history.clear()
            self._keep_until.pop(pool, None)
        if history:  # deadlines of earlier looks are asked by nobody, and tenants may have very many
            history[-1] = replace(history[-1], demands=())
        history.append(online_of(look.signals) if standing is Standing.SPENT else look.signals)
        del history[: -math.ceil(config.policy.remembers_s / self._config.every_s) - 2]
        decision = decide(self._observer, config, history, standing)
        self._tell(config, look, decision)
        acts = self._leads and pool in self._hands and config.limits.enabled
        if acts and not self._too_early(config, look, decision) and self._leads_on():
            self._hands[pool].bring(look, decision)

    def _too_early(self, config: PoolConfig, look: Look, decision: Decision) -> bool:
        """Whether a scaler that found workers at its start would give some up before it has seen what arrives."""
        now = self._clock.monotonic()
        found = min(config.policy.remembers_s, _WATCH_S) if look.managed else 0.0
        until = self._keep_until.setdefault(config.pool, now + found)
        return decision.desired < look.signals.total and now < until

    def _standing(self, config: PoolConfig) -> Standing:
        """With the budget of the day, of a pool that a file names."""
        if config.pool not in self._config.pools:
            return Standing.WELL
        return self._budgets.watch(config, leads=self._leads)

    def _end(self) -> None:
        """End what has drained, each pool's by its own provider."""
        stopping = self._store.instances.drained(self._id)
        for pool, hands in self._hands.items():
            self._each(pool, partial(hands.end, [i for i in stopping if i.pool == pool]))

    def _close(self, unsettled: list[Launch]) -> None:
        """Give up launches of pools that nobody can call any more."""
        now = self._clock.now()
        for launch in unsettled:
            if launch.pool not in self._hands and (now - launch.created_at).total_seconds() > LAUNCH_KEPT_S:
                about = {"pool": launch.pool, "provider": launch.provider, "launch": str(launch.id)}
                log.error("launch given up: look for instances with this tag yourself", extra=about)
                self._store.instances.settle(launch.id, [], error="its pool has no provider any more")

    def _tell(self, config: PoolConfig, look: Look, decision: Decision) -> None:
        """Publish a decision; log and keep it when it changes, and now and then."""
        self._publisher.looked(config.pool, look.signals, decision, leads=self._leads)
        now = self._clock.monotonic()
        desired, told_at = self._told.get(config.pool, (-1, -math.inf))
        if desired == decision.desired and now - told_at < _TELL_S:
            return
        self._told[config.pool] = (decision.desired, now)
        log.info("decision" if config.pool in self._hands else "advice", extra=facts_of(config.pool, look, decision))
        if self._leads and config.pool not in self._hands and (look.managed or look.moving):
            log.warning("nobody ends its instances: the pool has no provider any more", extra={"pool": config.pool})
        if self._leads:
            signals = kept(look.signals, config.limits)
            self._store.instances.decided(
                Scaling(self._clock.now(), config.pool, decision.desired, decision.reason, signals)
            )


def decide(
    observer: Observer, config: PoolConfig, history: list[Signals], standing: Standing = Standing.WELL
) -> Decision:
    """What is wanted now, within the limits; `standing` is with the budget."""
    seen, facts = history[-1], observer.facts(config)
    wanted = config.policy.decide(history, facts, seen.at)
    spent = observer.spent(config.pool, config.limits)
    decision = guard(wanted, seen, within(standing, seen, config.limits, facts, spent), facts, spent)
    if standing is Standing.SPENT:
        return replace(decision, reason=f"{decision.reason}; the budget of the day is spent: batches wait")
    return decision


def facts_of(pool: str, look: Look, decision: Decision) -> dict[str, object]:
    """What is told of one pool."""
    seen = look.signals
    return {
        "pool": pool,
        "queued_rows": round(seen.queued_rows),
        "oldest_age_s": round(seen.oldest_age_s, 1),
        "workers": seen.workers,
        "pending": seen.pending,
        "draining": seen.draining,
        "desired": decision.desired,
        "reason": decision.reason,
    }
