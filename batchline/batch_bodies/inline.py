"""Inline rows of a data set: checked against the model as a job's are, then written as JSON lines.

A row is what a job takes (a nested list, an object of inputs, a string), or an object of columns that are mapped to the
model's inputs as those of a file are: the named columns, else the ones named like the inputs, else all that are neither
key nor kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from batchline import rows
from batchline.batch import Input, Output
from batchline.decoding import escape, from_decoding
from batchline.errors import Fault, InvalidRequestError
from batchline.model import ModelSpec

MAX_ROWS = 1_000_000
_STEP = 1000
"""Rows read at a time: other threads run in between."""
_POINTER = "/input/rows"


def jsonl(raw: msgspec.Raw, spec: ModelSpec, wanted: Input, output: Output) -> bytes:
    """Check the rows and write them one a line.

    Args:
        raw: a JSON array of rows.
        spec: what the model takes.
        wanted: names the key and the columns.
        output: names the columns that are kept.

    Raises:
        MalformedError: not JSON.
        InvalidRequestError: with a fault for each bad row, pointers beginning with /input/rows.
    """
    try:
        # Without white space no row has a line break in it.
        lines = msgspec.json.decode(msgspec.json.format(bytes(raw), indent=-1), type=list[msgspec.Raw])
    except msgspec.ValidationError:
        raise _invalid([Fault(_POINTER, "must be an array of rows")]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise from_decoding(e) from None
    if not 1 <= len(lines) <= MAX_ROWS:
        raise _invalid([Fault(_POINTER, f"has {len(lines)} rows; inline, a batch takes 1 to {MAX_ROWS}")])
    mapping = _Mapping(spec, wanted, output)
    faults: list[Fault] = []
    for start in range(0, len(lines), _STEP):
        faults += mapping.faults(lines[start : start + _STEP], start)
        if len(faults) >= rows.MAX_FAULTS:
            break
    if faults:
        raise _invalid(faults[: rows.MAX_FAULTS])
    return b"\n".join([*map(memoryview, lines), b""])


class _Mapping:
    """How objects of columns become rows of a job."""

    def __init__(self, spec: ModelSpec, wanted: Input, output: Output) -> None:
        self._spec = spec
        self._columns = wanted.columns
        self._beside = [*([wanted.key] if wanted.key is not None else []), *output.keep]
        self._names = [rows.TEXT] if spec.text is not None else [t.name for t in spec.inputs]
        self._plain = wanted.columns is None and not self._beside
        self._takes_a_value = spec.text is not None or not spec.inputs[0].shape
        self._rest: list[str] | None = None
        """Columns of the first row that are neither key nor kept, when those are what the model reads."""

    def faults(self, lines: Sequence[msgspec.Raw], start: int) -> list[Fault]:
        text = b"[" + b",".join(map(memoryview, lines)) + b"]"
        if self._plain:
            try:
                rows.parse(text, self._spec, max_rows=len(lines))
            except InvalidRequestError:
                pass  # perhaps they are objects of columns
            else:
                return []
        found: list[Fault] = []
        read: list[object] = []
        columns: list[Sequence[str] | None] = []
        for i, row in enumerate(cast("list[object]", msgspec.json.decode(text))):
            mapped = self._mapped(row, f"{_POINTER}/{start + i}", found)
            if mapped is not None:
                read.append(mapped[0])
                columns.append(mapped[1])
        if found:
            return found
        try:
            rows.parse(msgspec.json.encode(read), self._spec, max_rows=len(lines))
        except InvalidRequestError as e:
            return [_told(fault, start, columns) for fault in e.faults]
        return []

    def _mapped(self, row: object, pointer: str, found: list[Fault]) -> tuple[object, Sequence[str] | None] | None:
        """The row as a job has it, and the columns that were stacked into it; None when it is at fault."""
        if not isinstance(row, dict):
            if self._plain:
                return row, None
            found.append(Fault(pointer, "must be an object: `key`, `columns` and `keep` name its fields"))
            return None
        named = cast("dict[str, Any]", row)
        missing = [name for name in (*self._beside, *(self._columns or ())) if name not in named]
        if missing:
            found.append(Fault(pointer, f"lacks the field {missing[0]}"))
            return None
        columns = self._columns
        if columns is None and all(name in named for name in self._names):
            columns = self._names
        if columns is None:
            columns = self._others(named, pointer, found)
            if columns is None:
                return None
        if len(self._names) > 1:
            return {name: named[name] for name in columns}, None
        if len(columns) == 1 and (isinstance(named[columns[0]], list) or self._takes_a_value):
            return named[columns[0]], None
        return [named[name] for name in columns], columns

    def _others(self, named: dict[str, Any], pointer: str, found: list[Fault]) -> Sequence[str] | None:
        """All columns but the key and the kept, in the order of the first row; one list for the model's only input."""
        if len(self._names) > 1 or self._spec.text is not None or len(self._spec.inputs[0].shape) != 1:
            lacking = next(name for name in self._names if name not in named)
            found.append(Fault(pointer, f"lacks the input {lacking}"))
            return None
        rest = [name for name in named if name not in self._beside]
        if self._rest is None:
            self._rest = rest
        elif set(rest) != set(self._rest):
            odd = min(set(rest) ^ set(self._rest))
            found.append(Fault(f"{pointer}/{escape(odd)}", "is not in every row"))
            return None
        return self._rest


def _told(fault: Fault, start: int, columns: Sequence[Sequence[str] | None]) -> Fault:
    """A fault of a job's rows as one of these: /inputs/3/0 may be /input/rows/1003/f1."""
    _, _, *steps = fault.pointer.split("/")
    if not steps:
        return Fault(_POINTER, fault.detail)
    row = int(steps[0])
    stacked = columns[row]
    if stacked is not None and len(steps) > 1:
        steps[1] = escape(stacked[int(steps[1])])
    return Fault("/".join([_POINTER, str(start + row), *steps[1:]]), fault.detail)


def _invalid(faults: list[Fault]) -> InvalidRequestError:
    return InvalidRequestError("The rows do not fit the model.", faults=tuple(faults))
