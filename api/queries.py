"""Query strings of lists: only known parameters, each once, and page sizes within bounds."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from urllib.parse import parse_qsl

from batchline.errors import Fault, InvalidRequestError, NotFoundError


def query_of(raw: bytes, known: Collection[str]) -> dict[str, str]:
    """The parameters of a query string.

    Raises:
        InvalidRequestError: a parameter that is not known, or one that comes twice.
    """
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)
    query = dict(pairs)
    faults = tuple(Fault(f"/{name}", "is no parameter of this route") for name in query.keys() - set(known))
    if len(query) < len(pairs):
        faults += (Fault("", "names a parameter more than once"),)
    if faults:
        raise InvalidRequestError("The query does not fit.", faults=faults)
    return query


def whole_number(query: Mapping[str, str], name: str, *, default: int, least: int, most: int) -> int:
    """A parameter as a whole number.

    Raises:
        InvalidRequestError: it is none from `least` to `most`.
    """
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18 or not least <= int(text) <= most:
        raise refused(name, f"must be a whole number from {least} to {most}")
    return int(text)


def an_id(query: Mapping[str, str], name: str, parse: Callable[[str], uuid.UUID], what: str) -> uuid.UUID | None:
    """A parameter as the id of `what`; None without it.

    Raises:
        InvalidRequestError: it cannot be one.
    """
    try:
        return parse(query[name]) if name in query else None
    except NotFoundError:
        raise refused(name, f"must be the id of a {what}") from None


def refused(name: str, detail: str) -> InvalidRequestError:
    """The error of a parameter that does not fit."""
    return InvalidRequestError("The query does not fit.", faults=(Fault(f"/{name}", detail),))
