"""Redis as a place for hints: short timeouts, a breaker, and never an error for the caller.

Keys and channels, all of them (DB is the number of the Redis database, since pub/sub knows none):
    batchline:nudge:<pool>:<lane>   a nudge is out; lives 2 s; deleted by the worker just before its claim
    batchline:<DB>:finished         pub/sub: ids of ended jobs, 16 bytes each, back to back
Celery's own keys (queues `batchline.<pool>.<lane>`, unacked, bindings) stand beside them.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batchline.job import Lane
from batchline.logs import Outage

log = logging.getLogger("batchline.queue")
T = TypeVar("T")

MARKER_MS = 2000
TIMEOUT_S = 0.5
BREAK_S = 2.0
"""After a failed call Redis is left alone this long, so that a hung one costs one timeout and not one a call."""
HEALTH_S = 5.0
"""A connection on which nothing comes is asked for an answer this often."""
_UNANSWERED = 2

_NUDGE = """
if not redis.call('SET', KEYS[1], 1, 'NX', 'PX', ARGV[1]) and ARGV[2] == '0' then return 'marked' end
if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[3]) then return 'enough' end
redis.call('LPUSH', KEYS[2], ARGV[4])
return 'sent'
"""


class _OneWay:
    """A connection on which Redis does not answer, so that saying something costs no round trip and waits for nobody.

    It is asked for one answer now and then, which a later call looks for: a connection whose other end is gone may well
    stay open and take all that is said. A Redis that may not be silenced (ACL) answers as usual.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._connection.retry = Retry(NoBackoff(), 0)  # the next call is the next try
        self._stands = self._answers = False
        self._heard_at = self._failed_at = 0.0
        self._asked_at: float | None = None
        self._lock = threading.Lock()

    def say(self, *command: str | bytes) -> None:
        """Send a command; raises when Redis is seen not to be there, by us or by whom we waited for."""
        came_at = time.monotonic()
        with self._lock:
            if self._failed_at > came_at:
                raise redis.ConnectionError("it did not answer another thread")
            try:
                if not self._still_stands():
                    self._connect()
                self._connection.send_command(*command, check_health=False)
                if self._answers:
                    self._connection.read_response()
                elif self._asked_at is None and time.monotonic() - self._heard_at > HEALTH_S:
                    self._ask()
            except BaseException:
                self._stands, self._failed_at = False, time.monotonic()
                raise

    def close(self) -> None:
        with self._lock:
            self._stands = False
            self._connection.disconnect()

    def _still_stands(self) -> bool:
        try:
            if not self._stands:
                return False
            if not self._connection.can_read():
                return self._asked_at is None or time.monotonic() - self._asked_at < TIMEOUT_S
            if self._asked_at is None:
                return False  # all that can come unasked is the end
            self._connection.read_response()
        except (redis.RedisError, OSError):
            return False
        self._heard_at, self._asked_at = time.monotonic(), None
        return True

    def _connect(self) -> None:
        self._stands, self._answers, self._asked_at = False, False, None
        self._connection.disconnect()
        self._connection.connect()
        self._connection.send_command("CLIENT", "REPLY", "ON", check_health=False)
        try:
            self._connection.read_response()
            self._connection.send_command("CLIENT", "REPLY", "OFF", check_health=False)
        except redis.ResponseError:
            self._answers = True
        self._stands, self._heard_at = True, time.monotonic()

    def _ask(self) -> None:
        on_off = (("CLIENT", "REPLY", word) for word in ("ON", "OFF"))  # the first is answered, the second is not
        self._connection.send_packed_command(self._connection.pack_commands(on_off), check_health=False)
        self._asked_at = time.monotonic()


class Hints:
    """The markers and announcements of one process."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=HEALTH_S,
            retry=Retry(NoBackoff(), 1),  # once: a pooled connection may be dead; more would stall the caller
        )
        database = self._redis.connection_pool.connection_kwargs.get("db") or 0
        self._channel = f"batchline:{database}:finished"
        self._one_way = _OneWay(self._redis.connection_pool.make_connection())
        self._broken_until = 0.0
        self._outage = Outage(log, "redis does not answer; going on without hints", "redis answers again")
        self._closed = threading.Event()
        self._listener: threading.Thread | None = None

    def nudge(self, pool: str, lane: Lane, queue: str, message: str, *, most: int, force: bool) -> str | None:
        """Take the marker of (pool, lane) and put a message into a Celery queue, both or neither, in one round trip.

        Returns:
            What came of it: `sent`; `marked`, the marker is out already (`force` sends all the same); `enough`, the
            queue holds `most` messages; None, Redis did not say.
        """
        keys = (_marker(pool, lane), queue)
        told = self._call(lambda: self._redis.eval(_NUDGE, 2, *keys, MARKER_MS, int(force), most, message))
        return None if told is None else cast("bytes", told).decode()

    def unmark(self, pool: str, lane: Lane) -> None:
        """Have the marker deleted, so that a later commit nudges for itself; does not wait until it is.

        A claim that follows takes several times the way to Redis. Should it be quicker all the same, a nudge of then
        is taken for out already, and what it was for is found with the next, or by who looks for work unasked.
        """
        self._call(lambda: self._one_way.say("DEL", _marker(pool, lane)))

    def ping(self) -> bool:
        """Whether Redis answers."""
        return self._call(self._redis.ping) is True

    def publish(self, job_ids: Sequence[uuid.UUID]) -> None:
        """Announce that jobs have ended; does not wait until it is heard."""
        if job_ids:
            self._call(lambda: self._one_way.say("PUBLISH", self._channel, b"".join(i.bytes for i in job_ids)))

    def listen(self, on_finished: Callable[[Sequence[uuid.UUID]], None]) -> None:
        self._listener = threading.Thread(target=self._listen, args=(on_finished,), name="wake-ups", daemon=True)
        self._listener.start()

    def close(self) -> None:
        self._closed.set()
        if self._listener:
            self._listener.join(timeout=2.0)
        self._one_way.close()
        self._redis.close()

    def _listen(self, on_finished: Callable[[Sequence[uuid.UUID]], None]) -> None:
        while not self._closed.is_set():
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
                    subscription.subscribe(self._channel)
                    while not self._closed.is_set():
                        message = subscription.get_message(timeout=1.0)
                        if message:
                            on_finished(_ids(cast("bytes", message["data"])))
                        elif subscription.health_check_response_counter > _UNANSWERED:
                            raise redis.TimeoutError("nothing comes on this connection any more")
            except (redis.RedisError, OSError) as e:
                log.debug("wake-ups interrupted", extra={"error": str(e)})
                self._closed.wait(0.5)

    def _call(self, work: Callable[[], T]) -> T | None:
        if time.monotonic() < self._broken_until:
            return None
        try:
            answer = work()
        except (redis.RedisError, OSError) as e:
            self._broken_until = time.monotonic() + BREAK_S
            self._outage.fails(error=str(e))
            return None
        self._outage.well()
        return answer


def _marker(pool: str, lane: Lane) -> str:
    return f"batchline:nudge:{pool}:{lane.value}"


def _ids(data: bytes) -> list[uuid.UUID]:
    return [uuid.UUID(bytes=data[at : at + 16]) for at in range(0, len(data) - 15, 16)]
