"""Which columns the model reads and what the output has: a mapper between record batches and the model's tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchline.batch import BatchFault, DataSet
from batchline.data import column_arrays
from batchline.data.bare_columns import bare, bare_type, some, viewless
from batchline.data.column_arrays import Array, Column, Faults, is_text, leaf_fits, list_fits, plain_type
from batchline.data.contract import EXACT_AS_TEXT, FROM_PATH, MAYBE_NUMBERS, ROW, UNTYPED, Rows, marked
from batchline.errors import Fault, InvalidRequestError, SourceError
from batchline.model import ModelSpec, TensorSpec

TEXT = "text"
"""The column of texts that a model with a text front takes."""
CODE = "code"
MESSAGE = "message"
ERROR = "error"
"""In the lines of the default sink, of a row that has no outputs."""
KEY = "key"
"""How the errors part calls a key whose own name is one of its other columns'."""

_PANDAS_INDEX = re.compile(r"__index_level_[0-9]+__")
"""How pandas names an index without a name when it writes Parquet; no model means it."""

_BAD = "invalid_columns"
_INPUT = "input.columns"


@dataclass(frozen=True, slots=True)
class Mapped:
    """Rows of one record batch as the model takes them: M of its N rows, those without a fault."""

    columns: dict[str, Column]
    """Input -> [M, *shape], or a list of M where shapes differ; `text` -> a list of M texts."""
    at: NDArray[np.int64] | None
    """Offsets of the M rows within the batch, ascending; None: all N."""
    faults: Mapping[int, str]
    """Offset within the batch -> what is wrong, for people."""


@dataclass(frozen=True, slots=True)
class _Feed:
    """One input and the columns that it is made of."""

    tensor: TensorSpec | None
    """None: the text of a model with a text front."""
    names: Sequence[str]
    is_list: bool


