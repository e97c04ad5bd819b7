"""Workers in an Auto Scaling group: told totals, never more than its MaxSize; a drained instance is taken out by name.

A group knows no launches. Which instance a launch has brought is written on the instance as a tag: a launch takes
instances that no other has taken. So the same launch again names the same instances and asks for nothing new.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from autoscaler.providers import aws
from autoscaler.providers.aws_pool import AwsPool
from autoscaler.providers.contract import Found, ProviderError, Trouble
from batchline.errors import SettingsError
from batchline.store.instance_contract import Launch, NewInstance

log = logging.getLogger("autoscaler.asg")

_GONE = ("Terminating", "Terminated", "Detaching", "Detached")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[pools.NAME.asg]`.

    Attributes:
        group: name of the Auto Scaling group; one pool, one group. Template, types, zones and share of spot are its.
        region: empty: AWS_REGION.
        endpoint_url: an AWS of one's own.
        on_demand_prices: dollars an hour by type; spot prices are read of the same types.
        patience_s: how long a launch waits for the group's instances before what is missing is given up.
        stale_s: for how long Describe calls may not show what has been done.
    """

    group: str
    region: str = ""
    endpoint_url: str = ""
    on_demand_prices: dict[str, float] = {}
    patience_s: float = 300.0
    stale_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.group:
            raise ValueError("group is empty; name the Auto Scaling group")
        if not self.patience_s >= 0 or not self.stale_s >= 0:
            raise ValueError("patience_s and stale_s must be 0 or more")


@dataclass(frozen=True, slots=True)
class Group:
    """A group as last described.

    Attributes:
        desired: how many it is to have.
        least: MinSize.
        most: MaxSize.
        members: ids of those that are not leaving.
        bare: those of them that a scale-in might take.
        tags: those that its instances get.
    """

    desired: int
    least: int
    most: int
    members: tuple[str, ...]
    bare: frozenset[str]
    tags: frozenset[tuple[str, str]]


