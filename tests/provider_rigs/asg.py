"""The provider `asg` on moto's server behind the fault proxy; a group for each pool of each stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aws_cloud import REGION, Cloud, cloud

from autoscaler.providers.asg import AsgProvider, Options


class AsgRig:
    def __init__(self, aws: Cloud) -> None:
        self.aws = aws
        self.groups: dict[tuple[str, str], str] = {}

    def provider(self, pool: str = "cpu", stack: str = "ours") -> AsgProvider:
        if (stack, pool) not in self.groups:
            self.groups[stack, pool] = self.aws.group(stack, pool)
        options = Options(self.groups[stack, pool], region=REGION, endpoint_url=self.aws.endpoint, stale_s=0.0)
        return AsgProvider(pool, options, stack=stack)

    def vanish(self, instance_id: str) -> None:
        groups = self.aws.client("autoscaling")
        groups.terminate_instance_in_auto_scaling_group(InstanceId=instance_id, ShouldDecrementDesiredCapacity=True)

    def exhaust(self) -> None:
        groups = self.aws.client("autoscaling")
        for group in groups.describe_auto_scaling_groups()["AutoScalingGroups"]:
            most = len(group["Instances"])
            groups.update_auto_scaling_group(AutoScalingGroupName=group["AutoScalingGroupName"], MaxSize=most)


@contextmanager
def rig(folder: Path) -> Iterator[AsgRig]:
    with cloud(time.monotonic) as aws:
        yield AsgRig(aws)
