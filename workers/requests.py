"""Slices of a batch of requests: lines of an uploaded file, through the model, into lines that say what each got."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from batchline import rows, v2_tensors
from batchline.answers import infer_body, job_body, refusal, status_of
from batchline.batch import LATE, Piece, Requests, Slice, Staged, bits_to_rows, part_key
from batchline.data.blobs import Blobs, BlobUpload
from batchline.data.places import BLOB
from batchline.data.text_blocks import BOM
from batchline.decoding import from_decoding
from batchline.errors import BatchlineError, Fault, InvalidRequestError, RowError, SourceError
from batchline.job import ClaimedJob, FinishedJob, JobView, Lane
from batchline.model import ModelSpec
from batchline.rows import TEXT, RowBlock
from batchline.store.batch_contract import SliceWork
from batchline.wire import SubmitBody
from workers.collate import joined
from workers.finishing import encode
from workers.stretches import POISON, RowFault, Stretch, Written

_LINES = 256
_BYTES = 8 * 2**20
_ROWS = 8192
"""A stretch is closed when it has so many lines, bytes or rows."""


class _Line(msgspec.Struct):
    custom_id: str
    body: msgspec.Raw


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Answer(msgspec.Struct):
    """One line of the output or the error file."""

    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


@dataclass(slots=True)
class _Request:
    """One line as it was read: rows for the model, or why not."""

    offset: int
    """Within the slice."""
    custom_id: str
    block: RowBlock | None = None
    fault: BatchlineError | None = None
    lost: tuple[str, str] | None = None
    """Code and message of a request that is not run: no endpoint has an answer for it."""
    metadata: str | None = None
    infer_id: str | None = None
    wanted: Sequence[v2_tensors.Wanted] = ()


class RequestsWork:
    """See `workers.stretches.Work`. One line is one row of the batch, however many rows the model sees of it."""

    def __init__(self, ask: SliceWork, job: ClaimedJob, spec: ModelSpec, blobs: Blobs, *, max_rows: int) -> None:
        self._batch = ask.batch
        self._job = job
        self._spec = spec
        self._blobs = blobs
        self._max_rows = max_rows
        self._endpoint = msgspec.json.decode(ask.batch.body, type=Requests).endpoint
        self._slice = msgspec.json.decode(job.payload, type=Slice)
        self._only = None if self._slice.only is None else frozenset(bits_to_rows(self._slice.only))
        self._poison = frozenset(ask.poison)
        self._is_late = False
        self._names = [TEXT] if spec.text is not None else [t.name for t in spec.inputs]

    def read(self) -> Iterator[Stretch]:
        gathered: list[_Request] = []
        size = count = 0
        for offset, line in enumerate(self._lines()):
            if self._only is not None and offset not in self._only:
                continue
            request = self._request(offset, line)
            gathered.append(request)
            size += len(line)
            count += request.block.count if request.block else 0
            if len(gathered) >= _LINES or size >= _BYTES or count >= _ROWS:
                yield self._stretch(gathered)
                gathered, size, count = [], 0, 0
        if gathered:
            yield self._stretch(gathered)

    def _lines(self) -> Iterator[bytes]:
        for piece in self._slice.pieces:
            count = 0
            for line in self._lines_of(piece):
                count += 1
                yield line
            if count != piece.rows:
                raise SourceError(f"The uploaded file has {count} requests where {piece.rows} were planned.")

    def _lines_of(self, piece: Piece) -> Iterator[bytes]:
        start, end = (int(str(at)) for at in piece.span)
        with self._blobs.open(piece.uri.removeprefix(BLOB)) as blob:
            if piece.version and blob.version != piece.version:
                raise SourceError("The uploaded file is not the one that was planned.")
            rest, skip = b"", 0 if start else len(BOM)
            for chunk in blob.chunks(start, end):
                *lines, rest = (rest + chunk).split(b"\n")
                if lines and skip:
                    lines[0], skip = lines[0].removeprefix(BOM), 0
                yield from (line for line in lines if line.strip())
            rest = rest.removeprefix(BOM) if skip else rest
            if rest.strip():
                yield rest

    def _request(self, offset: int, line: bytes) -> _Request:
        """Read one line against the model; what does not fit stays with it."""
        try:
            read = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise SourceError("The uploaded file is not the one that was planned.") from e
        request = _Request(offset, read.custom_id)
        self._is_late = self._is_late or self._is_over()
        if offset in self._poison or self._is_late:
            request.lost = LATE if self._is_late else ("poison", POISON)
            return request
        try:
            self._fill(request, read.body)
        except BatchlineError as e:
            request.fault = e
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            request.fault = from_decoding(e)
        return request

    def _is_over(self) -> bool:
        """Whether the window has ended: what has been read is finished, the rest is not begun."""
        return self._batch.deadline_at is not None and self._batch.deadline_at <= datetime.now(UTC)

    def _fill(self, request: _Request, raw: msgspec.Raw) -> None:
        if self._endpoint.startswith("/v2/"):
            body, tail = v2_tensors.split(bytes(raw), None)
            request.wanted = v2_tensors.wanted_outputs(body, self._spec)
            if any(want.binary for want in request.wanted):
                fault = Fault("/parameters/binary_data_output", "must be false: a line has no place for bytes")
                raise InvalidRequestError("The request does not fit.", faults=(fault,))
            request.infer_id = body.id
            request.block = v2_tensors.read_inputs(body, tail, self._spec, max_rows=self._max_rows)
            return
        body = msgspec.json.decode(raw, type=SubmitBody)
        if body.parameters:
            fault = Fault("/parameters", "must be empty: no parameter is known")
            raise InvalidRequestError("The body does not fit.", faults=(fault,))
        if body.webhook is not None:
            fault = Fault("/webhook", "belongs to the batch: a line has no end of its own")
            raise InvalidRequestError("The body does not fit.", faults=(fault,))
        if memoryview(body.metadata).nbytes:
            request.metadata = _metadata(body.metadata)
        request.block = rows.parse(memoryview(body.inputs), self._spec, max_rows=self._max_rows)

    def _stretch(self, requests: list[_Request]) -> Stretch:
        """`todo` has the offset of its line for each row."""
        blocks = [r.block for r in requests if r.block is not None]
        first = requests[0].offset
        counts = [r.block.count if r.block else 0 for r in requests]
        todo = np.repeat(np.array([r.offset - first for r in requests], np.int64), counts)
        columns = {name: joined([b.columns[name] for b in blocks]) for name in self._names} if blocks else {}
        faults = {r.offset - first: _row_fault(r) for r in requests if r.block is None}
        return Stretch(first, len(requests), requests, todo, columns, faults)

    def write(self, stretches: Iterator[Stretch]) -> Written:
        parts = _Parts(self._blobs, self._batch.id, self._slice.number, self._job.attempt)
        try:
            count, failed, late = 0, list[int](), 0
            for stretch in stretches:
                late += sum(request.lost is LATE for request in _requests_of(stretch))
                for offset, answer, good in self._answers(stretch):
                    parts.write(answer, good=good)
                    count += 1
                    if not good:
                        failed.append(offset)
            return Written(parts.stage(count - len(failed), len(failed), late), count, failed)
        except BaseException:
            parts.abort()
            raise

    def _answers(self, stretch: Stretch) -> Iterator[tuple[int, bytes, bool]]:
        requests = _requests_of(stretch)
        done = stretch.predicted
        done.faults |= dict.fromkeys(done.no_room, "The device has no room for this row, even alone.")
        finished = iter(encode([self._as_job(r, r.block) for r in requests if r.block], done, lambda _: "{}"))
        for request in requests:
            line_id = f"batch_req_{self._batch.id.hex}{self._row(request):08x}"
            if request.lost is not None:
                answer = _Answer(line_id, request.custom_id, None, _Error(*request.lost))
                good = False
            else:
                job = next(finished) if request.block is not None else None
                status, body = self._told(request, job)
                response = _Response(status, f"req_{self._id(request).hex}", msgspec.Raw(body))
                answer, good = _Answer(line_id, request.custom_id, response, None), status == 200
            yield request.offset, msgspec.json.encode(answer) + b"\n", good

    def _row(self, request: _Request) -> int:
        return self._slice.first_row + request.offset

    def _id(self, request: _Request) -> uuid.UUID:
        """The same at each attempt, so that lines made twice are the same lines."""
        return uuid.uuid5(self._batch.id, str(self._row(request)))

    def _as_job(self, request: _Request, block: RowBlock) -> ClaimedJob:
        job = self._job
        return ClaimedJob(
            self._id(request), job.tenant_id, job.model_id, job.attempt, 0, block.count, suspect=False, queued_ms=0.0,
            payload=b"",
        )  # fmt: skip

    def _told(self, request: _Request, done: FinishedJob | None) -> tuple[int, bytes]:
        """Status and body, as the endpoint answers."""
        fault = request.fault
        if done is not None and fault is None:
            view = self._view(request, done)
            try:
                if self._endpoint.startswith("/v2/"):
                    return 200, msgspec.json.encode(infer_body(view, request.infer_id, request.wanted)[0])
                status = 200 if done.rows_failed < view.rows else status_of(RowError(""))
                return status, msgspec.json.encode(job_body(view, None))
            except BatchlineError as e:
                fault = e
        fault = fault or RowError("The request has no result.")
        return refusal(self._endpoint, status_of(fault), fault.code, fault.detail, fault.faults)

    def _view(self, request: _Request, done: FinishedJob) -> JobView:
        batch, now = self._batch, datetime.now(UTC)
        return JobView(
            id=done.id,
            tenant_id=batch.tenant_id,
            model=self._spec.name,
            version=self._spec.version,
            status=done.status,
            lane=Lane.BULK,
            priority=batch.priority,
            rows=request.block.count if request.block else 0,
            rows_failed=done.rows_failed,
            attempt=self._job.attempt,
            suspect=False,
            code=done.code,
            created_at=batch.created_at,
            started_at=now,
            finished_at=now,
            deadline_at=batch.deadline_at,
            run_at=None,
            metadata=request.metadata,
            outputs=done.outputs,
            errors=done.errors,
            timings=done.timings,
            position=None,
            result_pruned=False,
        )

    def publish(self, staged: Staged) -> None:
        """Nothing to do: the batch's files are made of the parts of slices that were finished."""

    def discard(self, staged: Staged) -> None:
        for part in staged.parts:
            self._blobs.delete(part["blob"])


