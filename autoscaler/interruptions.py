"""Spot interruptions that EventBridge puts into an SQS queue: for workers that cannot ask their metadata service.

A rule for `EC2 Spot Instance Interruption Warning` of source `aws.ec2` with the queue as its target; a queue for each
installation, since who takes a message away keeps it from others. The leader alone listens. Everything about an event
may happen twice: a message is removed only when the ledger knows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from autoscaler.beside import Beside
from autoscaler.providers.aws import FAULTS, Aws, provider_error
from batchline.errors import BatchlineError

log = logging.getLogger("autoscaler")

WARNING = "EC2 Spot Instance Interruption Warning"
SOURCE = "aws.ec2"
"""EventBridge lets nobody but AWS use it; a rule that forgets to ask for it lets anybody's events pass."""
_AT_ONCE = 10
_LISTEN_S = 5
"""One long poll; SQS answers at once when there is a message."""
_AGAIN_S = 10
"""A message that could not be obeyed comes back after that; an interruption leaves two minutes."""
_PAUSE_S = 5.0
_JOIN_S = 1.0


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [interruptions]."""

    queue_url: Annotated[str, msgspec.Meta(min_length=1)]
    region: str = ""
    """Empty: AWS_REGION or the profile's."""
    endpoint_url: str = ""


class _Detail(msgspec.Struct, rename="kebab"):
    instance_id: Annotated[str, msgspec.Meta(pattern=r"^i-[0-9a-f]{8,17}\Z")]
    instance_action: Annotated[str, msgspec.Meta(pattern=r"^[a-z-]{1,32}\Z")] = "interruption"


class _Event(msgspec.Struct, rename="kebab"):
    """What is obeyed is kept and logged, so it is checked as strictly as AWS writes it."""

    detail: _Detail
    detail_type: str
    source: str


class Interruptions(Beside):
    """Listens in a thread of its own and tells of each instance that is about to be taken away."""

    def __init__(self, options: Options, *, leads: Callable[[], bool], obey: Callable[[str, str], None]) -> None:
        """Nothing is asked before `start`.

        Args:
            options: which queue.
            leads: whether this process is to listen now.
            obey: called with an instance and a reason, at least once for each event; what it raises, it is asked again.
        """
        needs = "sqs:ReceiveMessage, sqs:DeleteMessage and sqs:GetQueueAttributes on it"
        super().__init__("interruptions", Aws(options.region, options.endpoint_url), needs=needs, join_s=_JOIN_S)
        self._options = options
        self._leads = leads
        self._obey = obey
        self._sqs: Any = None

    def _try(self) -> None:
        """Ask for the queue."""
        self._call("get_queue_attributes", "look at the queue of interruptions", AttributeNames=["QueueArn"])

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                if self._leads():
                    self.listen()
                    continue
            except BatchlineError as e:
                log.warning("interruptions not heard", extra={"error": e.detail})
            except Exception:
                log.exception("interruptions not heard")
            self._closed.wait(_PAUSE_S)

    def listen(self, seconds: int = _LISTEN_S) -> int:
        """Take what the queue has, waiting so long for the first; returns how many interruptions were obeyed.

        Raises:
            ProviderError: the queue cannot be asked.
            StoreUnavailableError: what could not be written down comes again.
        """
        got = self._call(
            "receive_message",
            "listen to the queue of interruptions",
            MaxNumberOfMessages=_AT_ONCE,
            WaitTimeSeconds=seconds,
            VisibilityTimeout=_AGAIN_S,
        )
        messages = got.get("Messages", [])
        return sum(self._take(message) for message in messages)

    def _take(self, message: dict[str, Any]) -> bool:
        told = _read(str(message.get("Body", "")))
        if told is not None:
            log.warning("spot interruption", extra={"instance": told.instance_id, "action": told.instance_action})
            self._obey(told.instance_id, f"spot {told.instance_action}")
        else:
            log.info("message is no interruption; removed")
        self._call("delete_message", "remove an interruption", ReceiptHandle=message["ReceiptHandle"])
        return told is not None

    def _call(self, name: str, doing: str, **arguments: Any) -> dict[str, Any]:
        try:
            self._sqs = self._sqs or self._aws.ask("sqs")
            return getattr(self._sqs, name)(QueueUrl=self._options.queue_url, **arguments)
        except FAULTS as e:
            raise provider_error(e, doing) from e


def _read(body: str) -> _Detail | None:
    """Which instance is interrupted; None when the message does not say so."""
    try:
        event = msgspec.json.decode(body, type=_Event)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return event.detail if (event.source, event.detail_type) == (SOURCE, WARNING) else None
