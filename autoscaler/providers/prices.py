"""What instances cost an hour: spot from AWS's price history, kept for a while; on demand from the settings."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from autoscaler.providers import aws
from autoscaler.providers.contract import ProviderError

log = logging.getLogger("autoscaler.prices")

KEPT_S = 3600.0
AGAIN_S = 300.0
"""How soon it is asked again after AWS did not tell."""
PRODUCTS = ["Linux/UNIX", "Linux/UNIX (Amazon VPC)"]


@dataclass(frozen=True, slots=True)
class SpotPrice:
    """What an hour of a type cost in a zone from a moment on, in dollars."""

    kind: str
    zone: str
    at: datetime
    price: float


def spot_history(region: aws.Aws, kinds: Iterable[str], since: datetime | None = None) -> list[SpotPrice]:
    """Spot prices of types in all zones of a region, oldest first.

    Args:
        region: where.
        kinds: instance types.
        since: absent: only those that hold now. The price that held at `since` is told too. AWS keeps 90 days.

    Raises:
        ProviderError: AWS does not tell.
    """
    items = aws.pages(
        region.ask("ec2"),
        "describe_spot_price_history",
        "SpotPriceHistory",
        "read spot prices",
        InstanceTypes=sorted(kinds),
        ProductDescriptions=PRODUCTS,
        StartTime=since or datetime.now(UTC),
    )
    return sorted((_price(item) for item in items), key=lambda p: p.at)


def _price(item: Mapping[str, Any]) -> SpotPrice:
    return SpotPrice(item["InstanceType"], item["AvailabilityZone"], item["Timestamp"], float(item["SpotPrice"]))


class Prices:
    """Prices of one pool's types. Never raises: what AWS does not tell is taken for the on-demand price."""

    def __init__(
        self,
        region: aws.Aws,
        kinds: Sequence[str],
        on_demand: Mapping[str, float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        region: where.
        kinds: instance types.
        on_demand: dollars an hour by type.
        clock: seconds.
        """
        self._region = region
        self._kinds = tuple(kinds)
        self._on_demand = on_demand
        self._clock = clock
        self._spot: dict[tuple[str, str], float] = {}
        self._due = float("-inf")
        self._lock = threading.Lock()

    def on_demand(self, kind: str) -> float:
        """Dollars an hour; 0 when the settings do not say."""
        return self._on_demand.get(kind, 0.0)

    def of(self, kind: str, zone: str, market: str) -> float:
        """Dollars an hour of a type in a zone as last read; `market` is `spot` or `on_demand`."""
        if market != "spot":
            return self.on_demand(kind)
        return self._spot.get((kind, zone), self.on_demand(kind))

    def refresh(self) -> None:
        """Read spot prices again when it is time."""
        with self._lock:
            if not self._kinds or self._clock() < self._due:
                return
            self._due = self._clock() + AGAIN_S
            try:
                for price in spot_history(self._region, self._kinds):
                    self._spot[price.kind, price.zone] = price.price
            except ProviderError as e:
                log.warning("spot prices of %s are not known: %s", ", ".join(self._kinds), e)
                return
            self._due = self._clock() + KEPT_S