class _Parts:
    """The two parts of one attempt at one slice; each is begun with its first line."""

    def __init__(self, blobs: Blobs, batch_id: uuid.UUID, number: int, attempt: int) -> None:
        self._blobs = blobs
        self._keys = {kind: part_key(batch_id, number, attempt, kind) for kind in ("output", "error")}
        self._uploads: dict[str, BlobUpload] = {}

    def write(self, line: bytes, *, good: bool) -> None:
        kind = "output" if good else "error"
        if kind not in self._uploads:
            self._uploads[kind] = self._blobs.create(self._keys[kind])
        self._uploads[kind].write(line)

    def stage(self, rows: int, errors: int, late: int) -> Staged:
        size = 0
        made: list[dict[str, str]] = []
        while self._uploads:
            kind, upload = next(iter(self._uploads.items()))
            size += upload.finish().bytes
            del self._uploads[kind]
            made.append({"kind": kind, "blob": self._keys[kind]})
        return Staged(made, rows, errors, size, expired=late)

    def abort(self) -> None:
        for upload in self._uploads.values():
            upload.abort()


def _requests_of(stretch: Stretch) -> list[_Request]:
    return stretch.source  # pyright: ignore[reportReturnType]


def _row_fault(request: _Request) -> RowFault:
    if request.lost is not None:
        return RowFault(*request.lost)
    fault = request.fault or RowError("The request has no rows.")
    return RowFault(fault.code, fault.detail)


def _metadata(raw: msgspec.Raw) -> str | None:
    """The client's metadata as JSON text.

    Raises:
        InvalidRequestError: it is no object.
    """
    value: Any = msgspec.json.decode(raw)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidRequestError("The body does not fit.", faults=(Fault("/metadata", "must be an object"),))
    return msgspec.json.encode(value).decode()
