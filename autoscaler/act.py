"""The hands of one pool: every step is written to the ledger before the provider is asked, and is safe to repeat.

    launch:  intend (ledger) -> provider.launch -> settle (ledger)
    stop:    drain (ledger tells the workers) -> drained: stopping (ledger) -> provider.end -> not listed: gone (ledger)

Whatever dies between two steps leaves a row that says what to do next: a launch that is not settled is called again
with the same id, an instance that is stopping is ended again until no listing shows it.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from autoscaler import reconcile
from autoscaler.config import PoolConfig
from autoscaler.observe import Look
from autoscaler.providers.contract import Found, Provider, ProviderError, Trouble
from autoscaler.publish import Publisher
from autoscaler.signals import Decision
from batchline import failpoints
from batchline.clock import Clock
from batchline.retry import backoff_s
from batchline.store import Store
from batchline.store.instance_contract import Instance, InstanceStatus, Launch

log = logging.getLogger("autoscaler")
T = TypeVar("T")

NO_CAPACITY_S = 180.0
REFUSED_S = 600.0
_END_AGAIN_S = 15.0
_KNOWN_S = 3600.0
"""Instances that are gone for longer are compared only when they are found again."""
_EVER_S = 10 * 365 * 86400.0
LAUNCH_KEPT_S = 3600.0
"""A launch is called again for this long, while providers remember its id; then what is listed of it is all of it."""


class Patience:
    """How long a kind of call is left alone after the provider has said no."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._until = float("-inf")
        self._failures = 0

    @property
    def over(self) -> bool:
        return self._clock.monotonic() >= self._until

    def worked(self) -> None:
        self._failures, self._until = 0, float("-inf")

    def failed(self, trouble: Trouble) -> float:
        """Returns the seconds to wait."""
        self._failures += 1
        if trouble is Trouble.CAPACITY:
            return self.wait(NO_CAPACITY_S)
        if trouble is Trouble.REFUSED:
            return self.wait(REFUSED_S)
        return self.wait(backoff_s(self._failures, cap_s=60.0, rng=self._rng))

    def wait(self, seconds: float) -> float:
        self._until = max(self._until, self._clock.monotonic() + seconds)
        return seconds


