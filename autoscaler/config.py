"""The autoscaler's configuration file: which pools, how many workers at most, by which policy, from which provider.

A TOML file, named by BATCHLINE_AUTOSCALER. Everything is checked when it is read, together with what the providers can
check of themselves; a file that is refused names each fault and what to do.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from autoscaler import guards
from autoscaler.policies import POLICIES, Policy
from autoscaler.providers import ADAPTERS, NONE
from autoscaler.signals import Limits
from autoscaler.tables import decode
from batchline.errors import SettingsError

_STACK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_POSITIVE = {"rows_per_worker", "target", "target_wait_s", "aim", "slow_s", "catch_up_s", "bulk_wait_s"}
"""Options of policies that divide, or that mean nothing at 0."""
_PRICED = {"ec2-spot", "asg"}
"""Providers that know what their instances cost."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """One pool.

    Attributes:
        pool: whose workers.
        provider: a key of ADAPTERS, or `none`: only advice.
        options: the provider's own table, decoded when it is built.
        policy: decides.
        limits: what the operator allows.
        start_s: from launch to the first claim, assumed until it has been measured.
        start_limit_s: an instance whose worker has not registered by then is stopped.
        billing_s: an instance costs at least this long.
        price_per_hour: of a worker; 0: as the provider says.
        started_elsewhere: workers that start along with the autoscaler, by other hands; until they have registered, and
            for start_limit_s at most, they count as being on their way.
    """

    pool: str
    provider: str
    options: Mapping[str, object]
    policy: Policy
    limits: Limits
    start_s: float
    start_limit_s: float
    billing_s: float
    price_per_hour: float
    started_elsewhere: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """All pools, and the rhythm.

    Attributes:
        pools: by name; pools that are not named here are only advised.
        stack: tells two installations in one account apart: the tag `batchline:stack`.
        every_s: a tick.
        reconcile_s: how often ledger and provider are compared when nothing is on its way.
        cloudwatch: the table of that name, decoded when it is used; None without one.
        interruptions: the same.
    """

    pools: Mapping[str, PoolConfig]
    stack: str
    every_s: float
    reconcile_s: float
    cloudwatch: Mapping[str, object] | None = None
    interruptions: Mapping[str, object] | None = None


class _Pool(msgspec.Struct, frozen=True):
    provider: str = NONE
    policy: str = "drain_time"
    policy_options: dict[str, object] = {}
    min_workers: int = 0
    max_workers: int = 8
    max_launches_per_hour: int | None = None
    budget_per_day: float | None = None
    budget_warn_at: float = 0.8
    floors: tuple[tuple[int, int, int], ...] = ()
    enabled: bool = True
    start_s: float = 30.0
    start_limit_s: float = 600.0
    billing_s: float = 60.0
    price_per_hour: float = 0.0
    started_elsewhere: int = 0


class _File(msgspec.Struct, frozen=True):
    pools: dict[str, dict[str, object]] = {}
    stack: str = "batchline"
    enabled: bool = True
    every_s: float = 5.0
    reconcile_s: float = 60.0
    cloudwatch: dict[str, object] | None = None
    interruptions: dict[str, object] | None = None


ADVICE = Config({}, _File().stack, _File().every_s, _File().reconcile_s)
"""Without a file: nothing is launched or stopped."""


def advised(pool: str) -> PoolConfig:
    """What a pool that no file names is advised by: the queue rule, one worker at least."""
    return _pool(pool, {"policy": "queue", "min_workers": 1}, enabled=True)


def load(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        SettingsError: it cannot be read, is no TOML, or asks for what cannot be; every fault of the file, one a line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        told = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise SettingsError(f"the autoscaler's configuration {path} cannot be read: {told}") from e
    return parse(text, str(path))


def parse(text: str, source: str) -> Config:
    """Read a configuration from text; `source` names it in messages.

    Raises:
        SettingsError: as `load`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"{source} is no TOML: {e}") from e
    try:
        file = decode(document, _File, "the file")
    except SettingsError as e:
        raise SettingsError(f"{source}: {e.detail}") from e
    faults, pools = list[str](_of_file(file)), dict[str, PoolConfig]()
    for name, table in file.pools.items():
        try:
            pools[name] = _pool(name, table, enabled=file.enabled)
        except SettingsError as e:
            faults += e.detail.split("\n")
    if faults:
        raise SettingsError("\n".join(f"{source}: {fault}" for fault in faults))
    return Config(pools, file.stack, file.every_s, file.reconcile_s, file.cloudwatch, file.interruptions)


