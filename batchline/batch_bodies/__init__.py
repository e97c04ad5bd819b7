"""Bodies of POST /v1/batches: read and checked, from JSON to a batch that the store can take. Knows no HTTP.

The API calls `check` for each submit, a schedule for its body when it is made and again, filled in, each time it fires.
Inline rows become a file of their own; whoever submits writes it to the blob store and enters it first:

    checked = check(raw, tenant_id=..., finds=..., rules=..., now=...)
    if checked.rows is not None:
        blobs.put(checked.rows.file.blob, checked.rows.jsonl); files.add(checked.rows.file)
    batches.submit(checked.batch)
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal, NoReturn, Protocol

import msgspec

from batchline import webhook
from batchline.batch import (
    BatchStatus,
    BatchView,
    DataSet,
    Input,
    NewBatch,
    Output,
    Requests,
    parse_file_id,
    show_file_id,
)
from batchline.batch_bodies import inline, places
from batchline.batch_bodies.places import Rules
from batchline.decoding import from_decoding
from batchline.errors import Fault, InvalidRequestError, NotFoundError
from batchline.job import new_job_id
from batchline.model import ModelRecord
from batchline.store.batch_contract import FileView
from batchline.wire import DataSetBody, RequestsBody

__all__ = ["Checked", "Finds", "InlineRows", "Rules", "blob_key", "check", "retry_of"]

MAX_METADATA_PAIRS, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
_MAX_METADATA_BYTES = 64 * 1024
_MAX_WEBHOOK_FAULTS = 20
_INPUT_PURPOSE, _ROWS_PURPOSE = "batch", "user_data"
_MIN_WINDOW, _MAX_WINDOW = timedelta(minutes=1), timedelta(days=30)
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_ENDPOINT = re.compile(r"/v2/models/([a-z0-9][a-z0-9._-]{0,99})/infer")


class Finds(Protocol):
    """What a body may refer to. Both may block."""

    def model(self, name: str, version: str | int | None) -> ModelRecord:
        """The version that is meant.

        Raises:
            NotFoundError: with the pointer /model or /version.
        """
        ...

    def file(self, file_id: uuid.UUID) -> FileView | None:
        """A file of any tenant."""
        ...


@dataclass(frozen=True, slots=True)
class InlineRows:
    """Rows that came in the body: a file that is to be written and entered before the batch is submitted."""

    file: FileView
    jsonl: bytes
    """One row a line."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A batch that may be submitted."""

    batch: NewBatch
    rows: InlineRows | None = None


class _Kind(msgspec.Struct):
    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input_file_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_kind_decoder = msgspec.json.Decoder(_Kind)
_data_set_decoder = msgspec.json.Decoder(DataSetBody)
_requests_decoder = msgspec.json.Decoder(RequestsBody)


def check(raw: bytes, *, tenant_id: int, finds: Finds, rules: Rules, now: datetime) -> Checked:
    """Read a body of either kind: `input_file_id` makes it OpenAI's, `model` a data set.

    Args:
        raw: JSON; templates of schedules filled in.
        tenant_id: whose batch it will be; files of others are unknown.
        finds: where models and files are looked up.
        rules: what the operator allows.
        now: for deadlines.

    Raises:
        MalformedError: no JSON that can be read.
        InvalidRequestError: with a fault, and its pointer, for each thing that does not fit.
        NotFoundError: there is no such model or version; with the pointer.
    """
    try:
        kind = _kind_decoder.decode(raw)
        if kind.model is msgspec.UNSET and kind.input is msgspec.UNSET:
            return _requests(_requests_decoder.decode(raw), tenant_id, finds, rules)
        if kind.input_file_id is not msgspec.UNSET:
            _refuse([Fault("/input_file_id", "names requests, and `model` a data set: give one of them")])
        body = _data_set_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise from_decoding(e) from None
    return _data_set(body, tenant_id, finds, rules, now)


