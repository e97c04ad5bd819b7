"""/v1/files: upload, list, read, content, delete; rows in Postgres, bytes in the blob store."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import quote

from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api.batch_shapes import deleted_json, file_json, file_list_json
from api.http import answer, headers_of
from api.owned import owned
from api.queries import an_id, query_of, refused, whole_number
from api.services import Services
from api.streams import streamed
from api.uploads import Form, read_form
from batchline.batch import parse_file_id
from batchline.batch_bodies import blob_key
from batchline.clock import Clock
from batchline.data.blobs import Blobs
from batchline.errors import Fault, InvalidRequestError, NotFoundError, SinkError, SourceError, StoreUnavailableError
from batchline.job import new_job_id
from batchline.store.batch_contract import FileView

log = logging.getLogger("api")

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")
PURPOSE = "batch"
_MIN_KEPT_S, _MAX_KEPT_S = 3600, 2_592_000
_MOST = 10_000
_THREADS = 4
_ID = "/v1/files/{file_id:str}"
_PLAIN = re.compile(r"[^A-Za-z0-9._ -]")


class FileRoutes:
    """The handlers; each checks the key first and knows only the key's tenant."""

    def __init__(self, services: Services, blobs: Blobs, clock: Clock) -> None:
        self._s = services
        self._blobs = blobs
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            post("/v1/files", name="create_file")(self.create),
            get("/v1/files", name="list_files")(self.list),
            get(_ID, name="get_file")(self.read),
            delete(_ID, name="delete_file", status_code=200)(self.delete),
            get(f"{_ID}/content", name="get_file_content")(self.content),
        ]

    async def create(self, request: AnyRequest) -> ASGIResponse:
        s = self._s
        headers = headers_of(request.scope)
        principal = await s.keys.check(headers, "submit")
        file_id = new_job_id()
        key = blob_key(file_id)
        try:
            upload = await self._off_loop(lambda: self._blobs.create(key))
        except SinkError as e:
            raise not_kept(e) from e
        stored = False
        try:

            async def write(piece: bytes) -> None:
                await self._off_loop(lambda: upload.write(piece))

            form = await read_form(request.receive, headers, limit=s.settings.file_bytes, write=write)
            kept_s = _check(form) or s.settings.files_kept_s
            await self._off_loop(upload.finish)
            stored = True
        except SinkError as e:
            raise not_kept(e) from e
        finally:
            if not stored:
                await self._off_loop(upload.abort)
        now = self._clock.now()
        view = FileView(
            id=file_id,
            tenant_id=principal.tenant_id,
            purpose=PURPOSE,
            filename=form.filename or "upload",
            bytes=form.bytes,
            blob=key,
            created_at=now,
            expires_at=now + timedelta(seconds=kept_s),
        )
        await s.ask(lambda: s.store.files.add(view))
        return answer(200, file_json(view))

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def list(self, request: AnyRequest) -> ASGIResponse:
        principal = await self._s.keys.check(headers_of(request.scope), "read")
        query = query_of(request.scope["query_string"], ("after", "limit", "order", "purpose"))
        limit = whole_number(query, "limit", default=_MOST, least=1, most=_MOST)
        if query.get("order", "desc") not in ("asc", "desc"):
            raise refused("order", "must be asc or desc")
        after = an_id(query, "after", parse_file_id, "file")
        purpose = query.get("purpose")
        if purpose is not None and "\0" in purpose:
            raise refused("purpose", "must be a purpose")
        views = await self._s.ask(
            lambda: self._s.store.files.list(
                principal.tenant_id,
                purpose=purpose,
                after=after,
                limit=limit + 1,
                ascending=query.get("order") == "asc",
            )
        )
        return answer(200, file_list_json(views[:limit], has_more=len(views) > limit))

    async def read(self, request: AnyRequest) -> ASGIResponse:
        return answer(200, file_json(await self._view(request, "read")))

    async def content(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "read")
        headers = {"Content-Length": str(view.bytes), "Content-Disposition": _attached(view.filename)}
        try:
            return await streamed(lambda: self._chunks(view.blob), headers, "application/octet-stream", self._threads)
        except SourceError:
            raise _unknown(request.path_params["file_id"]) from None

    def _chunks(self, key: str) -> Iterator[bytes]:
        with self._blobs.open(key) as blob:
            yield from blob.chunks()

    async def delete(self, request: AnyRequest) -> ASGIResponse:
        view = await self._view(request, "submit")
        if not await self._s.ask(lambda: self._s.store.files.delete(view.tenant_id, view.id)):
            raise _unknown(request.path_params["file_id"])
        return answer(200, deleted_json(view))

    async def _view(self, request: AnyRequest, scope: str) -> FileView:
        """The file that the path names, if the caller may know it."""
        read = self._s.store.files.read
        return await owned(self._s, request, scope, parse=parse_file_id, read=read, unknown=_unknown)


def not_kept(error: SinkError) -> StoreUnavailableError:
    """What a client is told when the blob store cannot take its bytes; why is for the log."""
    log.error("blob not written", extra={"error": error.detail})
    return StoreUnavailableError("The file could not be kept; tell the operator, or try again later.")


def _check(form: Form) -> int | None:
    """How long the form wants its file kept, in seconds; None when it does not say.

    Raises:
        InvalidRequestError: the form lacks its file, has another purpose, or says something that is not known.
    """
    faults: list[Fault] = []
    if not form.files:
        faults.append(Fault("/file", "Object missing required field `file`"))
    elif not form.bytes:
        faults.append(Fault("/file", "is empty"))
    if "purpose" not in form.fields:
        faults.append(Fault("/purpose", "Object missing required field `purpose`"))
    elif form.fields["purpose"] != PURPOSE:
        faults.append(Fault("/purpose", f"must be {PURPOSE!r}"))
    kept_s = _kept_s(form.fields, faults)
    if faults:
        raise InvalidRequestError("The form does not fit.", faults=tuple(faults))
    return kept_s


def _kept_s(fields: Mapping[str, str], faults: list[Fault]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        faults.append(Fault("/expires_after/anchor", "must be created_at"))
    text = seconds or ""
    if not text.isascii() or not text.isdigit() or not _MIN_KEPT_S <= int(text[:9]) <= _MAX_KEPT_S:
        faults.append(Fault("/expires_after/seconds", f"must be a whole number from {_MIN_KEPT_S} to {_MAX_KEPT_S}"))
        return None
    return int(text[:9])


def _attached(filename: str) -> str:
    """Content-Disposition with the name in plain letters, and exactly (RFC 6266)."""
    return f"attachment; filename=\"{_PLAIN.sub('_', filename)}\"; filename*=UTF-8''{quote(filename, safe='')}"


def _unknown(text: str) -> NotFoundError:
    return NotFoundError(f"No such File object: {text[:100]}", faults=(Fault("/id", "is no file here"),))
