"""Errors as answers: problem details (RFC 9457), `{"error": …}` under /v2, OpenAI's for files and batches."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import HTTPScope, Scope

from api import openai
from api.http import JSON, Answer
from batchline.answers import refusal, status_of
from batchline.errors import BatchlineError
from batchline.metrics import REFUSED

log = logging.getLogger("api")

PROBLEM = "application/problem+json"
_ROUTER_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


class _Told(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]
    media_type: str


def problem(scope: Scope, error: Exception) -> Answer:
    """Answer whatever was raised; what nobody foresaw is logged and told as nothing but `internal`."""
    told = _tell(scope, error)
    return Answer(told.status, told.body, told.headers, told.media_type)


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The same for litestar."""
    told = _tell(request.scope, error)
    return Response(told.body, status_code=told.status, media_type=told.media_type, headers=told.headers)


def _tell(scope: Scope, error: Exception) -> _Told:
    path = scope["path"]
    headers: dict[str, str] = {}
    if isinstance(error, BatchlineError):
        status, code, detail, faults = status_of(error), error.code, error.detail, error.faults
        if error.retry_after_s is not None or status in (429, 503):
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1.0)))
        if status == 500:
            log.error("request failed", extra={"path": path, "error": detail})
    elif isinstance(error, HTTPException) and error.status_code < 500:
        status = error.status_code
        code = _ROUTER_CODES.get(status, "malformed")
        detail = _ROUTER_DETAILS.get(status, HTTPStatus(status).phrase)
        faults = ()
        headers |= {k: _methods(v) for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    else:
        log.error("request failed", extra={"path": path}, exc_info=error)
        status, code, detail, faults = 500, "internal", "Something went wrong here; it has been logged.", ()
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if cast("HTTPScope", scope)["method"] == "POST":
        REFUSED.labels(code).inc()
    if openai.speaks(path):
        return _Told(*openai.error(status, code, detail, faults), headers, JSON)
    media_type = JSON if path == "/v2" or path.startswith("/v2/") else PROBLEM
    return _Told(*refusal(path, status, code, detail, faults), headers, media_type)


def _methods(allowed: str) -> str:
    """The methods that litestar names, in order, and HEAD wherever GET is (see `front`)."""
    methods = set(allowed.split(", "))
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


_ROUTER_DETAILS = {
    404: "There is nothing at this address; /openapi.json lists what there is.",
    405: "This address does not take this method.",
}
