"""CreateFleet's request and answer, as botocore documents them, and AWS's error codes in our words."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.providers import aws, ec2_fleet, ec2_spot
from autoscaler.providers.contract import Trouble
from autoscaler.providers.ec2_options import Options
from autoscaler.providers.user_data import Worker
from batchline.store.instance_contract import Launch

ZONAL = Options(types=("m5.large",), zones=("eu-central-1a",), image="ami-1")
MODEL = botocore.session.get_session().get_service_model("ec2")


def a_launch(count: int, total: int) -> Launch:
    return Launch(uuid.uuid4(), "cpu", "ec2-spot", count, total, datetime.now(UTC))


def valid(operation: str, arguments: dict[str, Any]) -> None:
    report = ParamValidator().validate(arguments, MODEL.operation_model(operation).input_shape)
    assert not report.has_errors(), report.generate_report()


def test_nobody_else_says_what_our_own_template_launches() -> None:
    """Versions never change, but which is the default does: whoever may set it would launch with the workers' role."""
    own = Options(types=("m5.large",), zones=("eu-central-1a",), launch_template="lt-1")
    for options, version in ((ZONAL, "1"), (own, "$Default")):
        pools = [ec2_fleet.Pool("m5.large", "eu-central-1a", "spot")]
        (asked,) = ec2_fleet.request(options, "t", pools, 1, 0, tagged=[])["LaunchTemplateConfigs"]
        assert asked["LaunchTemplateSpecification"]["Version"] == version


def test_requests_are_what_ec2_takes() -> None:
    """Field by field, by the service's own description."""
    full = Options(
        types=("m5.large", "c5.large"),
        subnets=("subnet-1", "subnet-2"),
        image="ami-1",
        instance_profile="arn:aws:iam::1:instance-profile/w",
        security_groups=("sg-1",),
        key_name="k",
        disk_gb=20,
        worker=Worker(package="batchline==0.1.0"),
    )
    for options in (ZONAL, full):
        data = ec2_spot.template_data(options, "s", "cpu", "eu-central-1")
        valid("CreateLaunchTemplate", {"LaunchTemplateName": "abc", "LaunchTemplateData": data})
        pools = [ec2_fleet.Pool(kind, place, "spot") for kind in options.types for place in options.places]
        for spot, bought in ((3, 0), (2, 1), (0, 3)):
            tagged = aws.tags("s", "cpu", uuid.uuid4())
            made = ec2_fleet.request(options, "lt-1", pools, spot, bought, tagged=tagged)
            valid("CreateFleet", made | {"ClientToken": "t"})
            capacity = made["TargetCapacitySpecification"]
            assert capacity["TotalTargetCapacity"] == 3
            assert capacity["DefaultTargetCapacityType"] == ("spot" if spot else "on-demand")


def test_an_answer_with_a_part_and_reasons() -> None:
    """Instances and errors at once; what AWS adds of itself (a default subnet) does not hide the zone we named."""
    overrides = {"InstanceType": "m5.large", "SubnetId": "subnet-9", "AvailabilityZone": "eu-central-1a"}
    told = {"LaunchTemplateAndOverrides": {"Overrides": overrides}, "Lifecycle": "spot"}
    answer = ec2_fleet.read(
        {
            "Instances": [told | {"InstanceIds": ["i-1", "i-2"], "InstanceType": "m5.large"}],
            "Errors": [
                told | {"ErrorCode": "InsufficientInstanceCapacity", "ErrorMessage": "none"},
                told | {"ErrorCode": "InvalidFleetConfiguration", "ErrorMessage": "not here", "Lifecycle": "on-demand"},
                told | {"ErrorCode": "UnauthorizedOperation", "ErrorMessage": "no"},
            ],
        },
        ZONAL,
    )
    assert [(b.id, b.zone, b.market) for b in answer.brought] == [
        ("i-1", "eu-central-1a", "spot"),
        ("i-2", "eu-central-1a", "spot"),
    ]
    assert answer.short == (("m5.large", "eu-central-1a", "spot"),)
    assert answer.unsold == (("m5.large", "eu-central-1a", "on_demand"),)
    assert answer.refused == (("UnauthorizedOperation", "no"),)


@given(st.integers(0, 20), st.lists(st.integers(1, 6), max_size=8))
def test_the_base_is_filled_exactly(base: int, counts: list[int]) -> None:
    """However a pool grows, its on-demand share by plan is the base, or all there is."""
    options = Options(types=("m5.large",), zones=("z",), image="ami-1", on_demand_base=base)
    total = bought = 0
    for count in counts:
        total += count
        bought += ec2_fleet.on_demand_share(a_launch(count, total), options)
    assert bought == min(base, total)


def test_tokens_are_one_for_each_fleet_of_a_launch() -> None:
    """Made of the launch's id alone: a new process makes the same; at most 64 characters."""
    launch = uuid.uuid4()
    tokens = [ec2_fleet.token(launch, stage) for stage in range(4)]
    assert tokens[0] == str(launch)
    assert len(set(tokens)) == 4
    assert max(map(len, tokens)) <= 64


@pytest.mark.parametrize(
    ("code", "status", "trouble"),
    [
        ("InsufficientInstanceCapacity", 500, Trouble.CAPACITY),
        ("MaxSpotInstanceCountExceeded", 400, Trouble.CAPACITY),
        ("RequestLimitExceeded", 503, Trouble.THROTTLED),
        ("Throttling", 400, Trouble.THROTTLED),
        ("UnauthorizedOperation", 403, Trouble.REFUSED),
        ("InvalidParameterValue", 400, Trouble.REFUSED),
        ("InternalError", 500, Trouble.UNKNOWN),
        ("Unavailable", 503, Trouble.UNKNOWN),
    ],
)
def test_codes_in_our_words(code: str, status: int, trouble: Trouble) -> None:
    """EC2 says throttling with 503 and no capacity with 500: the code counts, not the status."""
    response: Any = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert aws.provider_error(ClientError(response, "CreateFleet"), "launch").trouble is trouble


def test_no_answer_and_no_credentials() -> None:
    """Nobody there may have done it; without credentials nothing was asked."""
    assert aws.provider_error(EndpointConnectionError(endpoint_url="x"), "launch").trouble is Trouble.UNKNOWN
    assert aws.provider_error(NoCredentialsError(), "launch").trouble is Trouble.REFUSED


@pytest.mark.parametrize(
    "wrong",
    [
        {"types": ()},
        {"zones": ()},
        {"subnets": ("subnet-1",)},
        {"launch_template": "x"},
        {"image": ""},
        {"on_demand_base": -1},
        {"on_demand_prices": {"m5.large": 0.0}},
        {"rest_s": -1.0},
        {"types": tuple(f"t{n}" for n in range(301))},
    ],
)
def test_options_that_contradict_themselves_are_refused(wrong: dict[str, Any]) -> None:
    """When the file is read."""
    with pytest.raises(ValueError, match=r"\w"):
        Options(**{"types": ("m5.large",), "zones": ("z",), "image": "ami-1"} | wrong)
