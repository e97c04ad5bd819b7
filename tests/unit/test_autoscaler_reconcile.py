"""Reconciling, as a pure plan: every id is judged for itself, and nothing is believed too early."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.providers.contract import Found
from autoscaler.reconcile import Memory, Plan, Rules, plan
from batchline.store.instance_contract import Instance, InstanceStatus, NewInstance

LAUNCH = uuid.uuid4()
RULES = Rules(stale_s=60.0, start_limit_s=600.0, grace_s=120.0)
NOTHING = ((), (), (), ())


def known(id_: str = "a", **changes: Any) -> Instance:
    fields: dict[str, Any] = {
        "id": id_,
        "pool": "cpu",
        "provider": "fake",
        "launch_id": LAUNCH,
        "status": InstanceStatus.SERVING,
        "kind": "",
        "zone": "",
        "market": "spot",
        "price_per_hour": 0.0,
        "on_demand_per_hour": 0.0,
        "launched_at": datetime(2026, 1, 1, tzinfo=UTC),
        "registered_at": None,
        "draining_at": None,
        "gone_at": None,
        "reason": "",
        "age_s": 300.0,
        "workers": 1,
        "running": 0,
    }
    return Instance(**fields | changes)


def found(id_: str = "a", *, launch: uuid.UUID | None = LAUNCH, ending: bool = False, age_s: float = 300.0) -> Found:
    return Found(NewInstance(id_), "cpu", launch, ending, age_s)


def compare(ledger, listing, before: Memory | None = None, *, now: float = 0.0, rules: Rules = RULES) -> Plan:
    return plan(ledger, {LAUNCH}, listing, before or Memory(), now=now, rules=rules)


def steps(made: Plan) -> tuple:
    return made.adopt, made.stop, made.end, made.gone


def test_where_both_say_the_same_there_is_nothing_to_do():
    """Whatever the status, and whoever lists it as ending."""
    ledger = [known(s, status=InstanceStatus(s)) for s in ("starting", "serving", "draining", "stopping")]
    assert steps(compare(ledger, [found(i.id, ending=True) for i in ledger])) == NOTHING


def test_an_unknown_instance_of_a_known_launch_is_entered():
    """So is one whose tags name no launch: a group of instances has none."""
    seen = [found("a"), found("b", launch=None)]
    made = compare([], seen)
    assert (made.adopt, made.stop) == (tuple(seen), ())


def test_an_orphan_is_entered_and_stopped_past_a_grace():
    """Until then it is left alone: its launch may be written where we do not see it yet."""
    stranger = uuid.uuid4()
    assert steps(compare([], [found(launch=stranger, age_s=100.0)])) == NOTHING
    made = compare([], [found(launch=stranger, age_s=121.0)])
    assert [f.instance.id for f in made.adopt] == ["a"]
    assert [id_ for id_, _ in made.stop] == ["a"]


def test_an_orphan_that_was_entered_and_not_stopped_yet_is_stopped_at_the_next_sweep():
    """Whoever had begun has died between the two."""
    stranger, entered = found(launch=uuid.uuid4()), known(launch_id=None, status=InstanceStatus.STARTING)
    assert [id_ for id_, _ in compare([entered], [stranger]).stop] == ["a"]
    draining = known(launch_id=None, status=InstanceStatus.DRAINING)
    assert steps(compare([draining], [stranger])) == NOTHING


def test_what_is_ending_already_is_not_entered():
    """It will be gone by itself."""
    assert steps(compare([], [found(ending=True)])) == NOTHING


def test_a_vanished_instance_is_dropped_at_the_second_listing():
    """One that ought to show it is not enough, and a live worker on it proves the listing wrong."""
    dead = known("a", workers=0)
    first = compare([dead, known("b")], [])
    assert (first.gone, set(first.memory.absent)) == ((), {"a", "b"})
    second = compare([dead, known("b")], [], first.memory, now=5.0)
    assert second.gone == ("a",)


def test_a_listing_that_may_be_stale_proves_nothing():
    """Younger than the listing may be old: it is not even counted as absent."""
    made = compare([known(workers=0, age_s=59.0)], [])
    assert (made.gone, dict(made.memory.absent)) == ((), {})


def test_who_is_listed_again_was_not_absent():
    """Absent, present, absent: counting begins anew."""
    dead = known(workers=0)
    once = compare([dead], [])
    again = compare([dead], [found()], once.memory)
    assert compare([dead], [], again.memory).gone == ()


def test_one_that_was_asked_to_end_is_gone_though_its_lease_still_runs():
    """Unless its worker holds jobs, which it gets time to give up."""
    ended = known("a", status=InstanceStatus.STOPPING)
    busy = known("b", status=InstanceStatus.STOPPING, running=1)
    assert compare([ended, busy], [], compare([ended, busy], []).memory).gone == ("a",)


def test_one_whose_worker_never_registered_is_stopped():
    """Past the limit, listed or not; one that has a worker is not, though its row says starting."""
    ledger = [
        known("late", status=InstanceStatus.STARTING, workers=0, age_s=601.0),
        known("young", status=InstanceStatus.STARTING, workers=0, age_s=599.0),
        known("there", status=InstanceStatus.STARTING, workers=1, age_s=601.0),
    ]
    assert [id_ for id_, _ in compare(ledger, None).stop] == ["late"]


def test_one_whose_worker_died_is_stopped_after_the_same_limit():
    """Its worker may come back until then."""
    dead = known(workers=0)
    first = compare([dead], [found()], now=100.0)
    assert first.stop == ()
    assert compare([dead], [found()], first.memory, now=700.0).stop == ()
    assert [id_ for id_, _ in compare([dead], [found()], first.memory, now=701.0).stop] == ["a"]


@pytest.mark.parametrize(("running", "ended"), [(0, ("a",)), (1, ())])
def test_one_that_should_be_gone_and_is_listed_is_ended_again(running, ended):
    """Past the time that a listing may be stale, and not while its worker holds jobs."""
    gone = known(status=InstanceStatus.GONE, workers=0, running=running)
    first = compare([gone], [found()])
    assert first.end == ()
    assert compare([gone], [found()], first.memory, now=60.0).end == ()
    assert compare([gone], [found()], first.memory, now=61.0).end == ended


def test_prices_are_those_of_the_listing_where_it_tells_them():
    """Spot prices change by the hour; the price on demand stands for a spot price that is not known just now."""

    def listed(price: float, market: str = "spot") -> dict[str, float]:
        one = NewInstance("a", market=market, price_per_hour=price, on_demand_per_hour=0.2)
        ledger = [known(price_per_hour=0.05, market=market)]
        return dict(compare(ledger, [Found(one, "cpu", LAUNCH, ending=False, age_s=300.0)]).priced)

    assert listed(0.07) == {"a": 0.07}
    assert listed(0.05) == listed(0.2) == listed(0.0) == {}
    assert listed(0.2, "on_demand") == {"a": 0.2}
    assert compare([known(price_per_hour=0.05)], []).priced == {}


def test_without_a_listing_nothing_is_adopted_or_dropped():
    """And what was absent before is still remembered."""
    first = compare([known(workers=0)], [])
    made = compare([known(workers=0)], None, first.memory)
    assert steps(made) == NOTHING
    assert made.memory.absent == first.memory.absent


def test_each_id_is_judged_for_itself():
    """A vanished, an orphaned, a late and a healthy one in one listing."""
    ledger = [
        known("ok"),
        known("lost", workers=0),
        known("late", status=InstanceStatus.STARTING, workers=0, age_s=999),
    ]
    listing = [found("ok"), found("late"), found("new"), found("orphan", launch=uuid.uuid4())]
    first = compare(ledger, listing)
    made = compare(ledger, listing, first.memory)
    assert [f.instance.id for f in made.adopt] == ["new", "orphan"]
    assert [id_ for id_, _ in made.stop] == ["late", "orphan"]
    assert made.gone == ("lost",)


IDS = "abcd"
INSTANCES = st.builds(
    known,
    st.sampled_from(IDS),
    status=st.sampled_from(InstanceStatus),
    workers=st.integers(0, 1),
    running=st.integers(0, 1),
    age_s=st.sampled_from([1.0, 100.0, 1000.0]),
    launch_id=st.sampled_from([LAUNCH, None]),
)
LISTED = st.builds(
    found,
    st.sampled_from(IDS),
    launch=st.sampled_from([LAUNCH, uuid.UUID(int=7), None]),
    ending=st.booleans(),
    age_s=st.sampled_from([1.0, 1000.0]),
)


@given(
    st.lists(st.tuples(st.lists(INSTANCES, unique_by=lambda i: i.id), st.none() | st.lists(LISTED)), min_size=1),
    st.sampled_from([1.0, 90.0, 700.0]),
)
def test_whatever_is_seen_nothing_that_works_is_dropped_or_ended(looks, every_s):
    """Of any sequence of ledgers and listings; and what is known is never entered, what is listed never dropped."""
    memory = Memory()
    for n, (ledger, listing) in enumerate(looks):
        made = compare(ledger, listing, memory, now=n * every_s)
        memory, by_id, listed = made.memory, {i.id: i for i in ledger}, {f.instance.id for f in listing or ()}
        assert not any(by_id[id_].running and by_id[id_].workers for id_ in (*made.gone, *made.end))
        assert not {f.instance.id for f in made.adopt} & set(by_id)
        assert not set(made.gone) & listed
        assert set(made.gone) <= set(by_id)
        assert set(made.end) <= listed
        assert {id_ for id_, _ in made.stop} <= set(by_id) | {f.instance.id for f in made.adopt}
