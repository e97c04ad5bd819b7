"""The calls of the API that are about batches, as generators; see `calls`."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypedDict
from urllib.parse import quote, urlencode

from batchline.client.batch_results import BatchInfo, BatchPage, LinePage, UploadedFile
from batchline.client.batch_tables import Outputs
from batchline.client.calls import Call, Calls, encode, hook
from batchline.client.data_sets import given
from batchline.errors import InvalidRequestError, NotFoundError, TimedOutError

LINES = 10_000
"""Result lines of one page."""
_UPLOAD_S = 3600.0
_STORING_S = 60.0
"""How much longer than other answers that to an upload may take."""

Where = Sequence[Sequence[object]]
Progress = Callable[[BatchInfo], object]


class BatchOptions(TypedDict, total=False):
    """What a batch may be told beside its model and its rows."""

    output: str | Mapping[str, object] | None
    """A URI of a folder (with `output_format`), or as the API takes it: `{"table": "scores", "mode": "upsert"}`.
    Absent: kept by the server and read by `results` and `to_arrow`."""
    output_format: Literal["jsonl", "csv", "parquet"]
    keep: Sequence[str]
    """Columns of the input that are joined to the output."""
    key: str
    """The column that names a row in the output."""
    columns: Sequence[str]
    """What the model reads, in this order; absent: the columns named like its inputs, else all but key and `keep`."""
    format: Literal["jsonl", "csv", "parquet"]
    """Of the input, where its name does not tell."""
    where: Where
    """Of a table: conditions that must all hold, as `["signed_up", ">=", "2026-11-01"]`."""
    version: str | int
    """A number or an alias."""
    priority: int
    """0 (first) to 9."""
    deadline: datetime
    """Aware; rows that are not begun by then expire."""
    ttl_s: float
    error_threshold: float
    """The share of failed rows above which the batch is failed."""
    metadata: Mapping[str, str]
    idempotency_key: str
    """Two batches submitted with one key are one. Minted when absent."""
    webhook: str | Mapping[str, object]
    """A URL that is told of the end; with `{"url": …, "events": ["batch.failed"]}` of such ends only."""


@dataclass(frozen=True, slots=True)
class BatchCalls:
    """One client's calls about batches."""

    calls: Calls

    def create(self, model: str, data: object, options: BatchOptions) -> Call[BatchInfo]:
        told = dict(options)
        named = {*options.get("keep", ()), *options.get("columns", ()), options.get("key", "")}
        source = given(data, named=named)
        wanted = source.input | {n: told[n] for n in ("key", "columns", "format", "where") if n in told}
        body: dict[str, object] = {"model": model, "input": wanted}
        output = _output(options)
        if output:
            body["output"] = output
        for name in ("version", "priority", "deadline", "ttl_s", "error_threshold", "metadata"):
            if name in told:
                body[name] = told[name]
        if "webhook" in options:
            body["webhook"] = hook(options["webhook"])
        deadline = options.get("deadline")
        if deadline is not None and deadline.tzinfo is None:
            raise InvalidRequestError("The deadline has no time zone: give an aware datetime.")
        if source.upload is not None:
            until = self.calls.clock.monotonic() + _UPLOAD_S
            form = source.upload
            answer = yield from self.calls.answer("POST", "/v1/files", form, {}, until=until, holds_s=_STORING_S)
            wanted["file_id"] = self.calls.decoded(UploadedFile, answer).id
        headers = {"Idempotency-Key": options.get("idempotency_key") or uuid.uuid4().hex}
        return (yield from self.calls.typed(BatchInfo, "POST", "/v1/batches", encode(body), headers))

    def get(self, batch_id: str) -> Call[BatchInfo]:
        return self.calls.typed(BatchInfo, "GET", _path(batch_id))

    def outputs(self, info: BatchInfo) -> Call[Outputs | None]:
        """What the model of a batch declares to give; None when it is gone, or the lines name their models."""
        if not info.model or info.version is None:
            return None
        try:
            model = yield from self.calls.model(info.model)
        except NotFoundError:
            return None
        meant = model.aliases.get(info.version, info.version)
        return next((version.outputs for version in model.versions if version.version == meant), None)

    def act(self, batch_id: str, what: Literal["cancel", "pause", "resume", "retry"]) -> Call[BatchInfo]:
        headers = {"Idempotency-Key": uuid.uuid4().hex} if what == "retry" else {}
        return self.calls.typed(BatchInfo, "POST", f"{_path(batch_id)}/{what}", None, headers)

    def page(self, after: str | None, limit: int) -> Call[BatchPage]:
        query = urlencode({"limit": limit} | ({"after": after} if after else {}))
        return self.calls.typed(BatchPage, "GET", f"/v1/batches?{query}")

    def wait(self, batch_id: str, timeout_s: float | None, progress: Progress) -> Call[BatchInfo]:
        clock = self.calls.clock
        until = clock.monotonic() + (math.inf if timeout_s is None else timeout_s)
        polls = 0
        while True:
            # Waiting outlives servers that are away; the first question is asked whatever is left of the time.
            patience = until if polls else max(until, clock.monotonic() + 1.0)
            answer = yield from self.calls.answer("GET", _path(batch_id), None, {}, until=patience)
            info = self.calls.decoded(BatchInfo, answer)
            progress(info)
            if info.is_finished:
                return info
            now = clock.monotonic()
            if now >= until:
                raise TimedOutError(f"{batch_id} is still {info.status} after {timeout_s:g} s; wait for it again.")
            yield min(poll_s(polls), until - now)
            polls += 1

    def lines(self, batch_id: str, after: int | None, limit: int = LINES) -> Call[LinePage]:
        """One page of result lines of rows behind `after`, of those that are there by now."""
        query = urlencode({"limit": limit} | ({"after": after} if after is not None else {}))
        answer = yield from self.calls.answer("GET", f"{_path(batch_id)}/results?{query}", None, {})
        return LinePage(answer.body.splitlines(), answer.headers.get("batchline-complete") == "true")


def poll_s(polls: int) -> float:
    """How long to wait before a running batch is asked for again: from 0.05 s, growing to 1 s."""
    return min(1.0, 0.05 * 1.3 ** min(polls, 20))


def _output(options: BatchOptions) -> dict[str, object]:
    told = options.get("output")
    output: dict[str, object] = {"uri": told} if isinstance(told, str) else dict(told or {})
    if "output_format" in options:
        output["format"] = options["output_format"]
    if "keep" in options:
        output["keep"] = list(options["keep"])
    return output


def _path(batch_id: str) -> str:
    if not batch_id:
        raise NotFoundError("There is no batch with an empty id.")
    return f"/v1/batches/{quote(batch_id, safe='')}"
