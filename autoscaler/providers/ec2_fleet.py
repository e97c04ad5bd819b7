"""CreateFleet, type `instant`: what is asked for, and what the answer says. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from autoscaler.providers import aws
from autoscaler.providers.ec2_options import Options
from batchline.store.instance_contract import Launch, NewInstance

NOT_OFFERED_CODES = frozenset({"Unsupported", "InvalidFleetConfiguration"})
"""In an error of one pool: this type is not sold in this zone."""
SPOT, ON_DEMAND = "spot", "on_demand"
_LIFECYCLES = {SPOT: "spot", ON_DEMAND: "on-demand"}


class Pool(NamedTuple):
    """What capacity is sold by."""

    kind: str
    place: str
    """A subnet or a zone, as the settings name it."""
    market: str


@dataclass(frozen=True, slots=True)
class Brought:
    """One instance of an answer; its zone is empty where the answer does not say."""

    id: str
    kind: str
    place: str
    zone: str
    market: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one fleet brought, and why not more.

    Attributes:
        brought: instances.
        short: pools that have no capacity now.
        unsold: pools that are not offered at all.
        refused: (code, message) of what is no matter of capacity.
    """

    brought: tuple[Brought, ...]
    short: tuple[Pool, ...] = ()
    unsold: tuple[Pool, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Course:
    """The fleets that one launch has asked for, in order. Repeated, a launch asks for the very same again."""

    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def token(launch_id: uuid.UUID, stage: int) -> str:
    """The ClientToken of a launch's nth fleet; that of the first is the launch's id."""
    return str(launch_id) if stage == 0 else str(uuid.uuid5(launch_id, f"fleet {stage}"))


def on_demand_share(launch: Launch, options: Options) -> int:
    """How many of a launch are on demand by plan: what fills up the base."""
    if not options.spot:
        return launch.count
    return max(0, min(launch.count, options.on_demand_base - (launch.total - launch.count)))


def request(
    options: Options,
    template: str,
    pools: Sequence[Pool],
    spot: int,
    on_demand: int,
    *,
    tagged: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """The arguments of CreateFleet, without the token.

    Args:
        options: whose version of the template.
        template: id or name.
        pools: where to look; each (type, place) is given once, whatever its market.
        spot: instances.
        on_demand: instances.
        tagged: tags of the fleet, its instances and their volumes.
    """
    place = "SubnetId" if options.subnets else "AvailabilityZone"
    pairs = dict.fromkeys((pool.kind, pool.place) for pool in pools)
    own = {"LaunchTemplateId" if template.startswith("lt-") else "LaunchTemplateName": template}
    return {
        "Type": "instant",
        "LaunchTemplateConfigs": [
            {
                "LaunchTemplateSpecification": {**own, "Version": options.version},
                "Overrides": [{"InstanceType": kind, place: where} for kind, where in pairs],
            }
        ],
        "TargetCapacitySpecification": {
            "TotalTargetCapacity": spot + on_demand,
            "SpotTargetCapacity": spot,
            "OnDemandTargetCapacity": on_demand,
            "DefaultTargetCapacityType": "spot" if spot else "on-demand",
        },
        "SpotOptions": {"AllocationStrategy": "price-capacity-optimized", "InstanceInterruptionBehavior": "terminate"},
        "OnDemandOptions": {"AllocationStrategy": "lowest-price"},
        "TagSpecifications": [{"ResourceType": kind, "Tags": tagged} for kind in ("fleet", "instance", "volume")],
    }


def read(answer: Mapping[str, Any], options: Options) -> Answer:
    """An answer of CreateFleet; places are told as the options name them."""
    place = "SubnetId" if options.subnets else "AvailabilityZone"
    short: list[Pool] = []
    unsold: list[Pool] = []
    refused: list[tuple[str, str]] = []
    for error in answer.get("Errors", []):
        code = str(error.get("ErrorCode", ""))
        overrides = error.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
        pool = Pool(overrides.get("InstanceType", ""), overrides.get(place, ""), _market(error))
        if code in NOT_OFFERED_CODES:
            unsold.append(pool)
        elif code in aws.CAPACITY_CODES or code in aws.THROTTLING_CODES:
            short.append(pool)
        else:
            refused.append((code, str(error.get("ErrorMessage", ""))))
    brought = [one for group in answer.get("Instances", []) for one in _brought(group, place)]
    return Answer(tuple(brought), tuple(short), tuple(unsold), tuple(refused))


def _brought(group: Mapping[str, Any], place: str) -> list[Brought]:
    overrides = group.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
    kind = str(group.get("InstanceType") or overrides.get("InstanceType", ""))
    zone = str(group.get("AvailabilityZone") or overrides.get("AvailabilityZone", ""))
    where = str(overrides.get(place) or group.get(place, ""))
    return [Brought(str(id_), kind, where, zone, _market(group)) for id_ in group.get("InstanceIds", [])]


def _market(entry: Mapping[str, Any]) -> str:
    return ON_DEMAND if entry.get("Lifecycle") == _LIFECYCLES[ON_DEMAND] else SPOT


def found(described: Mapping[str, Any], price: float, on_demand: float) -> NewInstance:
    """An instance of DescribeInstances."""
    return NewInstance(
        id=described["InstanceId"],
        kind=described.get("InstanceType", ""),
        zone=described.get("Placement", {}).get("AvailabilityZone", ""),
        market=market_of(described),
        price_per_hour=price,
        on_demand_per_hour=on_demand,
    )


def market_of(described: Mapping[str, Any]) -> str:
    """`spot` or `on_demand`, of an instance of DescribeInstances."""
    return SPOT if described.get("InstanceLifecycle") == "spot" else ON_DEMAND
