"""Spot interruptions by way of EventBridge and SQS: heard by the leader, obeyed by the ledger, and by real workers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3.session
import pytest
import small_models
from moto.server import ThreadedMotoServer
from object_store import CREDENTIALS
from worker_process import PRODUCT, a_worker, until
from worker_rig import Rig

from autoscaler import config as configuration
from autoscaler import parts
from autoscaler.config import ADVICE
from autoscaler.interruptions import Interruptions, Options
from autoscaler.loop import Autoscaler
from autoscaler.providers.contract import ProviderError
from batchline.clock import SystemClock
from batchline.errors import SettingsError, StoreUnavailableError
from batchline.store import Store
from batchline.store.instance_contract import InstanceStatus, NewInstance
from batchline.store.instances import LEASE

EVENT = {
    "version": "0",
    "id": "12345678-1234-1234-1234-123456789012",
    "detail-type": "EC2 Spot Instance Interruption Warning",
    "source": "aws.ec2",
    "account": "123456789012",
    "time": "2026-01-02T03:04:05Z",
    "region": "us-east-1",
    "resources": ["arn:aws:ec2:us-east-1a:instance/i-0123456789abcdef0"],
    "detail": {"instance-id": "i-0123456789abcdef0", "instance-action": "terminate"},
}
"""As AWS documents it."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Queue:
    """A queue of the test's own, and what was obeyed of it."""

    def __init__(self, endpoint: str) -> None:
        self.sqs: Any = boto3.session.Session().client("sqs", endpoint_url=endpoint, region_name="us-east-1")
        self.url = self.sqs.create_queue(QueueName=f"q{uuid.uuid4().hex[:12]}")["QueueUrl"]
        self.options = Options(self.url, "us-east-1", endpoint)
        self.obeyed: list[tuple[str, str]] = []

    def send(self, event: object) -> None:
        self.sqs.send_message(QueueUrl=self.url, MessageBody=event if isinstance(event, str) else json.dumps(event))

    def left(self) -> int:
        """Messages, taken or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def listener(self, *, leads: bool = True) -> Interruptions:
        return Interruptions(self.options, leads=lambda: leads, obey=lambda *told: self.obeyed.append(told))


@pytest.fixture
def queue(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Queue:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return Queue(endpoint)


def test_a_warning_is_obeyed_and_its_message_removed(queue: Queue) -> None:
    """Twice sent, twice obeyed: the ledger does not mind."""
    queue.send(EVENT)
    queue.send(EVENT)
    listener = queue.listener()
    listener.check()
    while queue.left():
        listener.listen(0)
    assert queue.obeyed == [("i-0123456789abcdef0", "spot terminate")] * 2


@pytest.mark.parametrize(
    "event",
    ["no json", "[]", "{}", {"detail-type": "EC2 Instance Rebalance Recommendation"}, EVENT | {"detail": {}},
     EVENT | {"detail": {"instance-id": 7}}, EVENT | {"source": "mine"},
     EVENT | {"detail": {"instance-id": "i-0123456789\0abcdef"}}, EVENT | {"detail": {"instance-id": "local-1"}},
     EVENT | {"detail": {"instance-id": "i-0123456789abcdef0", "instance-action": "x" * 99}}, "[" * 9999],
)  # fmt: skip
def test_what_is_no_interruption_is_removed_and_nothing_else(queue: Queue, event: object) -> None:
    """It would come back for days. Whoever else may put events onto the bus ends no instance."""
    queue.send(event)
    assert queue.listener().listen(0) == 0
    assert queue.left() == 0
    assert queue.obeyed == []


def test_a_warning_that_cannot_be_written_down_stays_in_the_queue(queue: Queue) -> None:
    """Postgres is away: the message comes back while there is still time."""

    def away(_instance: str, _reason: str) -> None:
        raise StoreUnavailableError("away")

    queue.send(EVENT)
    with pytest.raises(StoreUnavailableError):
        Interruptions(queue.options, leads=lambda: True, obey=away).listen(0)
    assert queue.left() == 1


def test_who_does_not_lead_takes_no_message_away(queue: Queue) -> None:
    """Else the one that acts would never hear of it."""
    queue.send(EVENT)
    listener = queue.listener(leads=False)
    listener.start()
    listener.close()
    assert (queue.left(), queue.obeyed) == (1, [])


def test_a_queue_that_is_not_there_is_refused_at_start_with_what_to_do(queue: Queue) -> None:
    """And told while it runs."""
    gone = Options(queue.url + "-gone", "us-east-1", queue.options.endpoint_url)
    listener = Interruptions(gone, leads=lambda: True, obey=lambda *_: None)
    with pytest.raises(SettingsError, match=r"interruptions: .*sqs:ReceiveMessage"):
        listener.check()
    with pytest.raises(ProviderError):
        listener.listen(0)


def test_the_autoscalers_file_names_the_queue(queue: Queue) -> None:
    """A table [interruptions]; what it says wrong is refused, all the same at the start and by `check`."""
    pool = "[pools.cpu]\n"
    table = f'[interruptions]\nqueue_url = "{queue.url}"\nendpoint_url = "{queue.options.endpoint_url}"\n'
    trials = parts.Trials()

    def made(text: str) -> Interruptions | None:
        config = configuration.parse(text, "f.toml")
        return parts.listener(config, trials, leads=lambda: True, obey=lambda *_: None)

    assert made(pool + table) is not None
    assert made(pool) is None
    trials.refuse()
    for wrong in ("[interruptions]\n", table.replace("queue_url", "queue"), table.replace(queue.url, queue.url + "x")):
        before = len(trials.faults)
        made(pool + wrong)
        (fault,) = trials.faults[before:]
        assert fault.startswith("interruptions")
    with pytest.raises(SettingsError, match="sqs:ReceiveMessage"):
        trials.refuse()


def test_an_interruption_has_the_instances_workers_leave(
    store: Store, database_url: str, redis_url: str, tmp_path: Path, queue: Queue
) -> None:
    """A real worker without a metadata service finishes what it holds and exits 0; another instance's goes on."""
    rig = Rig(store, redis_url, tmp_path / "models")
    model = rig.add("double", small_models.double(tmp_path / "double.onnx"))
    scaler = Autoscaler(store, ADVICE, {}, SystemClock(), lease_s=300.0)
    scaler.tick()
    assert store.workers.lead(LEASE, scaler.id, lease_s=300.0) is not None, "as one that has a pool to act on"
    launch = uuid.uuid4()
    assert store.instances.intend(scaler.id, launch, pool="cpu", provider="ec2-spot", count=2, most=2)
    store.instances.settle(launch, [NewInstance("i-0123456789abcdef0"), NewInstance("i-other")])
    store.workers.register(
        other := uuid.uuid4(), host="h", pid=1, pool="cpu", device="cpu", lease_s=300.0, instance="i-other"
    )
    with a_worker(
        database_url, redis_url, rig.repository, tmp_path / "log", BATCHLINE_INSTANCE="i-0123456789abcdef0"
    ) as worker:
        worker.start(PRODUCT, BATCHLINE_FAILPOINTS="worker.before_finish=sleep:1")
        until(lambda: "worker ready" in worker.log(), worker)
        held = rig.pixels(model, [1, 2])
        until(lambda: rig.statuses([held]) == ["running"], worker)
        queue.send(EVENT)
        listener = Interruptions(queue.options, leads=lambda: scaler.leads, obey=scaler.interrupted)
        assert listener.listen(0) == 1
        later = rig.pixels(model, [3, 4])
        until(lambda: not worker.alive, worker)
        assert worker.process is not None
        assert worker.process.returncode == 0
    assert rig.statuses([held, later]) == ["succeeded", "queued"]
    draining = {w.id: w.draining for w in store.workers.list()}
    assert not draining[other]
    status = {i.id: (i.status, i.reason) for i in store.instances.list()}
    assert status["i-0123456789abcdef0"] == (InstanceStatus.DRAINING, "spot terminate")
    assert status["i-other"][0] is not InstanceStatus.DRAINING


def test_workers_that_others_launched_are_told_too(store: Store) -> None:
    """A spot instance that the ledger does not know: only its workers drain."""
    worker = uuid.uuid4()
    store.workers.register(worker, host="h", pid=1, pool="cpu", device="cpu", lease_s=60.0, instance="i-mine")
    scaler = Autoscaler(store, ADVICE, {}, SystemClock(), lease_s=300.0)
    scaler.tick()
    scaler.interrupted("i-mine", "spot stop")
    scaler.interrupted("i-unknown", "spot stop")
    assert [w.draining for w in store.workers.list()] == [True]
    assert store.instances.list() == []
