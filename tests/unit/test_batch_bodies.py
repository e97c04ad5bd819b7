"""What a body of POST /v1/batches may say, and the pointers of what it may not."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import stack

from batchline.batch import BatchStatus, BatchView, DataSet, Input, Output, Requests, show_file_id
from batchline.batch_bodies import Checked, Rules, blob_key, check, retry_of
from batchline.errors import BatchlineError, Fault, InvalidRequestError, NotFoundError
from batchline.model import ModelRecord, ModelSpec, TensorSpec, TextFront
from batchline.settings import Settings
from batchline.store.batch_contract import FileView

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
ROW = [0.5] * 64
RULES = Rules(("/data", "/more/data/"), frozenset({"shop"}))
SPECS = {
    "digits": stack.a_spec(version="3"),
    "pair": ModelSpec(
        "pair", "1", "e" * 64, 1,
        (TensorSpec("a", "FP32", ()), TensorSpec("b", "FP32", (2,))), (TensorSpec("y", "FP32", ()),),
    ),
    "three": ModelSpec("three", "1", "e" * 64, 1, (TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", ()),)),
    "words": ModelSpec(
        "words", "1", "e" * 64, 1, (TensorSpec("ids", "INT64", (None,)),), (TensorSpec("y", "FP32", ()),),
        text=TextFront(),
    ),
}  # fmt: skip
FILE = FileView(uuid.uuid4(), 1, "batch", "in.jsonl", 10, "files/in", NOW, None)
FILE_ID = show_file_id(FILE.id)


class Finds:
    """Models by name, all of them number 7, and one file."""

    def __init__(self, file: FileView = FILE) -> None:
        self._file = file

    def model(self, name: str, version: str | int | None) -> ModelRecord:
        if name not in SPECS:
            raise NotFoundError("There is no such model.", faults=(Fault("/model", "is no model here"),))
        return ModelRecord(7, SPECS[name], 0.0)

    def file(self, file_id: uuid.UUID) -> FileView | None:
        return self._file if file_id == self._file.id else None


def checked(body: Any, *, rules: Rules = RULES, tenant_id: int = 1, file: FileView = FILE) -> Checked:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return check(raw, tenant_id=tenant_id, finds=Finds(file), rules=rules, now=NOW)


def faults(body: Any, **more: Any) -> dict[str, str]:
    """Pointer -> what is wrong."""
    with pytest.raises(BatchlineError) as caught:
        checked(body, **more)
    return {f.pointer: f.detail for f in caught.value.faults}


def data_set(input: Any = None, output: Any = None, **fields: Any) -> dict[str, Any]:  # noqa: A002
    body = {"model": "digits", "input": {"rows": [ROW]} if input is None else input, **fields}
    return body if output is None else body | {"output": output}


def stored(body: Any) -> DataSet:
    return msgspec.json.decode(checked(body).batch.body, type=DataSet)


def lines(body: Any) -> list[Any]:
    rows = checked(body).rows
    assert rows is not None
    return [json.loads(line) for line in rows.jsonl.splitlines()]


REQUESTS = {"input_file_id": FILE_ID, "endpoint": "/v1/jobs", "completion_window": "24h"}


def test_a_body_of_openais_kind() -> None:
    """The file's blob, the endpoint and the window are stored; the deadline is the end of the window."""
    batch = checked(REQUESTS | {"metadata": {"k": "v"}, "output_expires_after": None}).batch
    assert msgspec.json.decode(batch.body, type=Requests) == Requests("files/in", "/v1/jobs", "24h")
    assert (batch.kind, batch.model_id, batch.input_file_id) == ("requests", None, FILE.id)
    assert (batch.window, batch.deadline_at) == (timedelta(days=1), None)
    assert batch.metadata == '{"k":"v"}'


@pytest.mark.parametrize(("window", "length"), [("90m", timedelta(minutes=90)), ("7d", timedelta(days=7))])
def test_windows(window: str, length: timedelta) -> None:
    """Minutes, hours and days."""
    assert checked(REQUESTS | {"completion_window": window}).batch.window == length


