"""One suite for every provider of workers: what the autoscaler's ledger and sweeps count on."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from provider_rigs import RIGS, Rig, a_launch, open_rig
from system import until

from autoscaler.providers.contract import Found, Provider, ProviderError, Trouble


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with open_rig(request.param, tmp_path) as made:
        yield made


def eventually(provider: Provider, condition: Callable[[list[Found]], bool], what: str) -> list[Found]:
    """The listing, once it is as it should be: it may be stale for a while."""
    found: list[Found] = []

    def as_it_should_be() -> bool:
        found[:] = provider.list()
        return condition(found)

    until(as_it_should_be, within_s=provider.stale_s + 20.0, what=what, logs=lambda: str(found))
    return found


def alive(found: list[Found]) -> set[str]:
    return {f.instance.id for f in found if not f.ending}


def test_its_settings_work(rig: Rig) -> None:
    """A sound configuration is not refused, and the provider has a name."""
    rig.provider().check()
    assert rig.provider().name


def test_what_was_launched_is_listed_with_its_tags(rig: Rig) -> None:
    """Pool and launch are told by the listing alone, so that a scaler without memory knows whose an instance is."""
    provider, launch = rig.provider(), a_launch(2)
    brought = [instance.id for instance in provider.launch(launch)]
    assert len(set(brought)) == 2
    found = eventually(rig.provider(), lambda found: alive(found) == set(brought), "listed")
    assert {(f.pool, f.launch_id, f.ending) for f in found} == {("cpu", launch.id, False)}
    assert all(0 <= f.age_s < 60 for f in found)


def test_a_launch_is_made_once(rig: Rig) -> None:
    """The same id again, also by another scaler, names the same instances and starts nothing."""
    launch = a_launch(2)
    first = rig.provider().launch(launch)
    again = rig.provider().launch(launch)
    assert {i.id for i in again} == {i.id for i in first}
    eventually(rig.provider(), lambda found: alive(found) == {i.id for i in first}, "nothing new")


def test_a_launch_is_made_once_also_when_its_instances_have_ended(rig: Rig) -> None:
    """A reply that was lost for long is no reason to start what has been ended since."""
    provider, launch = rig.provider(), a_launch()
    ids = [i.id for i in provider.launch(launch)]
    eventually(provider, lambda found: alive(found) == set(ids), "listed")
    provider.end(ids)
    eventually(provider, lambda found: not alive(found), "ended")
    assert {i.id for i in provider.launch(launch)} <= set(ids)
    assert not alive(list(provider.list()))


def test_other_launches_bring_other_instances(rig: Rig) -> None:
    """Ids are never used twice."""
    provider = rig.provider()
    one = {i.id for i in provider.launch(a_launch(total=1))}
    two = {i.id for i in provider.launch(a_launch(total=2))}
    assert not one & two
    eventually(provider, lambda found: alive(found) == one | two, "both listed")


def test_what_is_ended_goes_away(rig: Rig) -> None:
    """Others stay. Asked again, as a sweep does, nothing changes."""
    provider = rig.provider()
    kept, ended = [i.id for i in provider.launch(a_launch(2))]
    eventually(provider, lambda found: alive(found) == {kept, ended}, "listed")
    provider.end([ended])
    eventually(provider, lambda found: alive(found) == {kept}, "one is left")
    provider.end([ended])
    eventually(provider, lambda found: {f.instance.id for f in found} == {kept}, "gone, or as good as")


def test_an_id_that_is_gone_does_not_keep_the_rest(rig: Rig) -> None:
    """An instance that vanished is not listed, and ending it along with another ends the other."""
    provider = rig.provider()
    gone, other = [i.id for i in provider.launch(a_launch(2))]
    eventually(provider, lambda found: alive(found) == {gone, other}, "listed")
    rig.vanish(gone)
    eventually(provider, lambda found: alive(found) == {other}, "the vanished one is not listed")
    provider.end([gone, other])
    eventually(provider, lambda found: not alive(found), "the other ended too")


def test_ending_nothing_is_fine(rig: Rig) -> None:
    """No ids, no call."""
    rig.provider().end([])


@pytest.mark.parametrize("whose", [{"pool": "gpu"}, {"stack": "theirs"}])
def test_what_belongs_to_others_is_not_listed(rig: Rig, whose: dict[str, str]) -> None:
    """Another pool or another stack at the same place: its instances are none of ours to count or end."""
    ours = {i.id for i in rig.provider().launch(a_launch())}
    others = rig.provider(**whose)
    theirs = {i.id for i in others.launch(a_launch(pool=whose.get("pool", "cpu")))}
    eventually(rig.provider(), lambda found: alive(found) == ours, "only ours")
    eventually(others, lambda found: alive(found) == theirs, "only theirs")


def test_no_capacity_is_told_as_such(rig: Rig) -> None:
    """The error says CAPACITY, nothing was launched, and what runs goes on."""
    provider = rig.provider()
    ids = {i.id for i in provider.launch(a_launch())}
    eventually(provider, lambda found: alive(found) == ids, "listed")
    rig.exhaust()
    with pytest.raises(ProviderError) as caught:
        rig.provider().launch(a_launch(total=2))
    assert caught.value.trouble is Trouble.CAPACITY
    assert caught.value.detail
    assert alive(list(provider.list())) == ids


def test_an_id_of_nobodys_is_ended_without_harm(rig: Rig) -> None:
    """What was never launched counts as gone."""
    provider = rig.provider()
    ids = {i.id for i in provider.launch(a_launch())}
    eventually(provider, lambda found: alive(found) == ids, "listed")
    unknown = next(iter(ids))[:-4] + uuid.uuid4().hex[:4]
    if unknown not in ids:
        provider.end([unknown])
    assert alive(list(provider.list())) == ids