class Mapper:
    """Between the columns of one data set and the tensors of one model; safe to share among threads."""

    def __init__(self, spec: ModelSpec, data: DataSet, schema: pa.Schema) -> None:
        """`schema`: of the source, all columns.

        Raises:
            InvalidRequestError: the columns do not fit the model; faults name each.
        """
        chosen = _Choice(spec, data, schema)
        if chosen.faults:
            faults = tuple(Fault(f"/{(f.param or '').replace('.', '/')}", f.message) for f in chosen.faults)
            raise InvalidRequestError(chosen.faults[0].message, faults=faults)
        self._spec = spec
        self._feeds = chosen.feeds
        self._passed = chosen.passed
        self.key = data.input.key
        fed = [name for feed in self._feeds for name in feed.names]
        self.reads: list[str] = list(dict.fromkeys([*fed, *self._passed]))
        """What `Source.read` should give."""
        self.texts = chosen.as_text
        """Those of them that it should give as text."""
        types = {n: pa.string() if n in chosen.exact else schema.field(n).type for n in self._passed}
        passed = [pa.field(name, column_arrays.kept_type(kind)) for name, kind in types.items()]
        self._numbered = _is_numbered(data)
        self.schema = _output(spec, data, passed)
        """Of the output: `row` if there is no key (in the default sink always), key, kept columns, outputs."""
        clashes = self.key in (ROW, CODE, MESSAGE)
        key = [passed[0].with_name(KEY) if clashes else passed[0]] if self.key is not None else []
        number = pa.field(ROW, pa.int64(), nullable=False)
        self.error_schema = pa.schema([number, *key, pa.field(CODE, pa.string()), pa.field(MESSAGE, pa.string())])

    def arrays(self, rows: Rows, *, only: Sequence[int] | None = None, where: str = "the data set") -> Mapped:
        """The model's inputs of N rows.

        Args:
            rows: as the source gave them, with at least the columns `reads`.
            only: offsets of the rows to do, ascending; None for all.
            where: the file or table, for the message of an error.

        Raises:
            SourceError: a column has another type than was planned; names it.
        """
        faults: Faults = dict(rows.faults) if only is None else {r: rows.faults[r] for r in only if r in rows.faults}
        at = None if only is None else np.asarray(only, np.int64)
        if faults:
            every = np.arange(rows.batch.num_rows) if at is None else at
            at = np.setdiff1d(every, np.fromiter(faults, np.int64), assume_unique=True)
        batch = rows.batch if at is None else some(rows.batch, at)
        columns, bad = self._columns(batch, where)
        if bad:
            good = np.setdiff1d(np.arange(batch.num_rows), np.fromiter(bad, np.int64), assume_unique=True)
            faults |= {row if at is None else int(at[row]): why for row, why in bad.items()}
            at = good if at is None else at[good]
            columns = {name: _taken(column, good) for name, column in columns.items()}
        return Mapped(columns, at, faults)

    def _columns(self, batch: pa.RecordBatch, where: str) -> tuple[dict[str, Column], Faults]:
        columns: dict[str, Column] = {}
        faults: Faults = {}
        for feed in self._feeds:
            found = [bare(batch.column(name)) for name in feed.names]
            for at, (name, column) in enumerate(zip(feed.names, found, strict=True)):
                if feed.tensor and _maybe_numbers(batch.schema.field(name)) and _takes_numbers(feed):
                    found[at], bad = column_arrays.numbers_of(column, feed.tensor)
                    faults |= {row: f"column {name}: {why}" for row, why in bad.items() if row not in faults}
                elif not _fits(column.type, feed):
                    raise SourceError(f"{where}: the column {name!r} is {column.type}, unlike the rows before.")
            if feed.tensor is None:
                columns[TEXT], bad = _texts(found[0])
                told: Callable[[str], str] = lambda why, name=feed.names[0]: f"column {name}: {why}"  # noqa: E731
            else:
                columns[feed.tensor.name], bad = self._tensor(found, feed, feed.tensor)
                told = lambda why, feed=feed: _named(why, feed)  # noqa: E731
            faults |= {row: told(why) for row, why in bad.items() if row not in faults}
        for name in self._passed:
            _, bad = self._passed_as(name, batch.column(name))
            faults |= {row: f"column {name}: {why}" for row, why in bad.items() if row not in faults}
        return columns, faults

    def _tensor(self, found: Sequence[pa.Array[Any]], feed: _Feed, tensor: TensorSpec) -> tuple[Column, Faults]:
        missing = self._spec.policy.allow_missing
        if feed.is_list:
            return column_arrays.lists(found[0], tensor, allow_missing=missing)
        if not tensor.shape:
            return column_arrays.leaves(found[0], tensor, allow_missing=missing)
        return column_arrays.stack(found, tensor, allow_missing=missing)

    def output(
        self,
        batch: pa.RecordBatch,
        at: Sequence[int] | NDArray[np.int64] | None,
        first_row: int,
        outputs: Mapping[str, Column],
    ) -> pa.RecordBatch:
        """Rows of the output, by `schema`.

        Args:
            batch: N rows of the source.
            at: offsets of the M rows that succeeded, ascending; None: all N.
            first_row: number of the batch's first row within the whole.
            outputs: output -> [M, *shape], or a list of M.

        Raises:
            SourceError: a kept column has a value that does not fit the planned type.
            ModelError: an output has another shape than the model declares.
        """
        offsets = None if at is None else np.asarray(at, np.int64)
        arrays = [self._numbers(batch, offsets, first_row)] if self._numbered else []
        arrays += self._passed_on(batch, offsets, self._passed)
        for tensor in self._spec.outputs:
            arrays.append(column_arrays.to_arrow(outputs[tensor.name], tensor))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def errors(
        self, batch: pa.RecordBatch, at: Sequence[int], first_row: int, codes: Sequence[str], messages: Sequence[str]
    ) -> pa.RecordBatch:
        """Rows of the errors part, by `error_schema`; as for `output`, with a code and a message for each of `at`."""
        offsets = np.asarray(at, np.int64)
        key = self._passed_on(batch, offsets, self._passed[:1]) if self.key is not None else []
        told = [pa.array(codes, pa.string()), pa.array(messages, pa.string())]
        return pa.RecordBatch.from_arrays(
            [self._numbers(batch, offsets, first_row), *key, *told], schema=self.error_schema
        )

    def _numbers(self, batch: pa.RecordBatch, at: NDArray[np.int64] | None, first_row: int) -> pa.Array[Any]:
        return pa.array((np.arange(batch.num_rows, dtype=np.int64) if at is None else at) + first_row)

    def _passed_on(
        self, batch: pa.RecordBatch, at: NDArray[np.int64] | None, names: Sequence[str]
    ) -> list[pa.Array[Any]]:
        taken = None if at is None or len(at) == batch.num_rows else at
        arrays: list[pa.Array[Any]] = []
        for name in names:
            column = viewless(batch.column(name))
            arrays.append(self._passed_as(name, column if taken is None else column.take(taken))[0])
        return arrays

    def _passed_as(self, name: str, column: pa.Array[Any]) -> tuple[pa.Array[Any], Faults]:
        """A kept column as it was planned; null where it does not fit."""
        wanted = self.schema.field(name).type
        column = column_arrays.kept(column)
        if column.type == wanted:
            return column, {}
        try:
            return column_arrays.exactly(column, wanted)
        except pa.ArrowNotImplementedError as e:
            raise SourceError(f"The column {name!r} has values of type {column.type}, not {wanted}.") from e


