"""An EC2 of the tests' own: moto's server on loopback with an image and three subnets, behind the fault proxy."""

from __future__ import annotations

import atexit
import functools
import os
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import boto3.session
from aws_faults import AwsFaults
from botocore.retries import standard
from moto.server import ThreadedMotoServer

from autoscaler.providers.contract import Provider, ProviderError, Trouble
from batchline.store.instance_contract import Launch

REGION = "eu-central-1"
ZONES = tuple(f"{REGION}{letter}" for letter in "abc")
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}


class HandClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@functools.cache
def _session() -> boto3.session.Session:
    return boto3.session.Session()


class Cloud:
    """One moto server; what tests launch in it they tell apart by stack and pool."""

    def __init__(self, target: str, clock: Callable[[], float]) -> None:
        self.target = target
        self.ec2: Any = self.client("ec2")
        self.image = self.ec2.register_image(Name=f"batchline-{uuid.uuid4()}", Architecture="x86_64")["ImageId"]
        moto_of(REGION).amis[self.image].architecture = "x86_64"
        zones = {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in self.ec2.describe_subnets()["Subnets"]}
        self.subnets = tuple(zones[zone] for zone in ZONES)
        self.proxy = AwsFaults(target, REGION, clock=clock)
        self.endpoint = self.proxy.endpoint

    def client(self, service: str) -> Any:
        """Past the proxy."""
        return _session().client(service, region_name=REGION, endpoint_url=self.target)

    def template(self, **data: Any) -> str:
        name = f"t-{uuid.uuid4()}"
        required = {"ImageId": self.image, "MetadataOptions": {"HttpTokens": "required"}, "InstanceType": "m5.large"}
        self.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=required | data)
        return name

    def group(self, stack: str, pool: str, *, most: int = 10, least: int = 0) -> str:
        name = f"g-{uuid.uuid4()}"
        tags = {"batchline:stack": stack, "batchline:pool": pool}
        self.client("autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=least,
            MaxSize=most,
            VPCZoneIdentifier=self.subnets[0],
            LaunchTemplate={"LaunchTemplateName": self.template()},
            Tags=[{"Key": key, "Value": value, "PropagateAtLaunch": True} for key, value in tags.items()],
        )
        self.proxy.remember()
        return name

    def clear(self) -> None:
        """End everything: the next test's server has the same memory."""
        groups = self.client("autoscaling")
        for group in groups.describe_auto_scaling_groups()["AutoScalingGroups"]:
            groups.delete_auto_scaling_group(AutoScalingGroupName=group["AutoScalingGroupName"], ForceDelete=True)
        if ids := [i.id for i in moto_of(REGION).all_running_instances()]:
            self.ec2.terminate_instances(InstanceIds=ids)
        moto_of(REGION).reservations.clear()  # it would keep the dead, and list them slower and slower


def moto_of(region: str) -> Any:
    """The server runs in this process: what its API does not offer can be set in its memory."""
    from moto.ec2.models import ec2_backends

    return ec2_backends["123456789012"][region]


@functools.cache
def server() -> str:
    """The one server of this process: it takes seconds to start."""
    made = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    made.start()
    atexit.register(made.stop)
    host, port = made.get_host_and_port()
    return f"http://{host}:{port}"


@contextmanager
def cloud(clock: Callable[[], float]) -> Generator[Cloud]:
    """An account in use by one test or module at a time. Repeated questions are not waited for."""
    waiting = standard.ExponentialBackoff.delay_amount
    standard.ExponentialBackoff.delay_amount = lambda *_: 0.0
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    made: Cloud | None = None
    try:
        made = Cloud(server(), clock)
        yield made
    finally:
        if made is not None:
            made.clear()
            made.proxy.close()
        standard.ExponentialBackoff.delay_amount = waiting
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def launched(made: Provider, launch: Launch, clock: HandClock, tries: int = 200) -> list[str]:
    """As the scaler does it: the same launch again, every ten seconds, until its outcome is known."""
    for _ in range(tries):
        try:
            return [i.id for i in made.launch(launch)]
        except ProviderError as e:
            if e.trouble not in (Trouble.UNKNOWN, Trouble.THROTTLED):
                raise
            clock.now += 10
    raise AssertionError("never told")
