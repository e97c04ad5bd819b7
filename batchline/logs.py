"""Logging: one canonical line per unit of work, JSON in containers, readable on a terminal."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

_OUTSPOKEN = ("boto3", "botocore", "s3transfer", "urllib3", "httpx", "httpcore")
"""Libraries that write down at DEBUG what they send and get: signatures, tokens, decrypted parameters and secrets."""
_TELL_S = 60.0
_SETTLED_S = 5.0
"""What has not failed for so long is well; what fails and works by turns has one outage, and not one each time."""
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in record.__dict__.items() if k not in _STANDARD and not k.startswith("_")}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what was passed as `extra` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TerminalFormatter(logging.Formatter):
    """`12:00:01 info workers: claimed rows=64 model=digits@1`."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        extras = "".join(f" {k}={v}" for k, v in _extras(record).items())
        line = f"{at} {record.levelname.lower()} {record.name}: {record.getMessage()}{extras}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Outage:
    """What fails at every try, told when it begins, once a minute while it lasts, and when it is over; any thread."""

    def __init__(
        self, log: logging.Logger, failing: str, over: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        log: where it is told.
        failing: said of it as a warning, with what `fails` is given and how many times it has failed since.
        over: said when a call of `well` finds that it has not failed for five seconds.
        monotonic: the clock.
        """
        self._log, self._failing, self._over, self._monotonic = log, failing, over, monotonic
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._failed_at = self._tell_at = 0.0
        self._times = 0

    def fails(self, **about: object) -> None:
        """It has failed; `about` stands beside the message."""
        with self._lock:
            now = self._failed_at = self._monotonic()
            self._times += 1
            if self._began_at is None:
                self._began_at = self._tell_at = now
            if now < self._tell_at:
                return
            self._tell_at = now + _TELL_S
            times, self._times = self._times, 0
        self._log.warning(self._failing, extra=about | {"times": times})

    def well(self) -> None:
        """It has not failed; may be called at every success."""
        if self._began_at is not None:
            self._settle()

    def _settle(self) -> None:
        with self._lock:
            if self._began_at is None or self._monotonic() - self._failed_at < _SETTLED_S:
                return
            lasted_s, self._began_at, self._times = self._failed_at - self._began_at, None, 0
        self._log.info(self._over, extra={"lasted_s": round(lasted_s, 1)})


def configure(*, level: str = "INFO", as_json: bool | None = None) -> None:
    """Send everything to stderr; as JSON unless stderr is a terminal or `as_json` says otherwise.

    No level makes libraries tell of secrets: below INFO only our own code says more.
    """
    handler = logging.StreamHandler(sys.stderr)
    wants_json = as_json if as_json is not None else not sys.stderr.isatty()
    handler.setFormatter(JsonFormatter() if wants_json else TerminalFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _OUTSPOKEN:
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))
