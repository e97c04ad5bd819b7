"""The provider `ec2-spot` on moto's server behind the fault proxy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aws_cloud import REGION, ZONES, Cloud, cloud

from autoscaler.providers.ec2_spot import Ec2SpotProvider, Options


class Ec2Rig:
    def __init__(self, aws: Cloud) -> None:
        self.aws = aws
        self.options = Options(
            types=("m5.large",),
            region=REGION,
            endpoint_url=aws.endpoint,
            subnets=aws.subnets[:2],
            launch_template=aws.template(),
            stale_s=0.0,
        )

    def provider(self, pool: str = "cpu", stack: str = "ours") -> Ec2SpotProvider:
        return Ec2SpotProvider(pool, self.options, stack=stack)

    def vanish(self, instance_id: str) -> None:
        self.aws.ec2.terminate_instances(InstanceIds=[instance_id])

    def exhaust(self) -> None:
        self.aws.proxy.sold_out = {("m5.large", zone) for zone in ZONES}


@contextmanager
def rig(folder: Path) -> Iterator[Ec2Rig]:
    with cloud(time.monotonic) as aws:
        yield Ec2Rig(aws)
