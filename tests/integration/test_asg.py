"""An Auto Scaling group against moto's server behind the fault proxy: totals, MaxSize, one drained instance by name."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from aws_cloud import REGION, Cloud, HandClock, launched

from autoscaler.providers.asg import AsgProvider, Options
from autoscaler.providers.contract import ProviderError, Trouble
from batchline.errors import SettingsError
from batchline.store.instance_contract import Launch

clock = HandClock()
"""Also that of the fixture `aws`."""


def provider(aws: Cloud, pool: str, group: str, **changed: Any) -> AsgProvider:
    given: dict[str, Any] = {"group": group, "region": REGION, "endpoint_url": aws.endpoint}
    return AsgProvider(pool, Options(**given | changed), stack="test", clock=clock)


def a_launch(pool: str, count: int, total: int) -> Launch:
    return Launch(uuid.uuid4(), pool, "asg", count, total, datetime.now(UTC))


def described(aws: Cloud, group: str) -> dict[str, Any]:
    found = aws.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    return found["AutoScalingGroups"][0]


def test_a_launch_takes_what_the_group_brings(aws: Cloud, pool: str) -> None:
    """The total is set, the new instances are marked with the launch and protected; again, nothing new comes."""
    group = aws.group("test", pool)
    made = provider(aws, pool, group)
    made.check()
    one, two = a_launch(pool, 2, 2), a_launch(pool, 1, 3)
    first, second = launched(made, one, clock), launched(made, two, clock)
    assert len({*first, *second}) == 3
    assert launched(provider(aws, pool, group), one, clock) == first
    assert described(aws, group)["DesiredCapacity"] == 3
    assert all(i["ProtectedFromScaleIn"] for i in described(aws, group)["Instances"])
    assert {f.instance.id: f.launch_id for f in made.list()} == dict.fromkeys(first, one.id) | dict.fromkeys(
        second, two.id
    )


def test_a_drained_instance_is_taken_out_and_not_replaced(aws: Cloud, pool: str) -> None:
    """The chosen one ends, the group wants one fewer; what is gone already is fine, also among others."""
    group = aws.group("test", pool)
    made = provider(aws, pool, group)
    a, b, c = launched(made, a_launch(pool, 3, 3), clock)
    made.end([b])
    made.end([b, "i-0123456789abcdef0", c])
    assert aws.proxy.alive(pool) == [a]
    assert described(aws, group)["DesiredCapacity"] == 1


def test_max_size_is_never_exceeded(aws: Cloud, pool: str) -> None:
    """A part up to MaxSize; then CAPACITY, which says what limits."""
    group = aws.group("test", pool, most=2)
    made = provider(aws, pool, group)
    assert len(launched(made, a_launch(pool, 3, 3), clock)) == 2
    with pytest.raises(ProviderError, match="MaxSize") as caught:
        made.launch(a_launch(pool, 1, 3))
    assert caught.value.trouble is Trouble.CAPACITY
    assert len(aws.proxy.alive(pool)) == 2


def test_what_does_not_come_is_given_up(aws: Cloud, pool: str) -> None:
    """A group that brings nothing: CAPACITY after a while, and the group does not go on wanting it."""
    group = aws.group("test", pool)
    made = provider(aws, pool, group, patience_s=40)
    clock.now += 100
    aws.proxy.stale_s = 60.0  # longer than its patience: as if none came
    launch = a_launch(pool, 2, 2)
    with pytest.raises(ProviderError) as caught:
        launched(made, launch, clock)
    assert caught.value.trouble is Trouble.CAPACITY
    assert described(aws, group)["DesiredCapacity"] == 0


def test_a_launch_that_another_scaler_has_finished_hides_nothing(aws: Cloud, pool: str) -> None:
    """Who waited for it and leads again later lists what no launch has taken, once its patience is over."""
    group = aws.group("test", pool)
    clock.now += 100
    aws.proxy.stale_s = 60.0
    made, launch = provider(aws, pool, group, patience_s=40), a_launch(pool, 1, 2)
    with pytest.raises(ProviderError, match="so far"):
        made.launch(launch)
    clock.now += 61
    assert len(launched(provider(aws, pool, group), launch, clock)) == 1
    aws.proxy.stale_s = 0.0
    aws.client("autoscaling").set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=2)
    clock.now += 61
    assert sorted(str(found.launch_id) for found in made.list()) == sorted([str(launch.id), "None"])


@pytest.mark.parametrize("restarted", [False, True])
def test_a_bad_hour(aws: Cloud, pool: str, restarted: bool) -> None:
    """Throttling, lost answers, listings a minute old, a scaler that starts anew: each launch brings its own, once."""
    group = aws.group("test", pool, most=6)
    clock.now += 100
    aws.proxy.remember()
    aws.proxy.throttled, aws.proxy.lost, aws.proxy.cut, aws.proxy.stale_s = 0.5, 0.3, 0.1, 60.0
    made = provider(aws, pool, group)
    brought: list[str] = []
    for n in range(3):
        if restarted:
            made = provider(aws, pool, group)
            clock.now += 61
        brought += launched(made, a_launch(pool, 2, 2 * n + 2), clock)
    assert len(set(brought)) == 6
    assert sorted(brought) == sorted(aws.proxy.alive(pool))
    assert aws.proxy.peak[pool] == 6


def test_a_group_that_cannot_work_is_refused(aws: Cloud, pool: str) -> None:
    """No such group, a MinSize that forbids to end, no tags: each with what to do."""
    for group, says in (
        ("nobodys", "no Auto Scaling group"),
        (aws.group("test", pool, least=1), "MinSize"),
        (aws.group("other", pool), "batchline:stack = test"),
        (aws.group("test", pool, most=0), "MaxSize"),
    ):
        with pytest.raises(SettingsError, match=says):
            provider(aws, pool, group).check()
