"""Errors of /v1/files and /v1/batches, in OpenAI's words: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from batchline.errors import Fault
from batchline.wire import FaultBody, OpenAIError, OpenAIErrorBody

_PATHS = ("/v1/files", "/v1/batches")
_MAX_TOLD = 10
_MISSING, _UNKNOWN = "Object missing required field", "Object contains unknown field"
_TYPES = {403: "permission_error", 429: "rate_limit_error"}
_CODES: dict[str, str | None] = {
    "unauthorized": "invalid_api_key",
    "not_found": None,
    "already_ended": None,
    "invalid": "invalid_value",
}
"""Where OpenAI has a word of its own, or none."""


def speaks(path: str) -> bool:
    """Whether this path answers errors so."""
    return path.startswith(_PATHS) and any(path == p or path.startswith(p + "/") for p in _PATHS)


def error(status: int, code: str, detail: str, faults: Sequence[Fault]) -> tuple[int, bytes]:
    """Status and body. What does not fit is 400, as with OpenAI, where other routes say 422."""
    first = faults[0] if faults else None
    param = first.pointer.removeprefix("/").replace("/", ".") or None if first else None
    found: str | None = _CODES.get(code, code)
    told = "; ".join(f"{f.pointer}: {f.detail}" if f.pointer else f.detail for f in faults[:_MAX_TOLD])
    message = f"{detail} {told}".strip()
    if code == "not_found" and param in ("model", "version"):
        found = "model_not_found"
    elif first and code == "not_found":
        message = detail
    elif first and len(faults) == 1 and first.detail.startswith(_MISSING):
        message, found = f"Missing required parameter: '{param}'.", "missing_required_parameter"
    elif first and len(faults) == 1 and first.detail.startswith(_UNKNOWN):
        message, found = f"Unknown parameter: '{param}'.", "unknown_parameter"
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    body = OpenAIError(message, kind, param, found, [FaultBody(f.pointer, f.detail) for f in faults])
    return 400 if status == 422 and code == "invalid" else status, msgspec.json.encode(OpenAIErrorBody(body))
