"""Asks the metadata service of an EC2 instance (IMDSv2) whether it is about to be taken away, and has the worker leave.

AWS gives a notice two minutes ahead: `spot/instance-action` is 404 until then, and then says when the instance ends.
`events/recommendations/rebalance` may say earlier that this is likely: then it is asked more often, nothing else. A
service that does not answer, or knows no token, is asked again; the worker works on as if there were none.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import msgspec

log = logging.getLogger("workers")

IMDS = "http://169.254.169.254"
NOTICE_S = 120.0
"""So long before its end an instance is told."""
MARGIN_S = 15.0
"""Before the end all must be given back: a forward pass may be under way, and a part half written."""
EVERY_S = 4.5
"""With the answer's own time, a notice is known within 5 s."""
WARNED_EVERY_S = 2.0
ANSWER_S = 1.0
_TOKEN_KEPT_S = 3600
_MOST_BYTES = 4096
_ACTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


class _SilenceError(Exception):
    """The service did not answer as it should; says how."""


class _Action(msgspec.Struct):
    action: str = "interruption"
    time: datetime | None = None


class Imds:
    """Version 2 of the service: every question carries a token, which is fetched first and again when it is refused."""

    def __init__(self, url: str = IMDS) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._token = ""
        self._token_until = 0.0

    def get(self, path: str) -> bytes | None:
        """What stands at a path; None where there is nothing (404).

        Raises:
            _SilenceError: it did not say.
        """
        if time.monotonic() > self._token_until:
            self._fetch_token()
        status, body = self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
        if status == 401:
            self._fetch_token()
            status, body = self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
        if status == 404:
            return None
        if status != 200:
            raise _SilenceError(f"it answers {status}")
        return body

    def _fetch_token(self) -> None:
        wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_KEPT_S)}
        status, body = self._ask("PUT", "/latest/api/token", wanted)
        if status != 200:
            raise _SilenceError(f"it gives no token ({status})")
        self._token = body.decode("ascii", "replace").strip()
        self._token_until = time.monotonic() + _TOKEN_KEPT_S / 2

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        # Not by way of any proxy that the environment may name: what answers there is another instance's service.
        connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_BYTES)
        except TimeoutError as e:
            hint = " in time; for a worker in a container the instance's hop limit must be 2" if method == "PUT" else ""
            raise _SilenceError(f"it does not answer{hint}") from e
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise _SilenceError(f"it does not answer ({type(e).__name__})") from e
        finally:
            connection.close()


class SpotNotice:
    """Looks for a notice until there is one."""

    def __init__(self, imds: Imds, leave: Callable[[str, float], None]) -> None:
        """Nothing is asked yet.

        Args:
            imds: whom to ask.
            leave: called once, with a reason and for how many seconds the worker may go on with what it holds.
        """
        self._imds = imds
        self._leave = leave
        self._warned = False
        self._silent = False

    def watch(self, stop: threading.Event) -> None:
        """Look at once and then every few seconds, until a notice comes or `stop` is set."""
        while True:
            at = time.monotonic()
            if self.look():
                return
            every_s = WARNED_EVERY_S if self._warned else EVERY_S
            if stop.wait(max(0.1, every_s - (time.monotonic() - at))):
                return

    def look(self) -> bool:
        """Ask once; True when there was a notice, and the worker leaves."""
        try:
            notice = self._imds.get(_ACTION)
            if notice is not None:
                self._obey(notice)
                return True
            warned = self._imds.get(_REBALANCE) is not None
        except _SilenceError as e:
            if not self._silent:
                log.info("no spot notices: the metadata service was asked", extra={"error": str(e)})
            self._silent = True
            return False
        if warned and not self._warned:
            log.warning("this spot instance is at an elevated risk of interruption")
        self._warned, self._silent = warned, False
        return False

    def _obey(self, notice: bytes) -> None:
        try:
            said = msgspec.json.decode(notice, type=_Action)
        except (msgspec.MsgspecError, ValueError):
            said = _Action()
        within_s = left_s(said.time, datetime.now(UTC))
        log.warning("spot notice", extra={"action": said.action, "within_s": round(within_s, 1)})
        self._leave(f"spot {said.action}", within_s)


def left_s(end: datetime | None, now: datetime) -> float:
    """For how long the worker may go on with what it holds, whatever the two clocks say; an end without zone is UTC."""
    if end is None:
        return NOTICE_S - MARGIN_S
    ahead_s = ((end if end.tzinfo else end.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(ahead_s, 0.0), NOTICE_S) - min(MARGIN_S, max(ahead_s, 0.0))