class Hands:
    """Launches and ends the instances of one pool, through one provider. Raises StoreUnavailableError only."""

    def __init__(
        self,
        store: Store,
        leader: uuid.UUID,
        config: PoolConfig,
        provider: Provider,
        clock: Clock,
        *,
        reconcile_s: float,
        rng: random.Random | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        self._ledger = store.instances
        self._leader = leader
        self._config = config
        self._provider = provider
        self._clock = clock
        self._reconcile_s = reconcile_s
        self._publisher = publisher or Publisher()
        rng = rng or random.Random()
        self._launching, self._ending, self._listing = (Patience(clock, rng) for _ in range(3))
        self._rules = reconcile.Rules(provider.stale_s, config.start_limit_s)
        self._memory = reconcile.Memory()
        self._compared_at = float("-inf")
        self._began = clock.monotonic()
        self._again: dict[str, float] = {}
        """When to ask again for the end of what is stopping."""
        self._stillborn = 0
        self._rng = rng

    def tend(self, unsettled: Sequence[Launch], *, moving: bool) -> None:
        """What earlier ticks have left, before anything new; `moving` says that the last look saw something."""
        self._resume(unsettled)
        self._compare(unsettled, moving=moving or bool(unsettled))

    def _resume(self, unsettled: Sequence[Launch]) -> None:
        """Call launches again whose outcome is not known, with the same ids."""
        for launch in unsettled:
            if self._config.limits.enabled and self._launching.over and not self._old(launch):
                self._launch(launch)

    def _compare(self, unsettled: Sequence[Launch], *, moving: bool) -> None:
        """Reconcile, when it is due: every `reconcile_s`, and at each tick while something is on its way."""
        now = self._clock.monotonic()
        if now - self._compared_at < self._reconcile_s and not (moving or self._memory.absent or self._memory.risen):
            return
        ledger = self._ledger.list(pool=self._config.pool, gone_within_s=_KNOWN_S)
        listing = self._list()
        launches = {x.id for x in unsettled} | {i.launch_id for i in ledger if i.launch_id is not None}
        plan = reconcile.plan(ledger, launches, listing, self._memory, now=now, rules=self._rules)
        self._follow(plan, launches, ledger)
        self._memory = plan.memory
        if listing is not None:
            self._compared_at = now
            self._close(unsettled, listing)
        if any(i.status is InstanceStatus.SERVING and i.workers for i in ledger):
            self._stillborn = 0

    def bring(self, look: Look, decision: Decision) -> None:
        """Launch or give up what is missing or too much, of the pool's own instances.

        What an open launch may still bring counts as coming, but nothing that is there is given up for it.
        """
        more, coming = decision.desired - look.signals.total, self._coming(look)
        if more > coming and self._launching.over:
            most = self._config.limits.max_workers - look.unmanaged - coming
            launch = self._ledger.intend(
                self._leader,
                uuid.uuid4(),
                pool=self._config.pool,
                provider=self._provider.name,
                count=more - coming,
                most=most,
            )
            if launch is not None:
                failpoints.hit("autoscaler.after_intend")
                self._launch(launch)
        elif (surplus := min(look.unmanaged + look.managed - decision.desired, look.managed)) > 0:
            told = self._ledger.drain(
                self._leader, self._config.pool, surplus, decision.reason, billing_s=self._config.billing_s
            )
            failpoints.hit("autoscaler.after_drain")
            if told:
                log.info("draining", extra={"pool": self._config.pool, "instances": told, "reason": decision.reason})

    def end(self, stopping: Sequence[Instance]) -> None:
        """End what has drained; ask again until it is gone."""
        now = self._clock.monotonic()
        self._again = {i.id: self._again.get(i.id, now) for i in stopping}
        due = [id_ for id_, at in self._again.items() if now >= at]
        if due and self._config.limits.enabled and self._ending.over:
            failpoints.hit("autoscaler.after_stopping")
            self._end(due)
            failpoints.hit("autoscaler.after_end")

    def _coming(self, look: Look) -> int:
        """Workers that others have started along with this process and that have not registered yet."""
        if self._clock.monotonic() - self._began > self._config.start_limit_s:
            return 0
        return max(0, self._config.started_elsewhere - look.unmanaged)

    def _launch(self, launch: Launch) -> None:
        pool = self._config.pool
        try:
            brought = self._ask("launch", lambda: self._provider.launch(launch), self._launching)
        except ProviderError as e:
            if e.trouble in (Trouble.CAPACITY, Trouble.REFUSED):
                self._ledger.settle(launch.id, [], error=e.detail)
            else:
                self._ledger.tried(launch.id, e.detail)
            return
        failpoints.hit("autoscaler.after_launch")
        self._ledger.settle(launch.id, brought)
        self._publisher.launched(pool, self._provider.name, len(brought))
        failpoints.hit("autoscaler.after_settle")
        found = [i.id for i in brought]
        log.info("launched", extra={"pool": pool, "launch": str(launch.id), "wanted": launch.count, "instances": found})

    def _follow(self, plan: reconcile.Plan, launches: set[uuid.UUID], ledger: Sequence[Instance]) -> None:
        pool, enabled = self._config.pool, self._config.limits.enabled
        for found in plan.adopt:
            launch_id = found.launch_id if found.launch_id in launches else None
            entered = self._ledger.adopt(pool, self._provider.name, launch_id, found.instance)
            failpoints.hit("autoscaler.after_adopt")
            if entered:
                log.warning("found by its tags", extra={"pool": pool, "instance": found.instance.id})
            elif enabled:
                self._end_forgotten(found.instance.id)
        for id_, reason in plan.stop if enabled else ():
            stopped = self._ledger.stop(self._leader, id_, reason)
            failpoints.hit("autoscaler.after_stop")
            about = {"pool": pool, "instance": id_, "reason": reason}
            if not stopped:
                log.warning("not stopped: its worker drains first, or another scaler leads", extra=about)
                continue
            log.error("stopped", extra=about)
            self._stillborn += 1
            self._launching.wait(backoff_s(self._stillborn, base_s=30.0, cap_s=1800.0, rng=self._rng))
        if plan.end and enabled and self._ending.over:
            log.error("not ended though it was asked to", extra={"pool": pool, "instances": plan.end})
            self._end(plan.end)
        if changed := self._ledger.priced(plan.priced):
            log.info("prices have changed", extra={"pool": pool, "instances": changed})
        if plan.gone:
            self._ledger.gone(plan.gone, "the provider does not list it any more")
            failpoints.hit("autoscaler.after_gone")
            log.info("gone", extra={"pool": pool, "instances": plan.gone})
            if foreign := [i.id for i in ledger if i.id in plan.gone and i.provider != self._provider.name]:
                log.error("of a provider that the pool has no more: end these yourself", extra={"instances": foreign})

    def _end_forgotten(self, id_: str) -> None:
        """It is listed, and has been gone by the ledger for long; unless somebody just entered it or works on it."""
        known = [i for i in self._ledger.list(pool=self._config.pool, gone_within_s=_EVER_S) if i.id == id_]
        if known and known[0].status is InstanceStatus.GONE and not known[0].running and self._ending.over:
            log.error("not ended though it was asked to", extra={"pool": self._config.pool, "instances": [id_]})
            self._end([id_])

    def _close(self, unsettled: Sequence[Launch], listing: Sequence[Found]) -> None:
        """Settle launches that are too old to be called again."""
        for launch in unsettled:
            if self._old(launch):
                brought = [f.instance for f in listing if f.launch_id == launch.id]
                self._ledger.settle(launch.id, brought, error="nobody knew its outcome within an hour")
                log.error("launch given up", extra={"pool": self._config.pool, "launch": str(launch.id)})

    def _old(self, launch: Launch) -> bool:
        return (self._clock.now() - launch.created_at).total_seconds() > LAUNCH_KEPT_S

    def _end(self, ids: Sequence[str]) -> None:
        """All in one call; if the provider will not have that, each alone, so that one bad id keeps no other."""
        refused = set[str]()
        try:
            self._ask("end", lambda: self._provider.end(ids), self._ending)
        except ProviderError as e:
            if e.trouble is Trouble.REFUSED and len(ids) > 1:
                refused = {id_ for id_ in ids if not self._end_alone(id_)}
                if len(refused) < len(ids):
                    self._ending.worked()
        now = self._clock.monotonic()
        self._again.update({id_: now + (REFUSED_S if id_ in refused else _END_AGAIN_S) for id_ in ids})

    def _end_alone(self, id_: str) -> bool:
        try:
            self._ask("end", lambda: self._provider.end([id_]), self._ending)
        except ProviderError:
            return False
        return True

    def _list(self) -> Sequence[Found] | None:
        """What the provider lists of the pool; None when it does not say."""
        if not self._listing.over:
            return None
        try:
            listing = self._ask("list", self._provider.list, self._listing)
        except ProviderError:
            return None
        return [found for found in listing if found.pool == self._config.pool]

    def _ask(self, what: str, work: Callable[[], T], patience: Patience) -> T:
        """Call the provider; what it says wrong is logged and waited out.

        Raises:
            ProviderError: whatever went wrong.
        """
        about = {"pool": self._config.pool, "provider": self._provider.name, "call": what}
        try:
            answer = work()
        except ProviderError as e:
            self._publisher.failed(**about, trouble=e.trouble)
            wait_s = patience.failed(e.trouble)
            level = logging.ERROR if e.trouble is Trouble.REFUSED else logging.WARNING
            told = {"trouble": e.trouble.value, "error": e.detail, "wait_s": round(wait_s, 1)}
            log.log(level, "provider said no", extra=about | told)
            raise
        except Exception as e:
            self._publisher.failed(**about, trouble=Trouble.UNKNOWN)
            patience.failed(Trouble.UNKNOWN)
            log.exception("provider failed", extra=about)
            raise ProviderError(Trouble.UNKNOWN, f"{type(e).__name__}: {e}") from e
        patience.worked()
        return answer
