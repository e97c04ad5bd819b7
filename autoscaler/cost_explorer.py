"""`batchline costs --aws`: what AWS's Cost Explorer has billed under our tags, day by day, and what it expects.

Cost Explorer is hours behind and knows what our ledger does not: discounts, disks, traffic. It sees only instances of
accounts where `batchline:stack` and `batchline:pool` are activated as cost allocation tags. Each question costs a cent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from autoscaler import config as configuration
from autoscaler.providers.aws import DENIED_CODES, FAULTS, POOL_TAG, STACK_TAG, Aws, code_of, provider_error
from batchline import settings
from batchline.errors import BatchlineError, SettingsError

REGION = "us-east-1"
"""Cost Explorer lives there, whatever region it tells of."""
_DAYS = 7
_NOT_YET = "DataUnavailableException"
_METRIC = "UnblendedCost"


@dataclass(frozen=True, slots=True)
class DayCost:
    """What one pool cost on one day (UTC); `pool` is empty for what has no pool's tag."""

    day: str
    pool: str
    cost: float
    unit: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What AWS expects from `since` to before `until`."""

    since: str
    until: str
    cost: float
    unit: str


def daily(aws: Aws, stack: str, since: date, until: date) -> list[DayCost]:
    """Billed costs of a stack by day and pool.

    Args:
        aws: of the region `REGION`.
        stack: the value of the tag `batchline:stack`.
        since: the first day.
        until: the day after the last one.

    Raises:
        SettingsError: the role may not ask.
        ProviderError: AWS does not tell.
    """
    asked: dict[str, Any] = {
        "TimePeriod": _period(since, until),
        "Granularity": "DAILY",
        "Metrics": [_METRIC],
        "Filter": _ours(stack),
        "GroupBy": [{"Type": "TAG", "Key": POOL_TAG}],
    }
    found: list[DayCost] = []
    while True:
        page = _ask(aws, "get_cost_and_usage", asked)
        for day in page.get("ResultsByTime", []):
            for group in day.get("Groups", []):
                amount = group["Metrics"][_METRIC]
                pool = str(group["Keys"][0]).partition("$")[2]
                found.append(DayCost(day["TimePeriod"]["Start"], pool, float(amount["Amount"]), amount["Unit"]))
        if not page.get("NextPageToken"):
            return found
        asked["NextPageToken"] = page["NextPageToken"]


def forecast(aws: Aws, stack: str, since: date, until: date) -> Forecast | None:
    """What AWS expects a stack to cost; None while it has too little history to tell. Raises as `daily`."""
    asked = {
        "TimePeriod": _period(since, until),
        "Granularity": "DAILY",
        "Metric": "UNBLENDED_COST",
        "Filter": _ours(stack),
    }
    told = _ask(aws, "get_cost_forecast", asked)
    if told is None:
        return None
    return Forecast(since.isoformat(), until.isoformat(), float(told["Total"]["Amount"]), told["Total"]["Unit"])


def _ask(aws: Aws, call: str, asked: dict[str, Any]) -> Any:
    try:
        return getattr(aws.ask("ce"), call)(**asked)
    except FAULTS as e:
        if code_of(e) == _NOT_YET and call == "get_cost_forecast":
            return None
        if code_of(e) in DENIED_CODES:
            raise SettingsError(
                f"AWS does not let this role read costs ({code_of(e)}): give it ce:GetCostAndUsage and"
                " ce:GetCostForecast, and see that Cost Explorer is switched on for the account."
            ) from e
        raise provider_error(e, "read costs") from e


def _period(since: date, until: date) -> dict[str, str]:
    return {"Start": since.isoformat(), "End": until.isoformat()}


def _ours(stack: str) -> dict[str, Any]:
    return {"Tags": {"Key": STACK_TAG, "Values": [stack], "MatchOptions": ["EQUALS"]}}


def main(arguments: Sequence[str]) -> int:
    """Tell it; see `batchline costs --help`."""
    parser = argparse.ArgumentParser(prog="batchline costs --aws")
    parser.add_argument("--from", dest="since", type=_day, help="the first day")
    parser.add_argument("--to", dest="until", type=_day, help="the day after the last one")
    parser.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args(arguments)
    today = datetime.now(UTC).date()
    until = given.until or today + timedelta(days=1)
    since = given.since or until - timedelta(days=_DAYS)
    if since >= until:
        parser.error("--from must be before --to")
    path = settings.load(needs=()).autoscaler
    stack = (configuration.load(Path(path)) if path else configuration.ADVICE).stack
    aws = Aws(REGION)
    aws.check()
    days = daily(aws, stack, since, until)
    month = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    expected = forecast(aws, stack, today, month)
    if given.as_json:
        told = {"stack": stack, "days": [asdict(d) for d in days], "forecast": asdict(expected) if expected else None}
        print(json.dumps(told))
        return 0
    for d in days:
        print(f"{d.day}\t{d.pool or '(no pool)'}\t{d.cost:.4f} {d.unit}")
    if not any(d.cost for d in days):
        note = f"nothing is billed under the tag {STACK_TAG}={stack}; is it activated as a cost allocation tag?"
        print(note, file=sys.stderr)
    if expected is None:
        print("AWS has too little history for a forecast", file=sys.stderr)
    else:
        print(f"{expected.since} to {expected.until}\tforecast\t{expected.cost:.4f} {expected.unit}")
    return 0


def _day(text: str) -> date:
    return datetime.fromisoformat(text).date()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BatchlineError as e:
        sys.exit(f"costs: {e.detail}")
