"""CloudWatch, if it is configured: the numbers of each pool once a minute, from a thread that nobody waits for."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from autoscaler.beside import Beside
from autoscaler.providers.aws import FAULTS, Aws, provider_error
from autoscaler.providers.contract import ProviderError
from autoscaler.signals import Decision, Signals
from batchline.errors import SettingsError

log = logging.getLogger("autoscaler")

_NAMESPACE = re.compile(r"[A-Za-z0-9._/#:-]{1,255}")
_AT_ONCE = 1000
"""Metrics of one call; AWS takes no more."""
_JOIN_S = 5.0


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [cloudwatch]."""

    namespace: str = "Batchline"
    region: str = ""
    """Empty: AWS_REGION or the profile's."""
    endpoint_url: str = ""
    every_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    """CloudWatch keeps a value a minute; each call costs."""


Numbers = dict[str, tuple[float, str]]
"""(value, unit) by metric name."""


class CloudWatch(Beside):
    """Sends the latest numbers every so often and at the end; what cannot be sent is logged and dropped."""

    def __init__(self, options: Options, *, stack: str) -> None:
        """Nothing is sent before `start`.

        Args:
            options: where to.
            stack: the dimension that tells installations apart; `Pool` is the other.
        """
        aws = Aws(options.region, options.endpoint_url)
        super().__init__("cloudwatch", aws, needs="cloudwatch:PutMetricData", join_s=_JOIN_S)
        self._options = options
        self._stack = stack
        self._lock = threading.Lock()
        self._latest: dict[str, Numbers] = {}

    def offer(self, pool: str, seen: Signals, decision: Decision) -> None:
        """Keep the numbers of a pool until it is time; never waits."""
        with self._lock:
            self._latest[pool] = numbers_of(seen, decision)

    def _try(self) -> None:
        """Send one number."""
        if not _NAMESPACE.fullmatch(self._options.namespace) or self._options.namespace.startswith("AWS/"):
            raise SettingsError(
                f"namespace is {self._options.namespace!r}; use up to 255 letters, digits and ._/#:- ,"
                " and do not begin with AWS/"
            )
        self._put([{"MetricName": "Up", "Value": 1.0, "Unit": "Count", "Dimensions": self._dimensions()}])

    def _run(self) -> None:
        while not self._closed.wait(self._options.every_s):
            self._send()
        self._send()

    def _send(self) -> None:
        with self._lock:
            latest, self._latest = self._latest, {}
        data = [
            {"MetricName": name, "Value": value, "Unit": unit, "Dimensions": self._dimensions(pool)}
            for pool, numbers in latest.items()
            for name, (value, unit) in numbers.items()
        ]
        try:
            for first in range(0, len(data), _AT_ONCE):
                self._put(data[first : first + _AT_ONCE])
        except ProviderError as e:
            log.warning("cloudwatch not told", extra={"error": e.detail})
        except Exception:
            log.exception("cloudwatch not told")

    def _dimensions(self, pool: str = "") -> list[dict[str, str]]:
        found: Mapping[str, str] = {"Stack": self._stack, "Pool": pool}
        return [{"Name": name, "Value": value} for name, value in found.items() if value]

    def _put(self, data: list[dict[str, Any]]) -> None:
        try:
            self._aws.ask("cloudwatch").put_metric_data(Namespace=self._options.namespace, MetricData=data)
        except FAULTS as e:
            raise provider_error(e, "put metrics") from e


def numbers_of(seen: Signals, decision: Decision) -> Numbers:
    """What is told of one pool."""
    return {
        "QueuedRows": (seen.queued_rows, "Count"),
        "RunningRows": (seen.running_rows, "Count"),
        "OldestAge": (seen.oldest_age_s, "Seconds"),
        "RowsPerSecondAndWorker": (seen.rows_per_s, "Count/Second"),
        "Workers": (seen.workers, "Count"),
        "PendingWorkers": (seen.pending, "Count"),
        "DrainingWorkers": (seen.draining, "Count"),
        "DesiredWorkers": (decision.desired, "Count"),
    }
