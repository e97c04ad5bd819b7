"""Pages of result lines as one Arrow table: outputs in the types that the model declares, faults in `error`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from batchline.client.batch_results import LinePage, arrow

if TYPE_CHECKING:
    import pyarrow as pa

ROW, ERROR = "row", "error"

_NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_TYPES = {"BOOL": "bool_", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BYTES": "string"}
_ROWS = msgspec.json.Decoder(list[dict[str, object]])

Outputs = Sequence[Mapping[str, object]]
"""As a version of a model lists them: `{name, dtype, shape}`."""


class Tables:
    """Collects pages; columns are `row`, the key, kept columns, outputs, and `error` {code, message}.

    Results come as JSON: the types of key and kept columns are those that their values look like. Numbers of the
    outputs have the model's own type, so that they are its very bits. A row without a result has nulls and an error.
    """

    def __init__(self, outputs: Outputs | None) -> None:
        """`outputs`: what the model declares to give; None when nobody can tell, and all types are guessed."""
        pa = arrow()
        self._types = {str(tensor["name"]): _type_of(tensor) for tensor in outputs or ()}
        known = {name: _read_as(kind) for name, kind in self._types.items()}
        self._known = {ROW: pa.int64()} | known | {ERROR: pa.struct([("code", pa.string()), ("message", pa.string())])}
        self._pages: list[pa.Table] = []

    def add(self, page: LinePage) -> None:
        """Append a page; one that looks like the first is read by Arrow itself, which is many times as fast."""
        if page.lines:
            table = self._alike(page) if self._pages else None
            self._pages.append(self._decoded(page.lines) if table is None else table)

    def table(self) -> pa.Table:
        """All rows; without any, the columns that the model tells of."""
        pa = arrow()
        if not self._pages:
            self._pages.append(pa.table({name: pa.array([], kind) for name, kind in self._known.items()}))
        table = _joined(self._pages)
        outputs = [name for name in self._types if name in table.column_names]
        others = [name for name in table.column_names if name not in (*outputs, ERROR)]
        table = table.select([*others, *outputs, ERROR])
        for name in outputs:
            at, wanted = table.column_names.index(name), self._types[name]
            if table.schema.field(name).type == self._known[name] != wanted:
                table = table.set_column(at, name, table.column(name).cast(wanted, safe=False))
        return table

    def _alike(self, page: LinePage) -> pa.Table | None:
        import pyarrow.json as pajson  # noqa: PLC0415 - the SDK loads pyarrow for whoever asks for a table

        pa = arrow()
        options = pajson.ParseOptions(
            explicit_schema=self._pages[0].schema, newlines_in_values=False, unexpected_field_behavior="error"
        )
        text = b"\n".join(page.lines)
        try:
            return pajson.read_json(pa.BufferReader(text), pajson.ReadOptions(block_size=len(text) + 1), options)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None

    def _decoded(self, lines: Sequence[bytes]) -> pa.Table:
        rows = list(map(_told, _ROWS.decode(b"[" + b",".join(lines) + b"]")))
        names = dict.fromkeys([*(name for row in rows for name in row), *self._known])
        return arrow().table({name: _array([row.get(name) for row in rows], self._known.get(name)) for name in names})


def _told(row: dict[str, object]) -> dict[str, object]:
    """A key whose own name is `error` is called `key`, as it is in the lines of rows that failed."""
    if ERROR in row and not isinstance(row[ERROR], dict):
        row["key"] = row.pop(ERROR)
    return row


def _type_of(tensor: Mapping[str, object]) -> Any:
    pa = arrow()
    dtype = str(tensor["dtype"])
    kind = getattr(pa, _TYPES.get(dtype, dtype.lower()))()
    for _ in cast("Sequence[object]", tensor["shape"]):
        kind = pa.list_(kind)
    return kind


def _read_as(kind: Any) -> Any:
    """What values of this type are read from JSON as: Arrow's reader knows no float16."""
    pa = arrow()
    if pa.types.is_list(kind):
        return pa.list_(_read_as(kind.value_type))
    return pa.float32() if pa.types.is_float16(kind) else kind


def _array(values: list[Any], kind: Any) -> Any:
    """A column of one type, or of that which all values fit; what has none in common is JSON text."""
    pa = arrow()
    wrong = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)
    if kind is not None:
        for found in (values, map(_number, values)):
            try:
                return pa.array(found, kind)
            except wrong:
                continue
    for found, wanted in ((values, None), (values, pa.uint64()), (list(map(_number, values)), None)):
        try:
            array = pa.array(found, wanted)
        except wrong:
            continue
        only = pa.types.is_string(array.type) and set(values) - {None} <= _NON_FINITE.keys()
        return pa.array(map(_number, values), pa.float64()) if only and array.null_count < len(array) else array
    return pa.array([None if v is None else _text(v) for v in values], pa.string())


def _number(value: Any) -> Any:
    """`NaN`, `Infinity` and `-Infinity` beside numbers are numbers too."""
    if isinstance(value, list):
        return [_number(v) for v in cast("list[Any]", value)]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _joined(pages: Sequence[pa.Table]) -> pa.Table:
    """Pages as one table; of two types that no type holds both, text is made."""
    pa = arrow()
    try:
        return pa.concat_tables(pages, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    kinds: dict[str, set[Any]] = {}
    for page in pages:
        for field in page.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, found in kinds.items() if len(found - {pa.null()}) > 1}
    return pa.concat_tables([_as_texts(page, mixed) for page in pages], promote_options="permissive")


def _as_texts(page: pa.Table, names: Iterable[str]) -> pa.Table:
    pa = arrow()
    for name in names:
        if name in page.column_names:
            texts = [None if v is None else _text(v) for v in page.column(name).to_pylist()]
            page = page.set_column(page.column_names.index(name), name, pa.array(texts, pa.string()))
    return page
