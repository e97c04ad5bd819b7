"""What the providers on EC2 have in common: one pool's instances by their tags, and what those cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from autoscaler.providers import aws, ec2_fleet
from autoscaler.providers.prices import Prices
from batchline.store.instance_contract import NewInstance


class AwsOptions(Protocol):
    """What both tables of options have."""

    @property
    def region(self) -> str: ...
    @property
    def endpoint_url(self) -> str: ...
    @property
    def on_demand_prices(self) -> Mapping[str, float]: ...
    @property
    def stale_s(self) -> float: ...


OptionsT = TypeVar("OptionsT", bound=AwsOptions)


class AwsPool(Generic[OptionsT]):
    """A pool of one stack in one region."""

    def __init__(
        self, pool: str, options: OptionsT, kinds: Sequence[str], *, stack: str, clock: Callable[[], float]
    ) -> None:
        """Args:
        pool: whose workers.
        options: as configured.
        kinds: instance types whose prices are read.
        stack: the tag `batchline:stack`.
        clock: seconds.
        """
        self.stale_s = options.stale_s
        self._pool, self._options, self._stack, self._clock = pool, options, stack, clock
        self._aws = aws.Aws(options.region, options.endpoint_url)
        self._prices = Prices(self._aws, kinds, options.on_demand_prices, clock=clock)

    def _described(self, **more: Sequence[str]) -> list[dict[str, Any]]:
        """Our instances, as AWS describes them; `more` narrows it, by filters with `_` for `-`.

        Raises:
            ProviderError: they cannot be listed.
        """
        tagged = {f"tag:{aws.STACK_TAG}": [self._stack], f"tag:{aws.POOL_TAG}": [self._pool]}
        return aws.instances(self._aws, tagged | {name.replace("_", "-"): found for name, found in more.items()})

    def _found(self, described: Mapping[str, Any]) -> NewInstance:
        kind, market = described.get("InstanceType", ""), ec2_fleet.market_of(described)
        zone = described.get("Placement", {}).get("AvailabilityZone", "")
        return ec2_fleet.found(described, self._prices.of(kind, zone, market), self._prices.on_demand(kind))