def test_files_that_cannot_be_the_input() -> None:
    """Unknown, another tenant's and of another purpose: the same pointer; the first two cannot be told apart."""
    unknown = faults(REQUESTS | {"input_file_id": show_file_id(uuid.uuid4())})
    assert unknown == faults(REQUESTS, tenant_id=2) == faults(REQUESTS | {"input_file_id": "nonsense"})
    output = FileView(FILE.id, 1, "batch_output", "o", 1, "b", NOW, None)
    assert "batch_output" in faults(REQUESTS, file=output)["/input_file_id"]


def test_an_uploaded_file_may_be_the_data_set() -> None:
    """Its blob is read, its format is told by its name or the body, and the batch keeps it from being swept."""
    batch = checked(data_set({"file_id": FILE_ID, "key": "id", "columns": ["a"]})).batch
    found = msgspec.json.decode(batch.body, type=DataSet).input
    assert (found.file, found.format, found.key, found.columns) == ("files/in", "jsonl", "id", ["a"])
    assert batch.input_file_id == FILE.id
    parquet = msgspec.json.decode(checked(data_set({"file_id": FILE_ID, "format": "parquet"})).batch.body, type=DataSet)
    assert parquet.input.format == "parquet"


@pytest.mark.parametrize("name", ["in", "in.csv.gz"])
def test_uploaded_files_that_cannot_be_the_data_set(name: str) -> None:
    """Unknown and another tenant's cannot be told apart; a name that tells no format needs one; none is inflated."""
    body = data_set({"file_id": FILE_ID})
    assert (
        faults(body, tenant_id=2) == faults(data_set({"file_id": "nonsense"})) == {"/input/file_id": "is no file here"}
    )
    file = FileView(FILE.id, 1, "batch", name, 10, "files/in", NOW, None)
    assert set(faults(body, file=file)) <= {"/input/format", "/input/file_id"}
    assert "/input" in faults(data_set({"file_id": FILE_ID, "uri": "s3://bucket/x.csv"}))


def test_inline_rows_become_a_file() -> None:
    """The rows are one a line, the batch points to the blob, and the file belongs to the tenant."""
    found = checked(b'{"model": "digits", "input": {"rows": [\n  %s\n]}}' % json.dumps(ROW, indent=1).encode())
    rows = found.rows
    assert rows is not None
    assert rows.jsonl == json.dumps(ROW, separators=(",", ":")).encode() + b"\n"
    assert (rows.file.tenant_id, rows.file.bytes, rows.file.blob) == (1, len(rows.jsonl), blob_key(rows.file.id))
    body = msgspec.json.decode(found.batch.body, type=DataSet)
    assert (body.model, body.version, body.input.file, body.input.format) == ("digits", "3", rows.file.blob, "jsonl")
    assert (found.batch.model_id, found.batch.input_file_id) == (7, rows.file.id)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("digits", {"rows": [ROW, {"x": ROW}]}),
        ("digits", {"rows": [{"x": ROW, "more": 1}]}),
        ("pair", {"rows": [{"a": 1, "b": [1, 2]}]}),
        ("pair", {"rows": [{"a": 1, "b": [1, 2], "id": 3}], "key": "id"}),
        ("three", {"rows": [{"f": 1, "g": 2, "h": 3}, {"h": 3, "g": 2, "f": 1}]}),
        ("three", {"rows": [{"id": "a", "f": 1, "g": 2, "h": 3}], "key": "id"}),
        ("three", {"rows": [{"f": 1, "g": 2, "h": 3, "i": 4}], "columns": ["i", "h", "g"]}),
        ("three", {"rows": [{"f": [1, 2, 3]}], "columns": ["f"]}),
        ("words", {"rows": ["one", "two"]}),
        ("words", {"rows": [{"text": "one", "id": 1}], "key": "id"}),
        ("words", {"rows": [{"title": "one"}], "columns": ["title"]}),
    ],
)
def test_rows_are_read_as_a_files_columns_would_be(model: str, given: dict[str, Any]) -> None:
    """Bare rows, objects of inputs, and objects of columns; they are kept as they came."""
    assert lines(data_set(given, model=model)) == given["rows"]