def _requests(body: RequestsBody, tenant_id: int, finds: Finds, rules: Rules) -> Checked:
    faults: list[Fault] = []
    file = _input_file(body.input_file_id, tenant_id, finds)
    if file is None:
        faults.append(Fault("/input_file_id", "is no file here"))
    elif file.purpose != _INPUT_PURPOSE:
        faults.append(Fault("/input_file_id", f"has the purpose {file.purpose}; it must be {_INPUT_PURPOSE}"))
    faults += _endpoint_faults(body.endpoint, finds)
    window = _window(body.completion_window)
    if window is None:
        faults.append(Fault("/completion_window", "must be 24h, or another number of m, h or d, from 1m to 30d"))
    metadata = _metadata(body.metadata, faults)
    faults += _webhook_faults(body, rules)
    if faults or file is None or window is None:
        _refuse(faults)
    expiry = body.output_expires_after.seconds if body.output_expires_after else None
    return Checked(
        NewBatch(
            id=new_job_id(),
            tenant_id=tenant_id,
            kind="requests",
            body=msgspec.json.encode(Requests(file.blob, body.endpoint, body.completion_window, expiry)),
            window=window,
            metadata=metadata,
            input_file_id=file.id,
            webhook=body.webhook,
        )
    )


def _input_file(text: str, tenant_id: int, finds: Finds) -> FileView | None:
    try:
        file = finds.file(parse_file_id(text))
    except NotFoundError:
        return None
    return file if file is not None and file.tenant_id == tenant_id else None


def _data_file(text: str, tenant_id: int, finds: Finds) -> FileView:
    """The uploaded file that is a data set."""
    file = _input_file(text, tenant_id, finds)
    if file is None:
        _refuse([Fault("/input/file_id", "is no file here")])
    if file.filename.lower().endswith(".gz"):
        _refuse([Fault("/input/file_id", f"is compressed ({file.filename}): upload what is inside")])
    return file


def _format(file: FileView, wanted: Input) -> Literal["jsonl", "csv", "parquet"]:
    found = wanted.format or places.format_of(file.filename)
    if found is None:
        _refuse([Fault("/input/format", f"must be jsonl, csv or parquet: {file.filename} does not tell")])
    return found


def _endpoint_faults(endpoint: str, finds: Finds) -> Iterator[Fault]:
    if endpoint == "/v1/jobs":
        return
    found = _ENDPOINT.fullmatch(endpoint)
    if not found:
        yield Fault("/endpoint", "must be /v1/jobs or /v2/models/{model}/infer")
        return
    try:
        finds.model(found.group(1), None)
    except NotFoundError:
        yield Fault("/endpoint", "names no model here")


def _window(text: str) -> timedelta | None:
    found = _WINDOW.fullmatch(text)
    window = int(found.group(1)) * _UNITS[found.group(2)] if found else None
    return window if window is not None and _MIN_WINDOW <= window <= _MAX_WINDOW else None


def _data_set(body: DataSetBody, tenant_id: int, finds: Finds, rules: Rules, now: datetime) -> Checked:
    model = finds.model(body.model, body.version)
    faults: list[Fault] = []
    given, output = body.input, body.output or Output()
    wanted = places.input_of(given, rules, faults)
    output = places.output_of(output, wanted, rules, faults)
    faults += places.column_faults(wanted, output, model.spec)
    deadline = _deadline(body, now, faults)
    metadata = _metadata(body.metadata, faults)
    faults += _webhook_faults(body, rules)
    if faults:
        _refuse(faults)
    rows, file_id = None, None
    if given.file_id is not None:
        file = _data_file(given.file_id, tenant_id, finds)
        file_id = file.id
        wanted = msgspec.structs.replace(wanted, file=file.blob, format=_format(file, wanted))
    if given.rows is not msgspec.UNSET:
        jsonl = inline.jsonl(given.rows, model.spec, wanted, output)
        rows = _file_of(jsonl, tenant_id, rules, now)
        file_id = rows.file.id
        wanted = msgspec.structs.replace(wanted, file=rows.file.blob, format="jsonl")
    data_set = DataSet(model.spec.name, model.spec.version, wanted, output)
    batch = NewBatch(
        id=new_job_id(),
        tenant_id=tenant_id,
        kind="data_set",
        body=msgspec.json.encode(data_set),
        model_id=model.id,
        priority=body.priority,
        deadline_at=deadline,
        error_threshold=body.error_threshold,
        metadata=metadata,
        input_file_id=file_id,
        webhook=body.webhook,
    )
    return Checked(batch, rows)


