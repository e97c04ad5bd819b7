"""EC2 spot against moto's server behind the fault proxy: every launch once, faults told apart, nothing left behind."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from aws_cloud import REGION, ZONES, Cloud, HandClock, launched

from autoscaler.providers.contract import ProviderError, Trouble
from autoscaler.providers.ec2_spot import Ec2SpotProvider, Options
from autoscaler.providers.user_data import Worker
from batchline.errors import SettingsError
from batchline.store.instance_contract import Launch

clock = HandClock()
"""Also that of the fixture `aws`."""
TYPES = ("m5.large", "c5.large")


def options(aws: Cloud, **changed: Any) -> Options:
    given: dict[str, Any] = {
        "types": TYPES,
        "region": REGION,
        "endpoint_url": aws.endpoint,
        "subnets": aws.subnets[:2],
        "image": aws.image,
        "on_demand_prices": {"m5.large": 0.115, "c5.large": 0.097},
    }
    return Options(**given | changed)


def provider(aws: Cloud, pool: str, **changed: Any) -> Ec2SpotProvider:
    return Ec2SpotProvider(pool, options(aws, **changed), stack=f"s-{pool}", clock=clock)


def a_launch(pool: str, count: int = 1, total: int | None = None) -> Launch:
    return Launch(uuid.uuid4(), pool, "ec2-spot", count, total or count, datetime.now(UTC))


def test_what_is_launched_is_known_by_type_zone_market_and_price(aws: Cloud, pool: str) -> None:
    """The answer and the listing tell the same; instances and volumes carry the tags."""
    made = provider(aws, pool)
    made.check()
    launch = a_launch(pool, 2)
    brought = made.launch(launch)
    assert {(i.kind, i.zone, i.market, i.price_per_hour, i.on_demand_per_hour) for i in brought} == {
        ("m5.large", ZONES[0], "spot", 0.00001, 0.115)
    }
    assert [f.instance for f in made.list()] == list(brought)
    asked = next(form for action, form in aws.proxy.calls if action == "CreateFleet" and "DryRun" not in form)
    assert asked["ClientToken"] == str(launch.id)
    assert asked["SpotOptions.AllocationStrategy"] == "price-capacity-optimized"
    tagged = {asked[f"TagSpecification.{n}.ResourceType"] for n in (1, 2, 3)}
    assert tagged == {"fleet", "instance", "volume"}
    overrides = [v for k, v in asked.items() if ".Overrides." in k and k.endswith("InstanceType")]
    assert len(overrides) == 4


def test_a_template_is_made_once_and_asks_for_imdsv2(aws: Cloud, pool: str) -> None:
    """What the options say is in a launch template that two processes name alike."""
    worker = Worker(environment={"BATCHLINE_BLOBS": "s3://models/x"}, parameters="/batchline/test")
    for _ in range(2):
        provider(aws, pool, worker=worker, disk_gb=30, instance_profile="worker").check()
    of_pool = [{"Name": "tag:batchline:pool", "Values": [pool]}]  # the server tells of fifteen at most
    mine = aws.ec2.describe_launch_templates(Filters=of_pool)["LaunchTemplates"]
    assert len(mine) == 1
    found = aws.ec2.describe_launch_template_versions(LaunchTemplateId=mine[0]["LaunchTemplateId"], Versions=["1"])
    data = found["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    text = base64.b64decode(data["UserData"]).decode()
    assert text.startswith("#cloud-config")
    assert "s3://models/x" in text


def test_a_lost_answer_is_no_second_launch(aws: Cloud, pool: str) -> None:
    """The effect came, the answer did not: the same launch again names the same instances."""
    made = provider(aws, pool)
    made.check()
    launch = a_launch(pool, 3)
    aws.proxy.lose_next = 1
    with pytest.raises(ProviderError) as caught:
        made.launch(launch)
    assert caught.value.trouble is Trouble.UNKNOWN
    assert len(aws.proxy.alive(pool)) == 3
    assert sorted(i.id for i in provider(aws, pool).launch(launch)) == sorted(aws.proxy.alive(pool))


def test_without_the_token_there_would_be_duplicates(aws: Cloud, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that the test above can fail: another token each time, and the launch is made twice."""
    monkeypatch.setattr("autoscaler.providers.ec2_fleet.token", lambda _id, _stage: str(uuid.uuid4()))
    made = provider(aws, pool)
    made.check()
    launch = a_launch(pool, 3)
    aws.proxy.lose_next = 1
    with pytest.raises(ProviderError):
        made.launch(launch)
    made.launch(launch)
    assert len(aws.proxy.alive(pool)) == 6
    assert aws.proxy.duplicates(f"s-{pool}", {str(launch.id): 3}) == [str(launch.id)]


