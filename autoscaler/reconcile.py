"""What must be done so that ledger and provider say the same: pure planning over one listing.

An instance that only the provider knows is entered, so that nothing runs untracked; if its launch is not known either,
nobody meant it: it is an orphan, and stopped past a grace. One that only the ledger knows has vanished, but a listing
may be stale: it is dropped when two listings that ought to show it do not, and no worker lives on it. Each id is judged
for itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autoscaler.providers.contract import Found
from batchline.store.instance_contract import Instance, InstanceStatus

_TAKEN_UP = (InstanceStatus.STARTING, InstanceStatus.SERVING)


@dataclass(frozen=True, slots=True)
class Rules:
    """How long to wait before believing.

    Attributes:
        stale_s: for how long a listing may not show what has been done.
        start_limit_s: an instance without a worker for this long is of no use.
        grace_s: an instance of no known launch is left alone for this long.
    """

    stale_s: float
    start_limit_s: float
    grace_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier listings showed, by instance id: since when, in monotonic seconds."""

    absent: Mapping[str, float] = field(default_factory=dict[str, float])
    """Not listed, though it should have been."""
    idle: Mapping[str, float] = field(default_factory=dict[str, float])
    """Has served, and no worker lives on it."""
    risen: Mapping[str, float] = field(default_factory=dict[str, float])
    """Gone by the ledger, and listed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order.

    Attributes:
        adopt: to be entered.
        stop: (id, reason) of instances that are of no use.
        end: ids that the ledger has done with and that are there nonetheless.
        gone: ids that are no more.
        memory: for the next plan.
        priced: what known instances cost an hour, where that has changed.
    """

    adopt: tuple[Found, ...]
    stop: tuple[tuple[str, str], ...]
    end: tuple[str, ...]
    gone: tuple[str, ...]
    memory: Memory
    priced: Mapping[str, float] = field(default_factory=dict[str, float])


def plan(
    ledger: Sequence[Instance],
    launches: Collection[uuid.UUID],
    listing: Sequence[Found] | None,
    before: Memory,
    *,
    now: float,
    rules: Rules,
) -> Plan:
    """Compare.

    Args:
        ledger: instances of one pool, those lately gone included, read before the listing.
        launches: ids of the launches that are known.
        listing: what the provider says; None when it could not be asked.
        before: memory of the plan before.
        now: monotonic seconds.
        rules: how long to wait.
    """
    known = {i.id: i for i in ledger}
    alive = [i for i in ledger if i.status is not InstanceStatus.GONE]
    idle = {i.id: before.idle.get(i.id, now) for i in alive if i.status is InstanceStatus.SERVING and not i.workers}
    stop = list(_useless(alive, idle, now, rules))
    if listing is None:
        return Plan((), tuple(stop), (), (), Memory(before.absent, idle, before.risen))
    listed = {f.instance.id: f for f in listing}
    orphans = {
        id_ for id_, f in listed.items() if f.launch_id is not None and f.launch_id not in launches and not f.ending
    }
    ripe = {id_ for id_ in orphans if listed[id_].age_s > rules.grace_s}
    adopt = [f for id_, f in listed.items() if id_ not in known and not f.ending and id_ not in orphans - ripe]
    stop += [
        (id_, "no known launch has brought it")
        for id_ in listed
        if id_ in ripe and (id_ not in known or known[id_].status in _TAKEN_UP)
    ]
    absent = {i.id: before.absent.get(i.id, now) for i in alive if i.id not in listed and i.age_s > rules.stale_s}
    gone = [i.id for i in alive if i.id in absent and i.id in before.absent and _deserted(i)]
    risen = {
        id_: before.risen.get(id_, now)
        for id_, f in listed.items()
        if not f.ending and id_ in known and known[id_].status is InstanceStatus.GONE
    }
    end = [id_ for id_, since in risen.items() if now - since > rules.stale_s and not known[id_].running]
    priced = dict(_priced(alive, listed))
    return Plan(tuple(adopt), tuple(stop), tuple(end), tuple(gone), Memory(absent, idle, risen), priced)


def _priced(alive: Sequence[Instance], listed: Mapping[str, Found]) -> Iterator[tuple[str, float]]:
    """Prices that are others now. A spot instance at the price on demand is one whose price nobody has told."""
    for i in alive:
        now = listed[i.id].instance if i.id in listed else None
        if now is None or now.price_per_hour in (0.0, i.price_per_hour):
            continue
        if now.market != "spot" or now.price_per_hour != now.on_demand_per_hour:
            yield i.id, now.price_per_hour


def _deserted(instance: Instance) -> bool:
    """Nobody works on it. Of one that was asked to end, a lease that has not run out yet is no proof of life."""
    if instance.status is InstanceStatus.STOPPING:
        return not instance.running
    return not instance.workers


def _useless(alive: Sequence[Instance], idle: Mapping[str, float], now: float, rules: Rules) -> list[tuple[str, str]]:
    found = list[tuple[str, str]]()
    for i in alive:
        if i.workers or i.status not in _TAKEN_UP:
            continue
        if i.status is InstanceStatus.STARTING and i.age_s > rules.start_limit_s:
            found.append((i.id, f"no worker has registered within {rules.start_limit_s:.0f} s"))
        elif i.id in idle and now - idle[i.id] > rules.start_limit_s:
            found.append((i.id, f"no worker has lived on it for {rules.start_limit_s:.0f} s"))
    return found
