"""The files of a batch of requests: the parts of its slices put together, one for output lines, one for errors.

Ids and keys follow from the batch's id, and the lines from its slices: made twice, they are the same files. Requests
that never ran stand in the error file too, with the reason.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import msgspec

from batchline.batch import LATE, BatchView, Requests, Slice, bits_to_rows, part_key, show_batch_id
from batchline.batch_bodies import blob_key
from batchline.data.blobs import BlobUpload
from batchline.data.places import BLOB
from batchline.errors import BatchlineError
from batchline.store import Store
from batchline.store.batch_contract import FileView, SliceView
from scheduler.doors import Doors
from scheduler.request_lines import lines_of
from scheduler.station import Lease

log = logging.getLogger("scheduler.output_files")

PURPOSE = "batch_output"
_MAX_LINE_BYTES = 64 * 2**20
_NEVER_RAN = {
    "expired": LATE,
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
    "failed": ("batch_failed", "This request could not be executed."),
}

Kind = Literal["output", "error"]


@dataclass(slots=True)
class Made:
    """What was put together: ids of files that have lines."""

    output_id: uuid.UUID | None = None
    error_id: uuid.UUID | None = None
    parts: list[str] = field(default_factory=list[str])
    """Keys of parts, of all attempts, that are of no use once the batch has ended."""


class _Error(msgspec.Struct):
    code: str
    message: str


class _ErrorLine(msgspec.Struct):
    id: str
    custom_id: str
    error: _Error
    response: None = None


class _CustomId(msgspec.Struct):
    custom_id: str


class OutputFiles:
    """Puts the files of batches together."""

    def __init__(self, store: Store, doors: Doors, *, kept_s: float) -> None:
        self._store = store
        self._blobs = doors.blobs
        self._kept_s = kept_s

    def make(self, lease: Lease, pages: Iterable[list[SliceView]]) -> Made:
        """Read all parts in the order of slices, write the files, and enter them.

        Raises:
            SourceError, SinkError: a part or the input is gone, or there is no room.
            RetryableError: may be tried again.
        """
        batch, made = lease.batch, Made()
        wanted = msgspec.json.decode(batch.body, type=Requests)
        uploads: dict[Kind, _Upload] = {kind: _Upload(self, batch, kind) for kind in ("output", "error")}
        try:
            for page in pages:
                for view in page:
                    made.parts += [
                        part_key(batch.id, view.number, n, k) for n in range(1, view.attempt + 1) for k in uploads
                    ]
                    self._add(batch, view, uploads)
            if lease.lost.is_set():
                return made
            made.output_id = uploads["output"].finish(wanted)
            made.error_id = uploads["error"].finish(wanted)
        finally:
            for upload in uploads.values():
                upload.abort()
        return made

    def remove(self, keys: Iterable[str]) -> None:
        """Delete parts; one that stays behind is found by the chore for orphans."""
        for key in keys:
            try:
                self._blobs.delete(key)
            except BatchlineError as e:
                log.warning("part not deleted", extra={"blob": key, "error": e.detail})

    def _add(self, batch: BatchView, view: SliceView, uploads: dict[Kind, _Upload]) -> None:
        if view.staged is None:
            for line in self._never_ran(batch, view):
                uploads["error"].write(line)
            return
        for part in view.staged.parts:
            kind: Kind = "output" if part["kind"] == "output" else "error"
            with self._blobs.open(part["blob"]) as blob:
                for chunk in blob.chunks():
                    uploads[kind].write(chunk)

    def _never_ran(self, batch: BatchView, view: SliceView) -> Iterator[bytes]:
        """An error line for each request of a slice that did not come to an end."""
        code, message = _NEVER_RAN.get(view.status, _NEVER_RAN["failed"])
        if view.status == "failed":
            message = view.message or message
        made = msgspec.json.decode(view.payload, type=Slice)
        only = None if made.only is None else set(bits_to_rows(made.only))
        offset = 0
        for piece in made.pieces:
            start, end = (int(str(at)) for at in piece.span)
            with self._blobs.open(piece.uri.removeprefix(BLOB)) as blob:
                for _, _, line in lines_of(blob.chunks(start, end), _MAX_LINE_BYTES):
                    if line is not None and not line.strip():
                        continue
                    if line is not None and (only is None or offset in only):
                        custom_id = msgspec.json.decode(line, type=_CustomId).custom_id
                        line_id = f"batch_req_{batch.id.hex}{made.first_row + offset:08x}"
                        yield msgspec.json.encode(_ErrorLine(line_id, custom_id, _Error(code, message))) + b"\n"
                    offset += 1

    def enter(self, batch: BatchView, file_id: uuid.UUID, kind: Kind, size: int, expires_s: float | None) -> None:
        """Make a file known; one that is known stays as it is."""
        now = self._store.schedules.now()
        view = FileView(
            id=file_id,
            tenant_id=batch.tenant_id,
            purpose=PURPOSE,
            filename=f"{show_batch_id(batch.id)}_{kind}.jsonl",
            bytes=size,
            blob=blob_key(file_id),
            created_at=now,
            expires_at=now + timedelta(seconds=expires_s or self._kept_s),
        )
        self._store.files.add(view)

    def create(self, key: str) -> BlobUpload:
        """Begin a file's blob."""
        return self._blobs.create(key)


class _Upload:
    """One of the two files; begun with its first line."""

    def __init__(self, files: OutputFiles, batch: BatchView, kind: Kind) -> None:
        self._files = files
        self._batch = batch
        self._kind: Kind = kind
        self._id = file_id_of(batch.id, kind)
        self._upload: BlobUpload | None = None

    def write(self, data: bytes) -> None:
        if self._upload is None:
            self._upload = self._files.create(blob_key(self._id))
        self._upload.write(data)

    def finish(self, wanted: Requests) -> uuid.UUID | None:
        if self._upload is None:
            return None
        size = self._upload.finish().bytes
        self._upload = None
        self._files.enter(self._batch, self._id, self._kind, size, wanted.output_expires_s)
        return self._id

    def abort(self) -> None:
        if self._upload is not None:
            self._upload.abort()


def file_id_of(batch_id: uuid.UUID, kind: Kind) -> uuid.UUID:
    """The id of a batch's file: as old as the batch, and the same whenever it is asked for."""
    return uuid.UUID(int=batch_id.int ^ (1 if kind == "output" else 2))
