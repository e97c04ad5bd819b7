"""The table `[pools.NAME.ec2-spot]` of the autoscaler's file."""

from __future__ import annotations

import msgspec

from autoscaler.providers.user_data import Worker

MOST_POOLS = 300
"""Overrides that CreateFleet takes."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a pool's instances are launched.

    Attributes:
        types: instance types; every one must be able to run the pool's models. More types: fewer interruptions.
        region: empty: AWS_REGION.
        endpoint_url: an EC2 of one's own; empty is AWS.
        subnets: one or several of a zone; without them `zones`, whose default subnets are used.
        zones: availability zones.
        launch_template: id or name of one's own; it holds image, role, network and user data. Without it one is made of
            the fields below.
        launch_template_version: a number, `$Default` or `$Latest`.
        image: ami-… or resolve:ssm:PARAMETER.
        instance_profile: name or ARN; the role needs the worker's permissions (docs/autoscaler.md).
        security_groups: ids.
        key_name: for ssh; mostly none.
        disk_gb: of the root volume, gp3 and encrypted; 0: as the image says.
        disk_name: the image's root device.
        worker: what user data installs and starts, where `launch_template` is empty.
        spot: False: only on demand.
        on_demand_base: so many of the pool are on demand.
        on_demand_fallback: what no spot pool has is bought on demand.
        on_demand_prices: dollars an hour by type; savings are counted against it, budgets need it.
        rest_s: for how long a (type, zone) without capacity is left alone.
        stale_s: for how long DescribeInstances may not show what has been done.
    """

    types: tuple[str, ...]
    region: str = ""
    endpoint_url: str = ""
    subnets: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    launch_template: str = ""
    launch_template_version: str = "$Default"
    image: str = ""
    instance_profile: str = ""
    security_groups: tuple[str, ...] = ()
    key_name: str = ""
    disk_gb: int = 0
    disk_name: str = "/dev/xvda"
    worker: Worker = Worker()
    spot: bool = True
    on_demand_base: int = 0
    on_demand_fallback: bool = False
    on_demand_prices: dict[str, float] = {}
    rest_s: float = 180.0
    stale_s: float = 60.0

    def __post_init__(self) -> None:
        for wrong, why in (
            (not self.types, "types is empty; name at least one instance type"),
            (bool(self.subnets) == bool(self.zones), "give either subnets or zones"),
            (bool(self.launch_template) == bool(self.image), "give either launch_template or image"),
            (len(self.types) * len(self.places) > MOST_POOLS, f"types times subnets must be at most {MOST_POOLS}"),
            (self.on_demand_base < 0, "on_demand_base must be 0 or more"),
            (self.disk_gb < 0, "disk_gb must be 0 or more"),
            (not self.rest_s >= 0 or not self.stale_s >= 0, "rest_s and stale_s must be 0 or more"),
            (not all(price > 0 for price in self.on_demand_prices.values()), "on_demand_prices must be above 0"),
        ):
            if wrong:
                raise ValueError(why)

    @property
    def version(self) -> str:
        """Of the template that is launched: of one of ours the first, whatever others have added to it since."""
        return self.launch_template_version if self.launch_template else "1"

    @property
    def places(self) -> tuple[str, ...]:
        """Subnets or zones, whichever is given."""
        return self.subnets or self.zones