def test_a_pool_without_capacity_is_left_alone_for_three_minutes(aws: Cloud, pool: str) -> None:
    """The next (type, zone) is taken; the empty one is asked again when it has rested."""
    made = provider(aws, pool)
    aws.proxy.sold_out = {("m5.large", ZONES[0])}
    assert [(i.kind, i.zone) for i in made.launch(a_launch(pool))] == [("m5.large", ZONES[1])]
    aws.proxy.sold_out = set()
    made.launch(a_launch(pool, total=2))
    clock.now += 181
    made.launch(a_launch(pool, total=3))
    fleets = [form for action, form in aws.proxy.calls if action == "CreateFleet"]
    offered = [sum(k.endswith("InstanceType") for k in form) for form in fleets]
    assert offered == [4, 3, 4]


def test_a_part_is_taken(aws: Cloud, pool: str) -> None:
    """Five wanted, three to be had: three are brought, from two pools, and it is not asked for ever."""
    made = provider(aws, pool)
    aws.proxy.sold_out = {("c5.large", zone) for zone in ZONES}
    aws.proxy.room = {("m5.large", ZONES[0]): 2, ("m5.large", ZONES[1]): 1}
    brought = made.launch(a_launch(pool, 5))
    assert sorted(i.zone for i in brought) == [ZONES[0], ZONES[0], ZONES[1]]
    assert len(aws.proxy.alive(pool)) == 3


def test_on_demand_is_bought_only_where_it_is_allowed(aws: Cloud, pool: str) -> None:
    """No spot anywhere: CAPACITY says so; with the fall-back the missing ones come on demand, once."""
    aws.proxy.sold_out = {(kind, zone, "spot") for kind in TYPES for zone in ZONES}
    with pytest.raises(ProviderError) as caught:
        provider(aws, pool).launch(a_launch(pool, 2))
    assert caught.value.trouble is Trouble.CAPACITY
    assert "on_demand_fallback" in caught.value.detail
    assert not aws.proxy.alive(pool)
    launch = a_launch(pool, 2)
    made = provider(aws, pool, on_demand_fallback=True)
    brought = made.launch(launch)
    assert {(i.market, i.price_per_hour) for i in brought} == {("on_demand", 0.115)}
    assert {i.id for i in made.launch(launch)} == set(aws.proxy.alive(pool))


def test_the_base_is_on_demand(aws: Cloud, pool: str) -> None:
    """The first of a pool are on demand, as many as the settings say; the rest is spot."""
    made = provider(aws, pool, on_demand_base=2)
    first = made.launch(a_launch(pool, 3))
    second = made.launch(a_launch(pool, 2, total=5))
    assert sorted(i.market for i in first) == ["on_demand", "on_demand", "spot"]
    assert [i.market for i in second] == ["spot", "spot"]
    only = provider(aws, f"{pool}x", spot=False).launch(a_launch(f"{pool}x"))
    assert [i.market for i in only] == ["on_demand"]


def test_a_launch_asked_for_in_other_words_is_found_by_its_tag(aws: Cloud, pool: str) -> None:
    """A new process knows nothing of pools at rest: AWS refuses the token, and the tag tells what came of it."""
    aws.proxy.sold_out = {("m5.large", ZONES[0])}
    before = provider(aws, pool)
    before.launch(a_launch(pool))
    launch = a_launch(pool, 2, total=3)
    aws.proxy.lose_next = 1
    with pytest.raises(ProviderError):
        before.launch(launch)
    aws.proxy.stale_s = 60
    after = provider(aws, pool)
    ids = launched(after, launch, clock)
    assert len(ids) == 2
    assert len(aws.proxy.alive(pool)) == 3


def test_throttled_calls_are_told_as_such(aws: Cloud, pool: str) -> None:
    """Too many calls: nothing was done; the call is sent once, for the scaler backs off itself."""
    made = provider(aws, pool)
    made.check()
    aws.proxy.calls.clear()
    aws.proxy.throttled = 1.0
    with pytest.raises(ProviderError) as caught:
        made.launch(a_launch(pool))
    assert caught.value.trouble is Trouble.THROTTLED
    assert [action for action, _ in aws.proxy.calls] == ["CreateFleet"]


