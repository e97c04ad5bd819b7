"""Names of tables as people write them: plain, or as in SQL between double quotes.

A plain name means its letters as they stand (SQL would fold capitals): `scores`, `Größen`, `my scores`, `sales.scores`.
Between double quotes any letter may be, a quote doubled: `public."My Scores"`, `"a.b"."12"" pipes"`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NAME_BYTES = 63
"""PostgreSQL cuts longer names off."""

_PLAIN = r'[^\s".\x00-\x1f]+|[\w$-]+(?: +[\w$-]+)+'
_PART = rf'({_PLAIN})|"((?:[^"\0]|"")+)"'
_NAME = re.compile(rf"(?:(?:{_PART})\.)?(?:{_PART})")
_SIMPLE = re.compile(r"[^\W\d]\w*")


class TableName(NamedTuple):
    """A table's own name, and its schema's if one was given; letters as the database has them."""

    schema: str | None
    name: str


def parse(text: str) -> TableName:
    """The table that a text names.

    Raises:
        ValueError: it names none; the message says what it must be.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise ValueError(
            'must be the name of a table: TABLE or SCHEMA.TABLE, with other letters than usual in double quotes: "a.b"'
        )
    schema, name = (
        plain or (quoted.replace('""', '"') if quoted else None)
        for plain, quoted in ((found[1], found[2]), (found[3], found[4]))
    )
    if any(_too_long(part) for part in (schema, name) if part):
        raise ValueError(f"must be names of at most {NAME_BYTES} bytes in UTF-8")
    return TableName(schema, name or "")


def shown(schema: str, name: str) -> str:
    """A name as `parse` takes it."""
    return ".".join(part if _SIMPLE.fullmatch(part) else _quoted(part) for part in (schema, name))


def _quoted(part: str) -> str:
    return '"' + part.replace('"', '""') + '"'


def _too_long(part: str) -> bool:
    return len(part.encode(errors="surrogatepass")) > NAME_BYTES
