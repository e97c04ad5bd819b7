"""What the autoscaler tells of itself: Prometheus metrics, CloudWatch against moto, and what a decision keeps."""

from __future__ import annotations

import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from system import until

from api.scaling import LIMITS
from autoscaler.cloudwatch import CloudWatch, Options, numbers_of
from autoscaler.publish import ALLOWED, Publisher, kept
from autoscaler.signals import Decision, Limits, Signals
from batchline.errors import SettingsError
from batchline.metrics import REGISTRY

SEEN = Signals(1e9, 70.0, 20.0, 5.0, 4.0, workers=2, pending=1, draining=1, rows_per_s=9.0)
REGION = "eu-central-1"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")


@pytest.fixture
def aws():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"batchline_autoscaler_{name}", labels)


def test_metrics_say_what_is_seen_wanted_and_done() -> None:
    """Gauges at every tick; of decisions the leader's count, by what they change."""
    publisher = Publisher()
    publisher.leads(True)
    publisher.looked("m1", SEEN, Decision(5, "much"), leads=True)
    publisher.looked("m1", SEEN, Decision(5, "much"), leads=True)
    publisher.looked("m1", SEEN, Decision(4, "less"), leads=True)
    publisher.looked("m1", SEEN, Decision(9, "who asks"), leads=False)
    assert value("leader") == 1
    gauges = {"desired_workers": 9, "live_workers": 2, "pending_workers": 1, "draining_workers": 1}
    gauges |= {"queued_rows": 70, "running_rows": 5, "oldest_age_seconds": 4}
    assert {name: value(name, pool="m1") for name in gauges} == gauges
    counts = {change: value("decisions_total", pool="m1", change=change) for change in ("up", "down", "same")}
    assert counts == {"up": 1, "down": 1, "same": 1}
    publisher.launched("m1", "local", 3)
    publisher.failed(pool="m1", provider="local", call="launch", trouble="capacity")
    assert value("launched_total", pool="m1", provider="local") == 3
    assert value("provider_errors_total", pool="m1", provider="local", call="launch", trouble="capacity") == 1


def test_the_metrics_of_the_docs_exist() -> None:
    """Every name in docs/ is one that some process serves."""
    text = "".join(path.read_text() for path in (Path(__file__).parents[2] / "docs").glob("*.md"))
    named = set(re.findall(r"`(batchline_\w+)", text))
    known = {family.name + ("_total" if family.type == "counter" else "") for family in REGISTRY.collect()}
    assert named
    assert named <= known


def test_a_decision_keeps_its_signals_and_limits() -> None:
    """What the API shows as limits is what is kept as such; where there is none, nothing."""
    assert ALLOWED == LIMITS
    found = kept(SEEN, Limits(1, 7, budget_per_day=2.5))
    assert (found["queued_rows"], found["rows_per_s"], found["max_workers"], found["enabled"]) == (70, 9, 7, 1)
    assert (found["budget_per_day"], "max_launches_per_hour" in found) == (2.5, False)
    assert all(isinstance(number, float) for number in found.values())


def test_cloudwatch_is_told(aws: str) -> None:
    """Every number of a pool under its stack and name; what came last before the end is sent too."""
    channel = CloudWatch(Options("Ours", REGION, aws, 1.0), stack="blue")
    channel.check()
    channel.start()
    Publisher(channel).looked("cpu", SEEN, Decision(5, ""), leads=True)
    client: Any = boto3.client("cloudwatch", region_name=REGION, endpoint_url=aws)
    until(lambda: len(client.list_metrics(Namespace="Ours")["Metrics"]) > 1)
    Publisher(channel).looked("gpu", SEEN, Decision(5, ""), leads=True)
    channel.close()
    found = client.list_metrics(Namespace="Ours")["Metrics"]
    told = {(m["MetricName"], tuple(sorted((d["Name"], d["Value"]) for d in m["Dimensions"]))) for m in found}
    wanted = {
        (name, (("Pool", pool), ("Stack", "blue")))
        for name in numbers_of(SEEN, Decision(5, ""))
        for pool in ("cpu", "gpu")
    }
    assert told == wanted | {("Up", (("Stack", "blue"),))}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options("AWS/EC2", REGION), "do not begin with AWS/"),
        (Options("ours and theirs", REGION), "use up to 255 letters"),
        (Options(region="eu-nowhere-9"), "no region 'eu-nowhere-9'"),
    ],
)
def test_bad_settings_of_cloudwatch_are_refused(options: Options, said: str) -> None:
    """In words, before anything is sent."""
    with pytest.raises(SettingsError, match=said):
        CloudWatch(options, stack="blue").check()


@pytest.fixture
def refusing():
    """An AWS that denies everything, and counts how often."""

    class Handler(BaseHTTPRequestHandler):
        asked = 0

        def do_POST(self) -> None:
            type(self).asked += 1
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b'{"__type":"AccessDenied","message":"no","Error":{"Code":"AccessDenied"}}'
            self.send_response(403)
            self.send_header("x-amzn-query-error", "AccessDenied;Sender")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_no_permission_is_told_at_start(refusing) -> None:
    """With the permission that is missing."""
    with pytest.raises(SettingsError, match="cloudwatch:PutMetricData"):
        CloudWatch(Options("Ours", REGION, refusing[0]), stack="blue").check()


def test_a_failing_cloudwatch_keeps_nobody(refusing) -> None:
    """Later on it is logged and dropped: the loop goes on, and so does the thread."""
    channel = CloudWatch(Options("Ours", REGION, refusing[0], 1.0), stack="blue")
    channel.start()
    began = time.monotonic()
    for _ in range(100):
        Publisher(channel).looked("cpu", SEEN, Decision(5, ""), leads=True)
    assert time.monotonic() - began < 1.0
    until(lambda: refusing[1].asked >= 1)
    before = refusing[1].asked
    channel.offer("cpu", SEEN, Decision(5, ""))
    until(lambda: refusing[1].asked > before)
    channel.close()