def test_nobody_there_is_unknown(pool: str) -> None:
    """A port that nobody listens on: it may have been done, for all we know."""
    wanted = Options(
        types=("m5.large",), region=REGION, endpoint_url="http://127.0.0.1:9", zones=ZONES, launch_template="own"
    )
    with pytest.raises(ProviderError) as caught:
        Ec2SpotProvider(pool, wanted, stack="test").launch(a_launch(pool))
    assert caught.value.trouble is Trouble.UNKNOWN


def test_one_listing_is_one_describe_of_many_pages(aws: Cloud, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages are read; what is shutting down is told as ending, what has ended is not told."""
    made = provider(aws, pool)
    for n in range(3):
        made.launch(a_launch(pool, 1, total=n + 1))
    made.list()
    monkeypatch.setattr("autoscaler.providers.aws.PAGE", 1)
    aws.proxy.calls.clear()
    assert len(made.list()) == 3
    assert [action for action, _ in aws.proxy.calls] == ["DescribeInstances"] * 3


def test_one_bad_id_does_not_poison_the_rest(aws: Cloud, pool: str) -> None:
    """AWS ends none when it does not know one; we leave that one out."""
    made = provider(aws, pool)
    ids = [i.id for i in made.launch(a_launch(pool, 3))]
    made.end([ids[0], "i-0123456789abcdef0", ids[1], "rubbish"])
    assert aws.proxy.alive(pool) == [ids[2]]
    made.end([*ids, "i-0123456789abcdef0"])
    made.end(ids)
    assert not aws.proxy.alive(pool)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"types": ("m5.large", "zz9.large")}, "zz9.large"),
        ({"image": "ami-12345678"}, "image"),
        ({"subnets": ("subnet-12345678",)}, "subnet"),
        ({"subnets": (), "zones": ("eu-central-1z",)}, "eu-central-1z"),
        ({"image": "", "launch_template": "nobodys"}, "nobodys"),
        ({"types": ("m6g.large",)}, "arm64"),
        ({"types": ("m5.large", "m6g.large")}, "architecture"),
        ({"worker": Worker(environment={"X": "y" * 20000})}, "SSM"),
    ],
)
def test_settings_that_cannot_work_are_refused(aws: Cloud, pool: str, changed: dict[str, Any], says: str) -> None:
    """At start, naming what is wrong and what to do."""
    with pytest.raises(SettingsError) as caught:
        provider(aws, pool, **changed).check()
    assert says in caught.value.detail


def test_a_template_without_imdsv2_is_refused(aws: Cloud, pool: str) -> None:
    """An operator's own template is held to the same rule."""
    name = aws.template(MetadataOptions={"HttpTokens": "optional"})
    with pytest.raises(SettingsError, match="IMDSv2"):
        provider(aws, pool, image="", launch_template=name).check()
    provider(aws, pool, image="", launch_template=aws.template()).check()


def test_an_unknown_region_is_refused(monkeypatch: pytest.MonkeyPatch, pool: str) -> None:
    """With the regions there are."""
    wanted = Options(types=("m5.large",), region="eu-central-7", zones=("eu-central-7a",), launch_template="own")
    with pytest.raises(SettingsError, match="eu-central-1"):
        Ec2SpotProvider(pool, wanted, stack="test").check()


def test_no_credentials_are_refused(aws: Cloud, monkeypatch: pytest.MonkeyPatch, pool: str) -> None:
    """Without a role and without keys nothing is asked."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(SettingsError, match="role"):
        provider(aws, pool).check()


def test_no_permission_is_refused(aws: Cloud, pool: str) -> None:
    """The trial launch is denied: the message points to the policy."""
    aws.proxy.denied = {"RunInstances"}
    with pytest.raises(SettingsError, match=r"docs/autoscaler\.md"):
        provider(aws, pool).check()


def test_a_bad_hour(aws: Cloud, pool: str) -> None:
    """Half of the calls throttled, a third of the answers lost, listings a minute old: no launch is made twice."""
    aws.proxy.throttled, aws.proxy.lost, aws.proxy.cut, aws.proxy.stale_s = 0.5, 0.3, 0.1, 60.0
    made = provider(aws, pool, on_demand_fallback=True)
    wanted: dict[str, int] = {}
    for n in range(6):
        aws.proxy.sold_out = {(TYPES[n % 2], ZONES[n % 2])}
        if n == 3:
            made = provider(aws, pool, on_demand_fallback=True)
        launch = a_launch(pool, 2, total=2 * n + 2)
        wanted[str(launch.id)] = 2
        assert len(launched(made, launch, clock)) == 2
    assert len(aws.proxy.alive(pool)) == 12
    assert not aws.proxy.duplicates(f"s-{pool}", wanted)
