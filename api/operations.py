"""One route of the description, and the small parts that descriptions are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
REF = "#/components/schemas/{name}"
OBJECT: Json = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route: what it takes, and what it answers beside the errors that all routes know."""

    method: str
    path: str
    name: str
    summary: str
    answers: Mapping[int, Json]
    errors: tuple[int, ...] = ()
    body: Json | None = None
    parameters: tuple[Json, ...] = ()
    scope: str | None = None
    description: str = ""


def ref(name: str) -> Json:
    """A shape by its name."""
    return {"$ref": REF.format(name=name)}


def content(schema: Json, example: object = None, *, media_type: str = "application/json") -> Json:
    """Content of a body or an answer."""
    told: Json = {"schema": schema}
    if example is not None:
        told["example"] = example
    return {media_type: told}


def parameter(place: str, name: str, schema: Json, description: str, example: object = None) -> Json:
    """A parameter in the path, the query or a header."""
    found: Json = {"name": name, "in": place, "required": place == "path", "schema": schema, "description": description}
    return found | ({"example": example} if example is not None else {})


KEY = parameter(
    "header",
    "Idempotency-Key",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "The same key and body is the same job, batch or run, for 24 hours.",
)
