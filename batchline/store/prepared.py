"""Prepared statements by hand, since psycopg2 has none: planning takes longer than running a short statement.

PREPARE and EXECUTE are plain SQL, so behind a pgbouncer in transaction mode an EXECUTE may reach a server connection
that knows nothing of the statement; `Database` then goes on without preparing.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import NamedTuple

UNKNOWN = "26000"
"""SQLSTATE: this connection has no statement of this name."""

_PARAMETER = re.compile(r"%\((\w+)\)s(::\w+(?:\[\])?)?")


class Prepared(NamedTuple):
    """One statement in its two halves."""

    name: str
    prepare: str
    """Without parameters."""
    execute: str
    """With the parameters of the original, in psycopg2's style."""


@functools.lru_cache(maxsize=64)
def prepared(sql: str) -> Prepared:
    """Split a statement with %(name)s parameters; a cast behind a parameter is kept on both sides."""
    casts: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        name, cast = match[1], match[2] or ""
        casts[name] = casts.get(name) or cast
        return f"${list(casts).index(name) + 1}{cast}"

    body = _PARAMETER.sub(numbered, sql)
    name = "batchline_" + hashlib.sha256(sql.encode()).hexdigest()[:16]
    arguments = ", ".join(f"%({parameter})s{cast}" for parameter, cast in casts.items())
    return Prepared(name, f"PREPARE {name} AS {body}", f"EXECUTE {name}({arguments})" if casts else f"EXECUTE {name}")
