"""`batchline costs --aws`: Cost Explorer's answers, by day and pool, and its refusals in words that help."""

from __future__ import annotations

import json
from datetime import date

import httpx
import pytest
from botocore.stub import Stubber
from moto.server import ThreadedMotoServer

from autoscaler import cost_explorer
from autoscaler.cost_explorer import DayCost, Forecast, daily, forecast
from autoscaler.providers.aws import Aws
from batchline.errors import BatchlineError, SettingsError

FIRST, LAST = date(2026, 11, 20), date(2026, 11, 22)


def day(start, *groups):
    return {
        "TimePeriod": {"Start": start, "End": start},
        "Total": {},
        "Estimated": False,
        "Groups": [
            {"Keys": [f"batchline:pool${pool}"], "Metrics": {"UnblendedCost": {"Amount": amount, "Unit": "USD"}}}
            for pool, amount in groups
        ],
    }


DAYS = [day("2026-11-20", ("cpu", "1.25"), ("", "0.1")), day("2026-11-21", ("cpu", "2.5"))]
TOLD = [
    DayCost("2026-11-20", "cpu", 1.25, "USD"),
    DayCost("2026-11-20", "", 0.1, "USD"),
    DayCost("2026-11-21", "cpu", 2.5, "USD"),
]


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def moto(monkeypatch):
    """A server that answers what it is told to, and the same question alike."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield f"http://{host}:{port}"
    server.stop()


def results(moto, *pages):
    url = f"{moto}/moto-api/static/ce/cost-and-usage-results"
    body = {"results": [{"ResultsByTime": page, "DimensionValueAttributes": []} for page in pages]}
    assert httpx.post(url, json=body).status_code == 201


def test_what_was_billed_by_day_and_pool(moto):
    """What has no pool's tag is told apart; an account that was billed nothing tells nothing."""
    results(moto, DAYS)
    assert daily(Aws(cost_explorer.REGION), "mine", FIRST, LAST) == TOLD
    results(moto, [])
    assert daily(Aws(cost_explorer.REGION), "another", FIRST, LAST) == []


def stubbed():
    aws = Aws(cost_explorer.REGION)
    return aws, Stubber(aws.ask("ce"))


FILTER = {"Tags": {"Key": "batchline:stack", "Values": ["mine"], "MatchOptions": ["EQUALS"]}}
PERIOD = {"Start": "2026-11-20", "End": "2026-11-22"}


def test_pages_are_followed_and_only_our_stack_is_asked_for():
    """By its tag."""
    aws, stub = stubbed()
    asked = {
        "TimePeriod": PERIOD,
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost"],
        "Filter": FILTER,
        "GroupBy": [{"Type": "TAG", "Key": "batchline:pool"}],
    }
    stub.add_response("get_cost_and_usage", {"ResultsByTime": DAYS[:1], "NextPageToken": "more"}, asked)
    stub.add_response("get_cost_and_usage", {"ResultsByTime": DAYS[1:]}, asked | {"NextPageToken": "more"})
    with stub:
        assert daily(aws, "mine", FIRST, LAST) == TOLD


def test_a_forecast_or_none_while_there_is_too_little_history():
    """AWS wants some days of data first."""
    aws, stub = stubbed()
    asked = {"TimePeriod": PERIOD, "Granularity": "DAILY", "Metric": "UNBLENDED_COST", "Filter": FILTER}
    stub.add_response("get_cost_forecast", {"Total": {"Amount": "31.5", "Unit": "USD"}}, asked)
    stub.add_client_error("get_cost_forecast", "DataUnavailableException", "insufficient", 400)
    with stub:
        assert forecast(aws, "mine", FIRST, LAST) == Forecast("2026-11-20", "2026-11-22", 31.5, "USD")
        assert forecast(aws, "mine", FIRST, LAST) is None


@pytest.mark.parametrize("call", [daily, forecast])
def test_a_role_that_may_not_ask_is_told_what_it_needs(call):
    """By the names of the permissions; other errors say what AWS said."""
    aws, stub = stubbed()
    name = "get_cost_and_usage" if call is daily else "get_cost_forecast"
    stub.add_client_error(name, "AccessDeniedException", "User: x is not authorized", 400)
    stub.add_client_error(name, "LimitExceededException", "too many", 400)
    with stub:
        with pytest.raises(SettingsError, match="ce:GetCostAndUsage"):
            call(aws, "mine", FIRST, LAST)
        with pytest.raises(BatchlineError, match="too many"):
            call(aws, "mine", FIRST, LAST)


def test_the_command_tells_days_and_forecast(moto, monkeypatch, capsys):
    """As lines, or as one JSON document; the forecast is that of the rest of the month."""
    monkeypatch.setattr(cost_explorer, "forecast", lambda _aws, _stack, since, until: Forecast(str(since), str(until), 9, "USD"))  # fmt: skip # noqa: E501
    results(moto, DAYS)
    assert cost_explorer.main(["--from", "2026-11-20", "--to", "2026-11-22"]) == 0
    out = capsys.readouterr().out
    assert "2026-11-20\tcpu\t1.2500 USD" in out
    assert "forecast\t9.0000 USD" in out
    assert cost_explorer.main(["--from", "2026-11-20", "--to", "2026-11-22T00:00:00+00:00", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["stack"], len(told["days"]), told["forecast"]["cost"]) == ("batchline", 3, 9)
    with pytest.raises(SystemExit):
        cost_explorer.main(["--from", "2026-11-22", "--to", "2026-11-22"])
