"""Tables of the configuration file, decoded strictly: every fault names the field, what is wrong and what fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from batchline.errors import SettingsError

T = TypeVar("T")


def decode(table: Mapping[str, object], kind: type[T], where: str) -> T:
    """Make a frozen Struct or dataclass of a table.

    Args:
        table: as TOML gave it.
        kind: a msgspec Struct or a dataclass; its defaults fill what the table leaves out.
        where: the table's name, for messages.

    Raises:
        SettingsError: an unknown field (with those there are), a wrong type, a missing field, a number that is none.
    """
    known = _fields(kind)
    if unknown := sorted(set(table) - set(known)):
        said = ", ".join(unknown)
        raise SettingsError(f"{where} has no field {said}; it has {', '.join(known) or 'none at all'}")
    for path, value in _numbers(table, where):
        if not math.isfinite(value):
            raise SettingsError(f"{path} is {value}; it must be a number")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as e:
        what, _, path = str(e).partition(" - at `$")
        raise SettingsError(f"{where}{path.rstrip('`')}: {what[:1].lower()}{what[1:]}") from e


def _fields(kind: type) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def _numbers(value: object, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            yield from _numbers(inner, f"{path}[{n}]")
