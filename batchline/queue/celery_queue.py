"""Celery as the carrier of nudges: the app, its routes, sending, and running a worker. The only file that knows it.

A Celery task says "this pool has work in this lane"; what the work is stands in Postgres. So early ack, no results, no
ETA, no priorities in Celery; a message is under 1 KB and one of them starts one claim.
"""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.app.amqp import AMQP
from celery.signals import setup_logging, worker_ready, worker_shutting_down
from celery.worker import state
from celery.worker.consumer import consumer
from kombu.connection import Connection
from kombu.entity import Queue

from batchline.job import Lane
from batchline.logs import Outage
from batchline.metrics import NUDGES
from batchline.queue.hints import Hints

log = logging.getLogger("batchline.queue")

TASK = "batchline.run"

_EVENTS_S = 0.25
_LISTENED_S = 1.0
_RECONNECT_S = 2
_ENOUGH = 100
"""So many nudges waiting in one queue will do: nobody serves it, and whoever comes back goes on by itself."""
_TASK_ID = "the-id-of-the-task"


class _Connection(Connection):
    """A broker that is away is looked for every two seconds; kombu comes to do so twice a minute only."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        return super().ensure_connection(*args, **{"interval_max": _RECONNECT_S} | kwargs)


class _Amqp(AMQP):
    Connection = _Connection


def queue_name(pool: str, lane: Lane) -> str:
    """The Celery queue of a pool's lane."""
    return f"batchline.{pool}.{lane.value}"


def make_app(redis_url: str, pools: tuple[str, ...] = ("cpu",)) -> Celery:
    """The Celery app, for senders, workers and Flower alike; connects at the first use."""
    app = Celery("batchline", broker=redis_url, amqp=_Amqp, set_as_current=False)
    app.conf.update(
        task_queues=[Queue(queue_name(pool, lane)) for pool in pools for lane in Lane],
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_acks_late=False,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=True,  # cancels none, for they are acked; False has it warn
        worker_soft_shutdown_timeout=0.0,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # What a demoted, full or restricted Redis answers ends the connection, and not the worker.
        broker_channel_error_retry=True,
        broker_transport_options={
            "socket_timeout": 5.0,
            "socket_connect_timeout": 2.0,
            "socket_keepalive": True,
            "health_check_interval": 5,
            # A lost nudge does no harm, so unacked ones are not kept in Redis: a third less work for each.
            "ack_emulation": False,
        },
    )
    return app


class CeleryNudger:
    """Sends nudges from a thread of its own, at most one a pool and lane at a time; see `contract.Nudger`."""

    def __init__(self, redis_url: str, hints: Hints) -> None:
        self._app = make_app(redis_url)
        self._hints = hints
        self._messages: dict[tuple[str, Lane], str] = {}
        self._wanted: dict[tuple[str, Lane], bool] = {}
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="nudger", daemon=True)
        self._thread.start()

    def nudge(self, pool: str, lane: Lane, *, force: bool = False) -> None:
        with self._change:
            self._wanted[pool, lane] = self._wanted.get((pool, lane), False) or force
            self._change.notify()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._wanted and not self._closed:
                    self._change.wait()
                wanted, self._wanted = self._wanted, {}
                if self._closed and not wanted:
                    return
            for (pool, lane), force in wanted.items():
                NUDGES.labels(self._send(pool, lane, force=force)).inc()

    def _send(self, pool: str, lane: Lane, *, force: bool) -> str:
        message = self._messages.get((pool, lane))
        if message is None:
            message = self._messages[pool, lane] = task_message(self._app, pool, lane)
        message = message.replace(_TASK_ID, str(uuid.uuid4()))
        return self._hints.nudge(pool, lane, queue_name(pool, lane), message, most=_ENOUGH, force=force) or "failed"


def task_message(app: Celery, pool: str, lane: Lane) -> str:
    """A nudge as Celery puts it into a Redis list, with `_TASK_ID` for the id of the task.

    Celery's own way to send one takes a millisecond of CPU and a round trip of its own, so it is made once, and goes
    out with its marker.
    """
    task = app.amqp.as_task_v2(_TASK_ID, TASK, (pool, lane.value), ignore_result=True)
    body: str = json.dumps(task.body)
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": task.headers,
            "properties": {
                **task.properties,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue_name(pool, lane)},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": _TASK_ID,
            },
        }
    )


class _Unheard(logging.Filter):
    """Celery's lines of a broker that is away or refuses, one a try and several a second, become those of an outage."""

    _LINES = (consumer.CONNECTION_ERROR, "%s (%r)", "Frequent restarts detected: %r")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg not in self._LINES:
            return True
        errors = [str(value) for value in record.args or () if isinstance(value, Exception)]
        _unheard.fails(error="".join(errors[:1]))
        return False


_unheard = Outage(log, "redis is away or refuses: this worker hears no nudges", "nudges are heard again")


class Timers(bootsteps.StartStopStep):
    """What the worker does by the clock: it sends the events of tasks, and tells when nudges are heard again.

    Events go out four times a second; each by itself costs as much as the work of an idle system.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, parent: Any) -> None:
        """Run at each (re)connection, which makes a new dispatcher and forgets timers."""
        if parent.hub:
            parent.event_dispatcher.on_send_buffered = None
            parent.hub.call_repeatedly(_EVENTS_S, parent.event_dispatcher.flush)
            parent.hub.call_repeatedly(_LISTENED_S, _unheard.well)


def run_worker(
    redis_url: str,
    *,
    name: str,
    pool: str,
    concurrency: int,
    run: Callable[[Lane], dict[str, Any]],
    on_ready: Callable[[], None],
    on_drain: Callable[[], None],
) -> int:
    """Run a Celery worker on the threads pool until SIGTERM; returns its exit code.

    Args:
        redis_url: the broker.
        name: shown in Flower, before the host's name.
        pool: whose queues are served.
        concurrency: threads.
        run: called for each nudge with its lane; what it returns is shown in Flower.
        on_ready: called once the worker consumes.
        on_drain: called in the signal handler when the warm shutdown begins: set flags, do not wait.
    """
    app = make_app(redis_url, (pool,))

    def nudged(_pool: str, lane: str) -> dict[str, Any]:
        return run(Lane(lane))

    def ready(**_: object) -> None:
        on_ready()

    def drain(**_: object) -> None:
        on_drain()

    def leave_logging_alone(**_: object) -> None:
        logging.getLogger("celery").setLevel(logging.WARNING)  # two lines a task otherwise
        logging.getLogger(consumer.__name__).addFilter(_Unheard())

    steps: Any = app.steps
    steps["consumer"].add(Timers)
    app.task(nudged, name=TASK)
    setup_logging.connect(leave_logging_alone, weak=False)
    worker_ready.connect(ready, weak=False)
    worker_shutting_down.connect(drain, weak=False)
    worker: Any = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",  # only Celery's command line knows %h
        pool="threads",
        concurrency=concurrency,
        queues=[queue_name(pool, lane) for lane in Lane],
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        loglevel="WARNING",
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def stop_worker() -> None:
    """Have the worker of this process consume no more and end when its threads have, as at SIGTERM; from any thread."""
    state.should_stop = 0