def check(spec: ModelSpec, data: DataSet, schema: pa.Schema) -> list[BatchFault]:
    """What is wrong with the columns of a data set for a model; empty if nothing."""
    return _Choice(spec, data, schema).faults


def typeless_output(spec: ModelSpec, data: DataSet) -> pa.Schema:
    """The schema of the output of no rows, whose source tells no types: key and kept columns are of type null."""
    key = [data.input.key] if data.input.key is not None else []
    return _output(spec, data, [pa.field(name, pa.null()) for name in dict.fromkeys([*key, *data.output.keep])])


def _output(spec: ModelSpec, data: DataSet, passed: Sequence[pa.Field[Any]]) -> pa.Schema:
    head = [pa.field(ROW, pa.int64(), nullable=False)] if _is_numbered(data) else []
    return pa.schema([*head, *passed, *(pa.field(t.name, column_arrays.arrow_type(t)) for t in spec.outputs)])


def _is_numbered(data: DataSet) -> bool:
    return data.input.key is None or _is_default(data)


def _is_default(data: DataSet) -> bool:
    """Whether the output is lines in Postgres."""
    return data.output.uri is None and data.output.table is None


class _Choice:
    """Which column feeds which input, and every reason why not."""

    def __init__(self, spec: ModelSpec, data: DataSet, schema: pa.Schema) -> None:
        self.faults: list[BatchFault] = []
        self.feeds: list[_Feed] = []
        self._spec = spec
        self._types = {field.name: field.type for field in schema}
        self.texts = {field.name for field in schema if _maybe_numbers(field)}
        """Columns of text that numbers are read from."""
        self.untyped = {field.name for field in schema if marked(field, UNTYPED)}
        """Columns that can be had as text, whatever their type."""
        self.exact = {field.name for field in schema if marked(field, EXACT_AS_TEXT)}
        """Columns of floats that are passed on as text, to keep their digits."""
        self._in_path = {field.name for field in schema if marked(field, FROM_PATH)}
        self.passed = self._passed_through(data)
        if self.faults:
            return
        given = data.input.columns
        if given is not None:
            for name in given:
                self._known(name, _INPUT)
        if not self.faults:
            self._choose(given)
        for feed in self.feeds:
            self._check(feed)

    @property
    def as_text(self) -> frozenset[str]:
        """Columns that are read as text though they look like something else.

        They are what the model takes as text, and kept numbers, which may be more than a number further down: `007`.
        """
        fed = {name for feed in self.feeds if _takes_text(feed) for name in feed.names}
        numbers = (pa.types.is_integer, pa.types.is_floating)
        kept = {name for name in self.passed if any(is_kind(self._types[name]) for is_kind in numbers)}
        return frozenset((fed | kept) & self.untyped) | self.exact.intersection(self.passed)

    def _fault(self, message: str, param: str = _INPUT) -> None:
        self.faults.append(BatchFault(_BAD, message, param=param))

    def _known(self, name: str, param: str) -> bool:
        if name in self._types:
            return True
        self._fault(f"There is no column {name!r}; there are {_listed(list(self._types))}.", param)
        return False

    def _passed_through(self, data: DataSet) -> list[str]:
        """Key and kept columns, each once."""
        key, keep = data.input.key, data.output.keep
        wanted = [(key, "input.key")] if key is not None else []
        wanted += [(name, "output.keep") for name in keep if name != key]
        outputs = {tensor.name for tensor in self._spec.outputs}
        for name, param in wanted:
            if not self._known(name, param):
                continue
            if name in outputs:
                self._fault(f"The column {name!r} has the name of an output of {self._spec.name}.", param)
            elif name == ROW and _is_numbered(data):
                self._fault(f"The column {ROW!r} has the name of the row's number: rename it.", param)
            elif name == ERROR and name != key and _is_default(data):
                self._fault(f"The column {ERROR!r} has the name of what tells of rows that fail: rename it.", param)
        taken = {ROW, ERROR} if _is_default(data) else {ROW} if _is_numbered(data) else set[str]()
        for name in sorted(outputs & taken):
            self._fault(
                f"{self._spec.name} has an output {name!r}, which each line has anyway: give a key and an `output`.",
                "output",
            )
        return list(dict.fromkeys(name for name, _ in wanted))

    def _choose(self, given: Sequence[str] | None) -> None:
        inputs = self._spec.inputs
        unmeant = {name for name in self._types if _PANDAS_INDEX.fullmatch(name)} | self._in_path
        others = [name for name in self._types if name not in self.passed and name not in unmeant]
        rest = others if given is None else list(given)
        if self._spec.text is not None:
            self._choose_text(rest, given)
        elif given is None and all(tensor.name in self._types for tensor in inputs):
            self.feeds = [self._feed(tensor, [tensor.name]) for tensor in inputs]
        elif len(inputs) == 1:
            self.feeds = [self._feed(inputs[0], rest)]
        elif set(rest) == {tensor.name for tensor in inputs}:
            self.feeds = [self._feed(tensor, [tensor.name]) for tensor in inputs]
        else:
            names = ", ".join(tensor.name for tensor in inputs)
            self._fault(f"{self._spec.name} has the inputs {names}: name the columns like them.")

    def _choose_text(self, rest: list[str], given: Sequence[str] | None) -> None:
        if given is None and TEXT in self._types:
            rest = [TEXT]
        elif given is None and len(texts := [n for n in rest if is_text(plain_type(self._types[n]))]) == 1:
            rest = texts
        if len(rest) == 1:
            self.feeds = [_Feed(None, rest, is_list=False)]
        else:
            self._fault(f"{self._spec.name} reads one column of text: name it in `columns`.")

    def _feed(self, tensor: TensorSpec, names: list[str]) -> _Feed:
        kind = plain_type(bare_type(self._types[names[0]])) if len(names) == 1 else pa.null()
        return _Feed(tensor, names, column_arrays.is_list(kind) or len(tensor.shape) > 1)

    def _check(self, feed: _Feed) -> None:
        tensor = feed.tensor
        want = 1 if tensor is None or feed.is_list or not tensor.shape else tensor.shape[0]
        if want is not None and len(feed.names) != want and tensor is not None:
            axes = ", ".join("any" if axis is None else str(axis) for axis in tensor.shape)
            self._fault(
                f"{self._spec.name} reads [{axes}] of {tensor.name} a row; {len(feed.names)} columns were found: "
                f"{_listed(list(feed.names))}."
            )
            return
        if not feed.names:
            self._fault("There is no column for the model to read.")
        for name in feed.names:
            readable = (_takes_numbers(feed) and name in self.texts) or (_takes_text(feed) and name in self.untyped)
            if not (_fits(self._types[name], feed) or readable):
                kind = "text" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                told = f"The column {name!r} is {self._types[name]}; {self._spec.name} takes {kind}."
                self._fault(f"{told} {_todo(self._types[name], feed)}")


