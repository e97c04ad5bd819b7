"""Ids as clients see them: a prefix that says of what, and 26 characters of base32hex that sort as the id does."""

from __future__ import annotations

import base64
import uuid

_LENGTH = 26


def show(prefix: str, value: uuid.UUID) -> str:
    """The id as text: prefix (`job_`, `batch_`, `file-`, `sched_`) and 26 characters."""
    return prefix + base64.b32hexencode(value.bytes).decode()[:_LENGTH].lower()


def parse(prefix: str, text: str) -> uuid.UUID | None:
    """The inverse of `show`; None for a text that `show` never makes, so that nothing has this id."""
    body = text.removeprefix(prefix)
    if len(body) != _LENGTH or len(text) != len(prefix) + _LENGTH:
        return None
    try:
        value = uuid.UUID(bytes=base64.b32hexdecode(body.upper() + "=" * 6))
    except ValueError:
        return None
    return value if show(prefix, value) == text else None