def _of_file(file: _File) -> Iterator[str]:
    if not file.pools:
        yield "no pool is named; add a table [pools.cpu], or leave BATCHLINE_AUTOSCALER out for advice only"
    if not _STACK.fullmatch(file.stack):
        yield f"stack is {file.stack!r}; use up to 63 letters, digits, dots, dashes and underscores"
    for name in ("every_s", "reconcile_s"):
        if getattr(file, name) <= 0:
            yield f"{name} is {getattr(file, name)}; use more than 0"


def _pool(name: str, table: Mapping[str, object], *, enabled: bool) -> PoolConfig:
    """Raises SettingsError with the faults of one pool, one a line."""
    where = f"pools.{name}"
    own = {key: value for key, value in table.items() if key not in ADAPTERS}
    pool = decode(own, _Pool, where)
    options = table.get(pool.provider, {})
    limits = Limits(
        pool.min_workers,
        pool.max_workers,
        pool.max_launches_per_hour,
        pool.budget_per_day,
        pool.floors,
        enabled=pool.enabled and enabled,
        budget_warn_at=pool.budget_warn_at,
    )
    faults = [f"{where}: {fault}" for fault in _of_pool(pool)]
    policy: Policy = POLICIES["queue"]()
    try:
        policy = _policy(pool, where)
    except SettingsError as e:
        faults.append(e.detail)
    try:
        guards.check(limits)
    except SettingsError as e:
        faults.append(f"{where}: {e.detail}")
    if not isinstance(options, dict):
        faults.append(f"{where}.{pool.provider} must be a table")
    if faults:
        raise SettingsError("\n".join(faults))
    return PoolConfig(
        name,
        pool.provider,
        cast("Mapping[str, object]", options),
        policy,
        limits,
        pool.start_s,
        pool.start_limit_s,
        pool.billing_s,
        pool.price_per_hour,
        pool.started_elsewhere,
    )


def _of_pool(pool: _Pool) -> Iterator[str]:
    if pool.provider != NONE and pool.provider not in ADAPTERS:
        yield f"there is no provider {pool.provider!r}; use {', '.join((NONE, *ADAPTERS))}"
    if pool.start_s <= 0 or pool.start_limit_s <= 0:
        yield "start_s and start_limit_s must be more than 0"
    if pool.started_elsewhere < 0:
        yield "started_elsewhere must not be below 0"
    if pool.billing_s < 0 or pool.price_per_hour < 0:
        yield "billing_s and price_per_hour must not be below 0"
    if pool.budget_per_day is not None and pool.price_per_hour <= 0 and pool.provider not in _PRICED:
        yield "a budget_per_day needs a price_per_hour: nobody else knows what a worker costs here"


def _policy(pool: _Pool, where: str) -> Policy:
    if pool.policy not in POLICIES:
        raise SettingsError(f"{where}: there is no policy {pool.policy!r}; use {', '.join(sorted(POLICIES))}")
    if "name" in pool.policy_options:
        raise SettingsError(
            f"{where}.policy_options has no field name; the policy is chosen by the pool's field policy"
        )
    policy = decode(pool.policy_options, type(POLICIES[pool.policy]()), f"{where}.policy_options")
    for name, value in pool.policy_options.items():
        if not isinstance(value, int | float) or value < 0 or (value == 0 and name in _POSITIVE):
            raise SettingsError(f"{where}.policy_options.{name} is {value}; use more than 0")
    return policy
