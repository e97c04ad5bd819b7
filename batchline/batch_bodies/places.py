"""Where a data set comes from and goes to, as far as a body tells: places the operator allows, names, columns."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from batchline import webhook
from batchline.batch import Condition, Input, Output
from batchline.data import places_of, table_names, uris
from batchline.errors import Fault, SourceError
from batchline.model import ModelSpec
from batchline.settings import Settings
from batchline.wire import InputBody

_MAX_URI = 2048
_MAX_COLUMNS = 10_000
_MAX_NAME = 200
_SCHEMA = "public"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNARY = ("is null", "is not null")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator allows; of the settings of the same names."""

    data_roots: tuple[str, ...] = ()
    databases: frozenset[str] = frozenset()
    """Names, not addresses."""
    files_kept_s: float = Settings.files_kept_s
    webhooks: webhook.Allowed = field(default_factory=webhook.Allowed)
    """Private places that webhooks may lead to."""

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """Raise SettingsError when they cannot be meant so."""
        places, allowed = places_of(settings), webhook.parse_allowed(settings.webhook_allow)
        return cls(places.data_roots, frozenset(places.databases), settings.files_kept_s, allowed)


def input_of(given: InputBody, rules: Rules, faults: list[Fault]) -> Input:
    """The input without its rows, with format and database filled in; what is wrong goes to `faults`."""
    inline = given.rows is not msgspec.UNSET
    sources = ("file_id", given.file_id), ("uri", given.uri), ("table", given.table)
    named = [n for n, there in (("rows", inline), *sources) if there]
    if len(named) != 1:
        told = f"has {' and '.join(named)}" if named else "names no rows"
        faults.append(Fault("/input", f"{told}; give exactly one of rows, file_id, uri and table"))
        return Input()
    kind = named[0]
    faults += _misplaced(given, kind)
    faults += _name_faults("/input/key", [given.key] if given.key is not None else [])
    faults += _name_faults("/input/columns", given.columns)
    form, database = given.format, given.database
    if kind == "uri":
        faults += _uri_faults("/input/uri", given.uri or "", rules, folder=False)
        form = form or format_of(given.uri or "")
        if form is None:
            faults.append(Fault("/input/format", "must be jsonl, csv or parquet: the URI does not tell"))
    elif kind == "table":
        database = _database("/input", given.table or "", database, rules, faults)
        if given.key is None:
            faults.append(Fault("/input/key", "is needed: a table is cut by its key, and rows are named by it"))
        faults += (fault for i, c in enumerate(given.where or ()) for fault in _condition_faults(i, c))
    return Input(
        uri=given.uri,
        format=form,
        database=database,
        table=given.table,
        where=given.where,
        key=given.key,
        columns=given.columns,
    )


def output_of(given: Output, wanted: Input, rules: Rules, faults: list[Fault]) -> Output:
    """The output with its database filled in; what is wrong goes to `faults`."""
    faults += _name_faults("/output/keep", given.keep)
    if given.uri is not None and given.table is not None:
        faults.append(Fault("/output", "has uri and table; give one of them, or none to read /results"))
        return given
    kind = "uri" if given.uri is not None else "table" if given.table is not None else "results"
    for name, belongs in (("format", "uri"), ("mode", "table"), ("database", "table")):
        if getattr(given, name) is not None and kind != belongs:
            faults.append(Fault(f"/output/{name}", f"belongs to a {belongs}"))
    if given.uri is not None:
        faults += _uri_faults("/output/uri", given.uri, rules, folder=True)
        if given.format is None:
            faults.append(Fault("/output/format", "must be jsonl, csv or parquet"))
    if given.table is None:
        return given
    if given.mode is None:
        faults.append(Fault("/output/mode", "must be upsert, append or replace"))
    if given.mode == "upsert" and wanted.key is None:
        faults.append(Fault("/input/key", "is needed: rows are upserted by their key"))
    database = _database("/output", given.table, given.database, rules, faults)
    source = _full_name(wanted.table) if wanted.table is not None and wanted.database == database else None
    if given.mode == "append" and source == _full_name(given.table):
        faults.append(Fault("/output/table", "is the input, and would grow while it is read: upsert, or name another"))
    return msgspec.structs.replace(given, database=database)


def _full_name(table: str) -> tuple[str, str]:
    try:
        schema, name = table_names.parse(table)
    except ValueError:  # a fault already
        return "", table
    return schema or _SCHEMA, name


def column_faults(wanted: Input, output: Output, spec: ModelSpec) -> Iterator[Fault]:
    """What of the named columns cannot be, whatever the data: their number, and names that come twice in the output."""
    if wanted.columns is not None:
        yield from _columns_faults(wanted.columns, spec)
    outputs = {t.name for t in spec.outputs}
    if wanted.key in outputs:
        yield Fault("/input/key", f"is the name of an output of {spec.name}; the output would have it twice")
    for i, name in enumerate(output.keep):
        taken = "the key" if name == wanted.key else f"an output of {spec.name}" if name in outputs else None
        taken = "the number of the row" if wanted.key is None and name == "row" else taken
        if taken:
            yield Fault(f"/output/keep/{i}", f"is the name of {taken}; the output would have it twice")


