"""Logging: one canonical line per unit of work, JSON in containers, readable on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_OUTSPOKEN = ("boto3", "botocore", "s3transfer", "urllib3", "httpx", "httpcore")
"""Libraries that write down at DEBUG what they send and get: signatures, tokens, decrypted parameters and secrets."""
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