def _todo(kind: pa.DataType, feed: _Feed) -> str:
    """What to do with a column of a type that does not fit."""
    kind, tensor = plain_type(bare_type(kind)), feed.tensor
    if feed.is_list and tensor is not None:
        axes = " x ".join("any" if axis is None else str(axis) for axis in tensor.shape)
        return f"Make {'nested ' * (len(tensor.shape) > 1)}lists of {axes} numbers of it."
    if _takes_text(feed):
        return "Make text of it, or name other columns in `columns`."
    if column_arrays.is_list(kind) or pa.types.is_struct(kind):
        return "Give each of its values a column."
    wanted = "true and false" if tensor is not None and tensor.dtype == "BOOL" else "numbers"
    return f"Make {wanted} of it, or name other columns in `columns`."


def _fits(kind: pa.DataType, feed: _Feed) -> bool:
    kind = bare_type(kind)
    if feed.tensor is None:
        return is_text(plain_type(kind)) or pa.types.is_null(kind)
    return list_fits(kind, feed.tensor) if feed.is_list else leaf_fits(kind, feed.tensor)


def _maybe_numbers(field: pa.Field[Any]) -> bool:
    return is_text(field.type) and marked(field, MAYBE_NUMBERS)


def _takes_numbers(feed: _Feed) -> bool:
    return feed.tensor is not None and not feed.is_list and feed.tensor.dtype not in ("BYTES", "BOOL")


def _takes_text(feed: _Feed) -> bool:
    return feed.tensor is None or (feed.tensor.dtype == "BYTES" and not feed.is_list)


def _named(why: str, feed: _Feed) -> str:
    at, found, rest = why.partition("\0")
    return f"column {feed.names[int(at)]}: {rest}" if found else f"column {feed.names[0]}: {why}"


def _texts(column: pa.Array[Any]) -> tuple[list[str], Faults]:
    if pa.types.is_null(column.type):
        return [""] * len(column), dict.fromkeys(range(len(column)), "there is no value")
    values: list[str | None] = column.to_pylist()
    if not column.null_count:
        return [value or "" for value in values], {}
    return [value or "" for value in values], {at: "there is no value" for at, v in enumerate(values) if v is None}


def _taken(column: Column, good: NDArray[np.int64]) -> Column:
    if isinstance(column, np.ndarray):
        return column[good]
    kept: list[Array] | list[str] = [column[at] for at in good.tolist()]  # pyright: ignore[reportAssignmentType]
    return kept


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"
