"""Workers on EC2, spot before on demand: one instant fleet a launch, its id the token and the tag."""

from __future__ import annotations

import base64
import collections
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from autoscaler.providers import aws, ec2_check, ec2_fleet
from autoscaler.providers.aws_pool import AwsPool
from autoscaler.providers.contract import Found, ProviderError, Trouble
from autoscaler.providers.ec2_fleet import ON_DEMAND, SPOT, Answer, Brought, Course, Pool
from autoscaler.providers.ec2_options import Options
from autoscaler.providers.user_data import user_data
from batchline.store.instance_contract import Launch, NewInstance

__all__ = ["Ec2SpotProvider", "Options"]

log = logging.getLogger("autoscaler.ec2")

COURSES = 256
"""Launches whose fleets are remembered."""
FLEETS = 4
"""That one launch may ask for, one after another."""
UNSOLD_S = 3600.0
END_BATCH = 100
_IDS = re.compile(r"i-[0-9a-f]+")


class Ec2SpotProvider(AwsPool[Options]):
    """Instances of one pool.

    Its memory (what has no capacity, which fleets a launch asked for) spares calls; a new process does without.
    """

    name = "ec2-spot"

    def __init__(self, pool: str, options: Options, *, stack: str, clock: Callable[[], float] = time.monotonic) -> None:
        """As `AwsPool`; asks nobody anything yet."""
        super().__init__(pool, options, options.types, stack=stack, clock=clock)
        self._zones: dict[str, str] = {}
        self._template = options.launch_template
        self._rests: dict[Pool, float] = {}
        self._courses: collections.OrderedDict[uuid.UUID, Course] = collections.OrderedDict()
        self._repeated: dict[uuid.UUID, float] = {}

    def check(self) -> None:
        """As the contract says; what AWS cannot tell just now is no reason to refuse."""
        self._aws.check()
        self._zones = ec2_check.check(self._aws, self._options, self._pool)
        self._prices.refresh()
        ec2_check.dry_run(self._aws, self._options, self._stack, self._pool, self._ready_template())

    def launch(self, launch: Launch) -> Sequence[NewInstance]:
        """As the contract says: spot first, from pools that are not resting; then on demand where that is allowed."""
        course = self._courses.setdefault(launch.id, Course())
        while len(self._courses) > COURSES:
            self._courses.popitem(last=False)
        answers: list[Answer] = []
        try:
            while (asked := self._next(launch, course, answers)) is not None:
                answer = self._fleet(asked, ec2_fleet.token(launch.id, len(answers)))
                if answer is None:
                    return self._recall(launch)
                answers.append(answer)
        except ProviderError as e:
            if e.trouble is Trouble.UNKNOWN or not any(answer.brought for answer in answers):
                raise
            log.warning("launch %s is left with a part: %s", launch.id, e)
        brought = [one for answer in answers for one in answer.brought]
        if not brought:
            raise self._nothing(answers)
        return [self._entered(one) for one in brought]

    def list(self) -> Sequence[Found]:
        """As the contract says, by one paginated DescribeInstances."""
        self._prices.refresh()
        return [
            Found(
                instance=self._found(described),
                pool=self._pool,
                launch_id=aws.launch_id_of(described),
                ending=aws.state_of(described) == "shutting-down",
                age_s=aws.age_s(described),
            )
            for described in self._described(instance_state_name=aws.LIVING)
        ]

    def end(self, instance_ids: Sequence[str]) -> None:
        """As the contract says: what AWS does not know, or refuses, is left out and the rest ended."""
        trouble: ProviderError | None = None
        for ids in aws.batches(instance_ids, END_BATCH):
            trouble = self._end(ids) or trouble
        if trouble is not None:
            raise trouble

    def _next(self, launch: Launch, course: Course, answers: Sequence[Answer]) -> dict[str, Any] | None:
        """The launch's next fleet; None when it has enough, or no other is worth a call."""
        stage = len(answers)
        missing = launch.count - sum(len(answer.brought) for answer in answers)
        if missing <= 0 or stage >= FLEETS:
            return None
        if stage < len(course.requests):
            return course.requests[stage]
        if answers and not (answers[-1].short or answers[-1].unsold):
            return None
        if (
            asked := self._shares(missing, ec2_fleet.on_demand_share(launch, self._options) if stage == 0 else 0)
        ) is None:
            return None
        tagged = aws.tags(self._stack, self._pool, launch.id)
        made = ec2_fleet.request(self._options, self._ready_template(), *asked, tagged=tagged)
        course.requests.append(made)
        return made

    def _shares(self, missing: int, by_plan: int) -> tuple[list[Pool], int, int] | None:
        """Where to ask for how many on spot and on demand; None when no pool is open."""
        options = self._options
        allowed = missing if options.on_demand_fallback or not options.spot else by_plan
        spot = self._open(SPOT) if options.spot else []
        bought = self._open(ON_DEMAND) if allowed else []
        base = min(by_plan, missing) if bought else 0
        if spot and missing > base:
            return spot, missing - base, base
        return (bought, 0, base if spot else allowed) if bought else None

    def _open(self, market: str) -> list[Pool]:
        pools = [Pool(kind, place, market) for kind in self._options.types for place in self._options.places]
        return [pool for pool in pools if self._rests.get(pool, float("-inf")) <= self._clock()]

    def _fleet(self, asked: dict[str, Any], token: str) -> Answer | None:
        """Ask for a fleet; None when the token was used for something that reads differently."""
        try:
            answer = ec2_fleet.read(self._aws.act("ec2").create_fleet(ClientToken=token, **asked), self._options)
        except aws.FAULTS as e:
            if aws.code_of(e) in aws.REPEATED_CODES:
                return None
            raise aws.provider_error(e, "launch instances") from e
        for pools, rest_s in ((answer.short, self._options.rest_s), (answer.unsold, UNSOLD_S)):
            for pool in pools:
                self._rests[pool] = self._clock() + rest_s
                log.warning("no %s capacity for %s in %s: left alone for %g s", pool.market, *pool[:2], rest_s)
        return answer

    def _recall(self, launch: Launch) -> list[NewInstance]:
        """What an earlier call with this token brought, by the tag: its answer was lost, with what it asked for."""
        first = self._repeated.setdefault(launch.id, self._clock())
        if self._clock() - first < self.stale_s:
            raise ProviderError(
                Trouble.UNKNOWN, f"launch {launch.id} was asked for before in other words; what it brought shows soon."
            )
        mine = [
            self._found(one)
            for one in self._described(instance_state_name=aws.LIVING)
            if aws.launch_id_of(one) == launch.id
        ]
        if not mine:
            raise ProviderError(Trouble.CAPACITY, f"launch {launch.id} was asked for before and brought nothing.")
        return mine

    def _nothing(self, answers: Sequence[Answer]) -> ProviderError:
        refused = [f"{code}: {message}" for answer in answers for code, message in answer.refused]
        if refused:
            return ProviderError(Trouble.REFUSED, f"no instance was launched: {'; '.join(dict.fromkeys(refused))}")
        kinds = ", ".join(self._options.types)
        hint = "" if self._options.on_demand_fallback else " Name more types or zones, or allow on_demand_fallback."
        detail = f"no capacity for {kinds} in {', '.join(self._options.places)}; asked again in some minutes.{hint}"
        return ProviderError(Trouble.CAPACITY, detail)

    def _end(self, ids: list[str]) -> ProviderError | None:
        """End what can be ended; the last reason why something was not."""
        try:
            self._aws.act("ec2").terminate_instances(InstanceIds=ids)
            return None
        except aws.FAULTS as e:
            trouble = aws.provider_error(e, f"end {', '.join(ids)}")
            unknown = aws.code_of(e).startswith("InvalidInstanceID")
            if unknown and len(ids) == 1:
                return None
            if trouble.trouble is not Trouble.REFUSED or len(ids) == 1:
                return trouble
            named = set(_IDS.findall(aws.message_of(e))) & set(ids) if unknown else set[str]()
        parts = [[one for one in ids if one not in named]] if named else [[one] for one in ids]
        troubles = [self._end(part) for part in parts if part]
        return next((one for one in reversed(troubles) if one), None)

    def _ready_template(self) -> str:
        if not self._template:
            self._template = self._make_template()
        return self._template

    def _make_template(self) -> str:
        """A launch template made of the options; its name tells its contents, so that it is made once."""
        data = template_data(self._options, self._stack, self._pool, self._aws.region)
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9().\-/_]", "-", f"batchline-{self._stack}-{self._pool}")[:100] + f"-{digest}"
        try:
            self._aws.act("ec2").create_launch_template(
                LaunchTemplateName=name,
                LaunchTemplateData=data,
                TagSpecifications=[{"ResourceType": "launch-template", "Tags": aws.tags(self._stack, self._pool)}],
            )
        except aws.FAULTS as e:
            if aws.code_of(e) != "InvalidLaunchTemplateName.AlreadyExistsException":
                raise aws.provider_error(e, "make a launch template") from e
        return name

    def _entered(self, one: Brought) -> NewInstance:
        zone = one.zone or self._zone_of(one.place)
        return NewInstance(
            id=one.id,
            kind=one.kind,
            zone=zone,
            market=one.market,
            price_per_hour=self._prices.of(one.kind, zone, one.market),
            on_demand_per_hour=self._prices.on_demand(one.kind),
        )

    def _zone_of(self, place: str) -> str:
        """The zone of a subnet; empty when AWS does not tell just now."""
        if self._options.subnets and not self._zones:
            try:
                self._zones = ec2_check.zones(self._aws, self._options)
            except ProviderError as e:
                log.warning("zones of subnets are not known: %s", e)
        return self._zones.get(place, "") if self._options.subnets else place


def template_data(options: Options, stack: str, pool: str, region: str) -> dict[str, Any]:
    """What a launch template of ours holds: IMDSv2 only, no public secrets, an end that is an end.

    Args:
        options: as configured.
        stack: for tags of what the template makes besides.
        pool: whose workers.
        region: for the worker's environment.
    """
    text = user_data(options.worker, pool=pool, region=region)
    data: dict[str, Any] = {
        "ImageId": options.image,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1},
        "UserData": base64.b64encode(text.encode()).decode(),
        "TagSpecifications": [{"ResourceType": kind, "Tags": aws.tags(stack, pool)} for kind in ("instance", "volume")],
    }
    if options.instance_profile:
        key = "Arn" if options.instance_profile.startswith("arn:") else "Name"
        data["IamInstanceProfile"] = {key: options.instance_profile}
    if options.security_groups:
        data["SecurityGroupIds"] = list(options.security_groups)
    if options.key_name:
        data["KeyName"] = options.key_name
    if options.disk_gb:
        disk = {"VolumeSize": options.disk_gb, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
        data["BlockDeviceMappings"] = [{"DeviceName": options.disk_name, "Ebs": disk}]
    return data