class AsgProvider(AwsPool[Options]):
    """One group. Its memory bridges the time that Describe calls lag behind."""

    name = "asg"

    def __init__(self, pool: str, options: Options, *, stack: str, clock: Callable[[], float] = time.monotonic) -> None:
        """As `AwsPool`; asks nobody anything yet."""
        super().__init__(pool, options, sorted(options.on_demand_prices), stack=stack, clock=clock)
        self._taken: dict[str, uuid.UUID] = {}
        self._ended: set[str] = set()
        self._desired: tuple[float, int] | None = None
        self._first: dict[uuid.UUID, float] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """As the contract says."""
        self._aws.check()
        try:
            group = self._group()
        except ProviderError as e:
            if e.trouble is Trouble.REFUSED:
                raise SettingsError(e.detail) from e
            raise
        if group.least > 0:
            raise SettingsError(
                f"the group {self._options.group} has MinSize {group.least}: set it to 0, min_workers of the pool does "
                "that; AWS refuses to end a drained instance below MinSize."
            )
        needed = {aws.STACK_TAG: self._stack, aws.POOL_TAG: self._pool}
        if not group.tags >= set(needed.items()):
            told = " and ".join(f"{key} = {value}" for key, value in needed.items())
            raise SettingsError(
                f"the group {self._options.group} must give its instances the tags {told}: add them "
                "to the group with PropagateAtLaunch."
            )
        if group.most < 1:
            raise SettingsError(f"the group {self._options.group} has MaxSize 0: set it to the pool's max_workers.")
        self._prices.refresh()

    def launch(self, launch: Launch) -> Sequence[NewInstance]:
        """As the contract says. UNKNOWN while the group's instances have not come: called again, it looks again.

        Raises:
            ProviderError: CAPACITY when none came in time, or MaxSize is reached.
        """
        with self._lock:
            first = self._first.setdefault(launch.id, self._clock())
            known = {x["InstanceId"]: x for x in self._described()}
            taken = {id_: by for id_, x in known.items() if (by := aws.launch_id_of(x)) is not None} | self._taken
            mine = [self._entered(id_, known) for id_, by in taken.items() if by == launch.id]
            if len(mine) >= launch.count:
                self._first.pop(launch.id, None)
                return mine
            group = self._group()
            mine += self._take(launch, group, taken, launch.count - len(mine), known)
            if len(mine) < launch.count and self._grow(launch, group, taken):
                group = self._group()
                mine += self._take(launch, group, taken, launch.count - len(mine), known)
            late = self._clock() - first > self._options.patience_s
            full = self._wanted(group) >= group.most and len(group.members) >= group.most
            if len(mine) < launch.count and not (late or full):
                detail = f"the group {self._options.group} was asked for {launch.count}; {len(mine)} have come so far."
                raise ProviderError(Trouble.UNKNOWN, detail)
            self._first.pop(launch.id, None)
            if late and len(mine) < launch.count:
                self._give_up(group)
            if not mine:
                raise ProviderError(Trouble.CAPACITY, self._why(group))
            return mine

    def list(self) -> Sequence[Found]:
        """As the contract says, by tags: also what has left the group.

        What no launch has taken is left out while one waits for instances: it would be counted beside what is awaited.
        """
        self._prices.refresh()
        listed = [
            Found(self._found(x), self._pool, launch, aws.state_of(x) == "shutting-down", aws.age_s(x))
            for x in self._described(instance_state_name=aws.LIVING)
            for launch in [aws.launch_id_of(x) or self._taken.get(x["InstanceId"])]
        ]
        # A launch that another scaler has seen to the end since is never called here again: it is waited for no longer.
        since = self._clock() - self._options.patience_s - self.stale_s
        waiting = any(first >= since for first in self._first.values())
        return [found for found in listed if found.launch_id or not waiting]

    def end(self, instance_ids: Sequence[str]) -> None:
        """As the contract says: each by itself, the group made smaller by it; what no group knows, EC2 ends."""
        trouble: ProviderError | None = None
        with self._lock:
            for id_ in dict.fromkeys(instance_ids):
                trouble = self._end(id_) or trouble
        if trouble is not None:
            raise trouble

    def _end(self, id_: str) -> ProviderError | None:
        try:
            self._aws.act("autoscaling").terminate_instance_in_auto_scaling_group(
                InstanceId=id_, ShouldDecrementDesiredCapacity=True
            )
        except aws.FAULTS as e:
            if "not found" not in aws.message_of(e).lower():
                return aws.provider_error(e, f"end {id_}")
            return self._end_outside(id_)
        self._left(id_)
        return None

    def _end_outside(self, id_: str) -> ProviderError | None:
        try:
            self._aws.act("ec2").terminate_instances(InstanceIds=[id_])
        except aws.FAULTS as e:
            return None if aws.code_of(e).startswith("InvalidInstanceID") else aws.provider_error(e, f"end {id_}")
        return None

    def _left(self, id_: str) -> None:
        if id_ not in self._ended and self._desired is not None:
            at, total = self._desired
            fresh = self._clock() - at <= self.stale_s
            self._desired = (self._clock(), max(0, total - 1)) if fresh else None
        self._ended.add(id_)

    def _group(self) -> Group:
        name = self._options.group
        found = aws.pages(
            self._aws.ask("autoscaling"),
            "describe_auto_scaling_groups",
            "AutoScalingGroups",
            f"ask for the group {name}",
            AutoScalingGroupNames=[name],
        )
        group = next((g for g in found if g["AutoScalingGroupName"] == name), None)
        if group is None:
            here = self._aws.region
            raise ProviderError(Trouble.REFUSED, f"{here} has no Auto Scaling group {name}: name one of this region.")
        staying = [
            i
            for i in group.get("Instances", [])
            if not i.get("LifecycleState", "").startswith(_GONE) and i["InstanceId"] not in self._ended
        ]
        return Group(
            desired=group["DesiredCapacity"],
            least=group["MinSize"],
            most=group["MaxSize"],
            members=tuple(i["InstanceId"] for i in staying),
            bare=frozenset(i["InstanceId"] for i in staying if not i.get("ProtectedFromScaleIn")),
            tags=frozenset((t["Key"], t["Value"]) for t in group.get("Tags", []) if t.get("PropagateAtLaunch")),
        )

    def _wanted(self, group: Group) -> int:
        """The group's desired capacity: what was set last, while Describe may not show it yet."""
        if self._desired is not None and self._clock() - self._desired[0] <= self.stale_s:
            return self._desired[1]
        return group.desired

    def _take(
        self,
        launch: Launch,
        group: Group,
        taken: dict[str, uuid.UUID],
        missing: int,
        known: dict[str, dict[str, Any]],
    ) -> list[NewInstance]:
        """Write a launch on instances that no other has taken."""
        ids = [id_ for id_ in group.members if id_ not in taken][: max(0, missing)]
        if not ids:
            return []
        try:
            self._aws.act("ec2").create_tags(Resources=ids, Tags=aws.tags(self._stack, self._pool, launch.id))
            if bare := [id_ for id_ in ids if id_ in group.bare]:
                self._aws.act("autoscaling").set_instance_protection(
                    InstanceIds=bare, AutoScalingGroupName=self._options.group, ProtectedFromScaleIn=True
                )
        except aws.FAULTS as e:
            raise aws.provider_error(e, f"mark {', '.join(ids)}") from e
        for id_ in ids:
            self._taken[id_] = taken[id_] = launch.id
        if any(id_ not in known for id_ in ids):
            try:
                known |= {x["InstanceId"]: x for x in aws.instances(self._aws, {"instance-id": ids})}
            except ProviderError as e:
                log.warning("what %s cost is not known: %s", ", ".join(ids), e)
        return [self._entered(id_, known) for id_ in ids]

    def _grow(self, launch: Launch, group: Group, taken: dict[str, uuid.UUID]) -> bool:
        """Set the total that this launch needs: never more than the ledger allows or MaxSize, never less than it is."""
        others = sum(1 for id_ in group.members if taken.get(id_, launch.id) != launch.id)
        total = min(launch.total, others + launch.count, group.most)
        if total <= self._wanted(group):
            return False
        self._set(total)
        return True

    def _give_up(self, group: Group) -> None:
        """What has not come is not wanted any more: it would come when nobody counts on it."""
        if self._wanted(group) > len(group.members):
            log.warning("the group %s brought %d of %d", self._options.group, len(group.members), self._wanted(group))
            self._set(max(group.least, len(group.members)))

    def _set(self, total: int) -> None:
        try:
            self._aws.act("autoscaling").set_desired_capacity(
                AutoScalingGroupName=self._options.group, DesiredCapacity=total, HonorCooldown=False
            )
        except aws.FAULTS as e:
            raise aws.provider_error(e, f"set the group {self._options.group} to {total}") from e
        self._desired = (self._clock(), total)

    def _why(self, group: Group) -> str:
        if len(group.members) >= group.most:
            return f"the group {self._options.group} is at its MaxSize, {group.most}: raise it, or lower max_workers."
        return f"the group {self._options.group} has brought nothing; its activity history says why."

    def _entered(self, id_: str, known: dict[str, dict[str, Any]]) -> NewInstance:
        return self._found(known[id_]) if id_ in known else NewInstance(id_)