def _file_of(jsonl: bytes, tenant_id: int, rules: Rules, now: datetime) -> InlineRows:
    file_id = new_job_id()
    file = FileView(
        id=file_id,
        tenant_id=tenant_id,
        purpose=_ROWS_PURPOSE,
        filename="rows.jsonl",
        bytes=len(jsonl),
        blob=blob_key(file_id),
        created_at=now,
        expires_at=now + timedelta(seconds=rules.files_kept_s),
    )
    return InlineRows(file, jsonl)


def retry_of(parent: BatchView, model_id: int | None) -> NewBatch:
    """A batch that does again what the parent left undone; the planner takes its slices from the parent's.

    A parent that has replaced a table left its failed rows out: they are appended. One that came to no end has replaced
    nothing, and what it had scored is gone with it: the child replaces the table, and does all rows.
    Requests have their window again; the deadline of a data set is not kept. Whoever was to be
    told of the parent's end is told of the child's.

    Args:
        parent: has ended.
        model_id: of the parent's model and version; None for requests.
    """
    body, window = parent.body, None
    if parent.kind == "requests":
        window = _window(msgspec.json.decode(body, type=Requests).completion_window)
    else:
        data_set = msgspec.json.decode(body, type=DataSet)
        if data_set.output.mode == "replace" and parent.status is BatchStatus.COMPLETED:
            output = msgspec.structs.replace(data_set.output, mode="append")
            body = msgspec.json.encode(msgspec.structs.replace(data_set, output=output))
    return NewBatch(
        id=new_job_id(),
        tenant_id=parent.tenant_id,
        kind="requests" if parent.kind == "requests" else "data_set",
        body=body,
        model_id=model_id,
        priority=parent.priority,
        window=window,
        error_threshold=parent.error_threshold,
        metadata=parent.metadata,
        input_file_id=parent.input_file_id,
        parent_id=parent.id,
        webhook=parent.webhook,
    )


def blob_key(file_id: uuid.UUID) -> str:
    """Where the bytes of an uploaded file lie in the blob store."""
    return f"files/{show_file_id(file_id)}"


def _deadline(body: DataSetBody, now: datetime, faults: list[Fault]) -> datetime | None:
    ends: list[datetime] = []
    if body.deadline is not None:
        try:
            ends.append(body.deadline.astimezone(UTC))
        except OverflowError:
            faults.append(Fault("/deadline", "is beyond the year 9999"))
        else:
            if ends[0] <= now:
                faults.append(Fault("/deadline", "has passed"))
    if body.ttl_s is not None:
        ends.append(now + timedelta(seconds=body.ttl_s))
    return min(ends) if ends else None


def _metadata(raw: msgspec.Raw, faults: list[Fault]) -> str | None:
    """The metadata as compact JSON text, within OpenAI's limits; what is too large is refused unread."""
    size = memoryview(raw).nbytes
    if size == 0 or (size == len(b"null") and bytes(raw) == b"null"):
        return None
    if size > _MAX_METADATA_BYTES:
        faults.append(Fault("/metadata", f"is larger than {_MAX_METADATA_BYTES} bytes"))
        return None
    try:
        pairs = msgspec.json.decode(raw, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        faults.append(Fault("/metadata", "must be an object of strings"))
        return None
    if len(pairs) > MAX_METADATA_PAIRS:
        faults.append(Fault("/metadata", f"has {len(pairs)} entries; at most {MAX_METADATA_PAIRS} are kept"))
    for key, value in pairs.items():
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            told = f"has a key above {MAX_METADATA_KEY} or a value above {MAX_METADATA_VALUE} characters: {key[:64]!r}"
            faults.append(Fault("/metadata", told))
        elif "\0" in key or "\0" in value:
            faults.append(Fault("/metadata", "has a NUL character, which cannot be kept"))
    return msgspec.json.encode(pairs).decode()


def _webhook_faults(body: DataSetBody | RequestsBody, rules: Rules) -> Iterator[Fault]:
    if body.webhook is not None:
        yield from islice(webhook.faults(body.webhook, "batch", rules.webhooks), _MAX_WEBHOOK_FAULTS)


def _refuse(faults: list[Fault]) -> NoReturn:
    raise InvalidRequestError("The body does not fit.", faults=tuple(faults))