@pytest.mark.parametrize(
    ("model", "given", "pointer"),
    [
        ("digits", {"rows": []}, "/input/rows"),
        ("digits", {"rows": "x"}, "/input/rows"),
        ("digits", {"rows": [ROW] * 1500 + [ROW[1:]]}, "/input/rows/1500"),
        ("digits", {"rows": [ROW, [*ROW[1:], "x"]]}, "/input/rows/1/63"),
        ("digits", {"rows": [ROW], "key": "id"}, "/input/rows/0"),
        ("three", {"rows": [{"f": 1, "g": 2}]}, "/input/rows/0"),
        ("three", {"rows": [{"f": 1, "g": "x", "h": 1}]}, "/input/rows/0/g"),
        ("three", {"rows": [{"f": 1, "g": 2, "h": 3}, {"f": 1, "g": 2, "i": 3}]}, "/input/rows/1/h"),
        ("three", {"rows": [{"f": 1, "g": 2, "h": 3}], "key": "id"}, "/input/rows/0"),
        ("pair", {"rows": [{"a": 1}]}, "/input/rows/0"),
        ("pair", {"rows": [{"a": 10**30, "b": [1, 10**400], "id": 1}], "key": "id"}, "/input/rows/0/b/1"),
        ("words", {"rows": [1]}, "/input/rows/0"),
    ],
)
def test_rows_that_do_not_fit_are_named(model: str, given: dict[str, Any], pointer: str) -> None:
    """The pointer names the row, and the value where it can."""
    assert pointer in faults(data_set(given, model=model))


def test_kept_columns_are_neither_read_nor_lost() -> None:
    """`keep` takes fields out of what the model reads; the line still has them."""
    row = {"f": 1, "g": 2, "h": 3, "why": "x"}
    assert lines(data_set({"rows": [row]}, {"keep": ["why"]}, model="three")) == [row]


URI = {"uri": "file:///data/in/*.parquet"}
TABLE = {"table": "public.users", "key": "id"}


def test_what_can_be_told_is_filled_in() -> None:
    """The format by the name of the file, the database when there is one, the version by the catalogue."""
    assert stored(data_set({"uri": "s3://bucket/a/*.jsonl.gz"})).input.format == "jsonl"
    assert stored(data_set(URI)).input.format == "parquet"
    assert stored(data_set(TABLE)).input.database == "shop"
    assert stored(data_set(URI)).version == "3"


def test_where_is_kept_as_conditions() -> None:
    """Whole numbers stay whole."""
    where = [["signed_up", ">=", "2026-11-01"], ["id", "in", [9007199254740993, 2]], ["gone", "is null"]]
    kept = stored(data_set(TABLE | {"where": where})).input.where
    assert kept is not None
    assert (kept[1].value, kept[2].op) == ([9007199254740993, 2], "is null")


INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "/input"),
    "two of them": (URI | TABLE, "/input"),
    "the blob store": ({"file": "files/x"}, "/input/file"),
    "an unknown field": ({"dsn": "postgresql://"}, "/input/dsn"),
    "http": ({"uri": "http://host/x.csv"}, "/input/uri"),
    "no bucket": ({"uri": "s3:///x.csv"}, "/input/uri"),
    "a relative path": ({"uri": "file://data/x.csv"}, "/input/uri"),
    "dots": ({"uri": "file:///data/../etc/x.csv"}, "/input/uri"),
    "beside the root": ({"uri": "file:///database/x.csv"}, "/input/uri"),
    "outside": ({"uri": "file:///etc/passwd", "format": "csv"}, "/input/uri"),
    "NUL": ({"uri": "s3://bucket/\0.csv"}, "/input/uri"),
    "no format": ({"uri": "s3://bucket/x"}, "/input/format"),
    "a format of rows": ({"rows": [ROW], "format": "csv"}, "/input/format"),
    "SQL text": (TABLE | {"where": "id > 1"}, "/input/where"),
    "an operator of one's own": (TABLE | {"where": [["id", "~", "x"]]}, "/input/where/0/1"),
    "no value": (TABLE | {"where": [["id", "="]]}, "/input/where/0"),
    "a list for =": (TABLE | {"where": [["id", "=", [1]]]}, "/input/where/0/2"),
    "no list for in": (TABLE | {"where": [["id", "in", 1]]}, "/input/where/0/2"),
    "a value for null": (TABLE | {"where": [["id", "is null", 1]]}, "/input/where/0/2"),
    "a number of ages": (TABLE | {"where": [["id", "in", [1, 10**30]]]}, "/input/where/0/2"),
    "where on files": (URI | {"where": [["id", "=", 1]]}, "/input/where"),
    "no key": ({"table": "users"}, "/input/key"),
    "a query for a table": ({"table": "(SELECT 1) x", "key": "id"}, "/input/table"),
    "an unknown database": (TABLE | {"database": "postgresql://x"}, "/input/database"),
    "no columns": (URI | {"columns": []}, "/input/columns"),
    "columns twice": (URI | {"columns": ["a", "a"]}, "/input/columns"),
    "too few columns": (URI | {"columns": ["a", "b"]}, "/input/columns"),
    "key is an output": (URI | {"key": "label"}, "/input/key"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_are_refused(case: str) -> None:
    """With a pointer to the field."""
    given, pointer = INPUTS[case]
    assert pointer in faults(data_set(given))


OUTPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "two of them": ({"uri": "s3://b-1/x", "table": "t"}, "/output"),
    "no format": ({"uri": "s3://bucket/x/"}, "/output/format"),
    "a glob": ({"uri": "s3://bucket/*/", "format": "csv"}, "/output/uri"),
    "outside": ({"uri": "file:///tmp/x", "format": "csv"}, "/output/uri"),
    "no mode": ({"table": "scores"}, "/output/mode"),
    "an unknown mode": ({"table": "scores", "mode": "truncate"}, "/output/mode"),
    "a mode of files": ({"uri": "s3://bucket/x/", "format": "csv", "mode": "append"}, "/output/mode"),
    "upsert without a key": ({"table": "scores", "mode": "upsert"}, "/input/key"),
    "a name longer than 63 bytes": ({"table": "public." + "ü" * 32, "mode": "append"}, "/output/table"),
    "keeps the key": ({"keep": ["label"]}, "/output/keep/0"),
    "keeps twice": ({"keep": ["a", "a"]}, "/output/keep"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_that_are_refused(case: str) -> None:
    """With a pointer to the field."""
    output, pointer = OUTPUTS[case]
    assert pointer in faults(data_set(URI, output))


@pytest.mark.parametrize(
    ("source", "target"), [("public.users", "users"), ('"users"', "public.users"), ('a."users"', '"a".users')]
)
def test_nothing_is_appended_to_the_table_that_is_read(source: str, target: str) -> None:
    """With or without its schema; other modes add no rows, and another table may be anything."""
    given = {"table": source, "key": "id"}
    assert "/output/table" in faults(data_set(given, {"table": target, "mode": "append"}))
    for output in ({"table": target, "mode": "upsert"}, {"table": "b.users", "mode": "append"}):
        assert checked(data_set(given, output)).batch.kind == "data_set"


BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "neither kind": ({}, "/input_file_id"),
    "both kinds": (REQUESTS | data_set(), "/input_file_id"),
    "no input": ({"model": "digits"}, "/input"),
    "no model": ({"input": URI}, "/model"),
    "an unknown model": (data_set(model="nix"), "/model"),
    "an unknown field": (data_set(nix=1), "/nix"),
    "priority 10": (data_set(priority=10), "/priority"),
    "a threshold above 1": (data_set(error_threshold=1.5), "/error_threshold"),
    "a deadline that has passed": (data_set(deadline="2026-11-22T05:59:59Z"), "/deadline"),
    "a deadline beyond all years": (data_set(deadline="9999-12-31T23:59:59-12:00"), "/deadline"),
    "metadata of numbers": (data_set(metadata={"a": 1}), "/metadata"),
    "17 of metadata": (data_set(metadata={str(i): "" for i in range(17)}), "/metadata"),
    "a long value": (data_set(metadata={"k": "x" * 513}), "/metadata"),
    "a long key": (data_set(metadata={"k" * 65: "x"}), "/metadata"),
    "no window": ({k: v for k, v in REQUESTS.items() if k != "completion_window"}, "/completion_window"),
    "an odd window": (REQUESTS | {"completion_window": "soon"}, "/completion_window"),
    "a window of ages": (REQUESTS | {"completion_window": "31d"}, "/completion_window"),
    "another endpoint": (REQUESTS | {"endpoint": "/v1/chat/completions"}, "/endpoint"),
    "a model that is none": (REQUESTS | {"endpoint": "/v2/models/nix/infer"}, "/endpoint"),
    "kept for a minute": (
        REQUESTS | {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
        "/output_expires_after/seconds",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies_that_are_refused(case: str) -> None:
    """With a pointer to the field."""
    body, pointer = BODIES[case]
    assert pointer in faults(body)


def test_the_earlier_of_deadline_and_ttl_counts() -> None:
    """As for jobs."""
    body = data_set(deadline="2026-11-22T07:00:00Z", ttl_s=60)
    assert checked(body).batch.deadline_at == NOW + timedelta(seconds=60)


def test_without_roots_the_setting_is_named() -> None:
    """Whoever is refused can tell the operator what to set."""
    bare = Rules()
    assert "BATCHLINE_DATA_ROOTS" in faults(data_set(URI), rules=bare)["/input/uri"]
    assert "BATCHLINE_DATABASES" in faults(data_set(TABLE), rules=bare)["/input/table"]


def test_rules_are_read_from_the_settings() -> None:
    """Roots by colon, databases by white space, and of those only the names."""
    rules = Rules.of(Settings(data_roots="/a:/b/", databases="x=postgresql://u:p@h/x y=postgresql://h/y?a=b"))
    assert rules.data_roots == ("/a", "/b/")
    assert rules.databases == {"x", "y"}


def test_all_faults_are_told_at_once() -> None:
    """One answer names everything."""
    body = data_set({"uri": "http://x"}, {"table": "t"}, metadata=[1])
    assert set(faults(body)) >= {"/input/uri", "/input/format", "/output/mode", "/metadata"}


def test_what_is_no_json_is_malformed() -> None:
    """As everywhere."""
    with pytest.raises(BatchlineError) as caught:
        checked(b'{"model": "digits"')
    assert not isinstance(caught.value, InvalidRequestError)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(("status", "mode"), [("completed", "append"), ("failed", "replace"), ("cancelled", "replace")])
def test_a_retry_of_a_replace_appends_only_to_what_was_replaced(status: str, mode: str) -> None:
    """A parent that came to no end replaced nothing: the child does it whole."""
    wanted = DataSet("m", "1", Input(table="public.a", key="id"), Output(table="public.b", mode="replace"))
    fields: dict[str, Any] = dict.fromkeys(BatchView.__dataclass_fields__)
    fields |= {"id": uuid.uuid4(), "kind": "data_set", "status": BatchStatus(status), "tenant_id": 1, "priority": 5}
    child = retry_of(BatchView(**fields | {"body": msgspec.json.encode(wanted)}), 7)
    assert msgspec.json.decode(child.body, type=DataSet).output.mode == mode
    assert child.parent_id == fields["id"]