def _columns_faults(columns: Sequence[str], spec: ModelSpec) -> Iterator[Fault]:
    if spec.text is not None:
        if len(columns) != 1:
            yield Fault("/input/columns", f"must be one column: {spec.name} takes a text")
        return
    if len(spec.inputs) > 1:
        names = {t.name for t in spec.inputs}
        if set(columns) != names:
            yield Fault("/input/columns", f"must be the inputs of {spec.name}: {', '.join(sorted(names))}")
        return
    tensor = next(iter(spec.inputs))
    many = tensor.shape[-1] if len(tensor.shape) == 1 else 1
    if many is not None and len(columns) not in (1, many):
        yield Fault("/input/columns", f"has {len(columns)} columns where {tensor.name} takes {many}")


def _misplaced(given: InputBody, kind: str) -> Iterator[Fault]:
    for name, belongs in (("format", "uri"), ("database", "table"), ("where", "table")):
        if getattr(given, name) is not None and kind != belongs and (name, kind) != ("format", "file_id"):
            yield Fault(f"/input/{name}", f"belongs to a {belongs}, and the input is {kind}")


def _name_faults(pointer: str, names: Sequence[str] | None) -> Iterator[Fault]:
    """Names of columns: some, each once, none empty. (That there is such a column is found when the data is opened.)"""
    if names is None:
        return
    if pointer.endswith("columns") and not names:
        yield Fault(pointer, "must name a column; leave it out for all")
    if len(names) > _MAX_COLUMNS or len(set(names)) < len(names):
        yield Fault(pointer, f"must name each column once, and at most {_MAX_COLUMNS}")
    if any(not name or len(name) > _MAX_NAME or "\0" in name for name in names):
        yield Fault(pointer, f"must be names of 1 to {_MAX_NAME} characters")


def _uri_faults(pointer: str, uri: str, rules: Rules, *, folder: bool) -> Iterator[Fault]:
    if len(uri) > _MAX_URI or _CONTROL.search(uri):
        yield Fault(pointer, f"must be at most {_MAX_URI} characters, none of them a control character")
    elif folder and uris.has_wildcards(uri):
        yield Fault(pointer, "names one folder, so it cannot have *, ? or [")
    elif not uri.startswith(("s3://", "file://")):
        yield Fault(pointer, "must begin with s3:// or file://")
    elif uri.startswith("file://") and not rules.data_roots:
        yield Fault(pointer, "file:// is not allowed here: the operator names its folders in BATCHLINE_DATA_ROOTS")
    else:
        try:
            if uri.startswith("s3://"):
                uris.s3_uri(uri)
                return
            path = uris.local_path(uri) if folder else uris.local_pattern(uri)
        except SourceError as e:
            yield Fault(pointer, e.detail)
            return
        if ".." in path.split("/"):
            yield Fault(pointer, "must be a path without ..")
        elif not any(_is_below(posixpath.normpath(path), root) for root in rules.data_roots):
            yield Fault(pointer, "is in none of the folders that the operator allows (BATCHLINE_DATA_ROOTS)")


def _is_below(path: str, root: str) -> bool:
    """By name only; whoever opens it looks at links."""
    return posixpath.commonpath((posixpath.normpath(f"/{path}"), posixpath.normpath(f"/{root}"))) == "/" + root.strip(
        "/"
    )


def format_of(uri: str) -> uris.Format | None:
    """The format that a URI or the name of a file tells, if it does."""
    try:
        return uris.format_of(uri, None)
    except SourceError:
        return None


def _database(pointer: str, table: str, name: str | None, rules: Rules, faults: list[Fault]) -> str | None:
    try:
        table_names.parse(table)
    except ValueError as e:
        faults.append(Fault(f"{pointer}/table", str(e)))
    if not rules.databases:
        faults.append(
            Fault(f"{pointer}/table", "no database is known here: the operator names them in BATCHLINE_DATABASES")
        )
    elif name is None and len(rules.databases) == 1:
        return next(iter(rules.databases))
    elif name not in rules.databases:
        faults.append(Fault(f"{pointer}/database", f"must be one of {', '.join(sorted(rules.databases))}"))
    return name


def _condition_faults(index: int, condition: Condition) -> Iterator[Fault]:
    pointer, value = f"/input/where/{index}", condition.value
    if not 0 < len(condition.column) <= _MAX_NAME or "\0" in condition.column:
        yield Fault(f"{pointer}/0", f"must be the name of a column, 1 to {_MAX_NAME} characters")
    if condition.op in _UNARY:
        if value is not None:
            yield Fault(f"{pointer}/2", f"must not be: `{condition.op}` takes no value")
    elif value is None:
        yield Fault(pointer, f"lacks a value: [column, {condition.op!r}, value]")
    elif isinstance(value, list) != (condition.op == "in"):
        yield Fault(f"{pointer}/2", "`in` takes a list, and only `in` does")
    elif value == []:
        yield Fault(f"{pointer}/2", "must not be an empty list")
    elif "\0" in str(value):
        yield Fault(f"{pointer}/2", "has a NUL character")
    elif any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in (value if isinstance(value, list) else [value])):
        yield Fault(f"{pointer}/2", "is a whole number beyond 64 bits")
