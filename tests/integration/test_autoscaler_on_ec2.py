"""The autoscaler, the ledger and EC2 with all its faults at once: never too many, none twice, none forgotten.

Seconds of AWS pass sixty times as fast: listings are one second old, where EC2's are a minute.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import stack
from aws_cloud import REGION, ZONES, Cloud, cloud, moto_of
from fake_provider import Crew

from autoscaler.config import parse
from autoscaler.loop import Autoscaler
from autoscaler.providers.asg import AsgProvider
from autoscaler.providers.asg import Options as AsgOptions
from autoscaler.providers.ec2_spot import Ec2SpotProvider
from autoscaler.providers.ec2_spot import Options as Ec2Options
from batchline.clock import FakeClock
from batchline.job import Status

MOST = 6
STALE_S = 1.0
TYPES = ("m5.large", "c5.large")
SETTINGS = f"""
every_s = 0.1
[pools.cpu]
provider = "{{provider}}"
policy = "queue"
policy_options = {{{{ rows_per_worker = 10, cooldown_s = 10 }}}}
max_workers = {MOST}
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[Cloud]:
    with cloud(time.monotonic) as made:
        yield made


@pytest.fixture
def model(store):
    return store.catalogue.register_model(stack.a_spec(pool="cpu"))


class Rig:
    """A scaler on EC2; what runs is read past the faults."""

    def __init__(self, store, aws, provider):
        aws.clear()
        aws.proxy.reset()
        self.store, self.aws, self.kind = store, aws, provider
        self.clock = FakeClock(datetime.now(UTC))
        self.config = parse(SETTINGS.format(provider=provider), "a.toml")
        self.stack = f"s{uuid.uuid4().hex[:8]}"
        self.group = aws.group(self.stack, "cpu", most=MOST) if provider == "asg" else ""
        aws.proxy.settle()
        self.scaler = self.another()

    def another(self):
        """A process that has just started: nothing is remembered. The one before has let go of its lease."""
        for (holder,) in self.store.db.run("SELECT holder FROM leases WHERE name = 'autoscaler'"):
            self.store.workers.resign("autoscaler", holder)
        place = {"region": REGION, "endpoint_url": self.aws.endpoint, "stale_s": STALE_S}
        if self.kind == "asg":
            made = AsgProvider("cpu", AsgOptions(group=self.group, patience_s=5.0, **place), stack=self.stack)
        else:
            options = Ec2Options(
                types=TYPES, subnets=self.aws.subnets[:2], image=self.aws.image, rest_s=3.0, on_demand_base=1, **place
            )
            made = Ec2SpotProvider("cpu", options, stack=self.stack)
        return Autoscaler(self.store, self.config, {"cpu": made}, self.clock, lease_s=30.0)

    def live(self):
        return set(self.aws.proxy.alive("cpu"))

    def ledger(self):
        return {i.id for i in self.store.instances.list()}

    def launches(self):
        return {str(id_): n for id_, n in self.store.db.run("SELECT id, count FROM launches")}

    def tick(self):
        self.scaler.tick()
        self.clock.advance(5.0)


@pytest.mark.parametrize("provider", ["ec2-spot", "asg"])
def test_all_faults_at_once(store, aws, model, provider):
    """Half of the calls throttled, a third of the answers lost after the effect, some requests lost before, pools
    without capacity that change, listings a minute old, the scaler started anew: the peak stays within the limit, no
    launch is made twice, no busy worker is ended, and when the work is done nothing is left."""
    rig = Rig(store, aws, provider)
    proxy, rng = aws.proxy, random.Random(7)
    proxy.throttled, proxy.lost, proxy.cut, proxy.stale_s = 0.5, 0.3, 0.1, STALE_S
    proxy.losing.update(CreateFleet=2, SetDesiredCapacity=2, CreateTags=1)  # the first ones surely
    jobs = [stack.new_job(model) for _ in range(100)]
    store.jobs.submit(jobs)
    crew = Crew(store, rig, model, seed=7)
    deadline = time.monotonic() + 100
    n = 0
    while time.monotonic() < deadline:
        n += 1
        if n % 10 == 1:
            proxy.sold_out = {(kind, zone) for kind in TYPES for zone in ZONES if rng.random() < 0.4}
        if n % 40 == 0:
            rig.scaler = rig.another()
        rig.tick()
        crew.step()
        assert len(rig.live()) <= MOST
        still = rig.live() or rig.ledger() or store.instances.unsettled()
        if not still and store.jobs.terminal([j.id for j in jobs]) == {j.id for j in jobs}:
            break
    assert (rig.live(), rig.ledger(), store.instances.unsettled()) == (set(), set(), [])
    assert {view.status for view in store.jobs.read([j.id for j in jobs]).values()} == {Status.SUCCEEDED}
    assert (crew.busy_stopped, proxy.duplicates(rig.stack, rig.launches())) == (0, [])
    assert 1 < proxy.peak["cpu"] <= MOST


def test_orphans_are_ended_by_one_sweep(store, aws, model):
    """Tagged as ours, of a launch that nobody knows, past the grace: entered and ended, whatever else goes on."""
    rig = Rig(store, aws, "ec2-spot")
    tags = {"batchline:stack": rig.stack, "batchline:pool": "cpu", "batchline:launch": str(uuid.uuid4())}
    tagged = [{"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}]
    made = aws.ec2.run_instances(ImageId=aws.image, MinCount=3, MaxCount=3, TagSpecifications=tagged)["Instances"]
    for instance in moto_of(REGION).all_running_instances():
        instance.launch_time = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    aws.proxy.settle()
    assert rig.live() == {i["InstanceId"] for i in made}
    rig.tick()
    assert rig.live() == set()
