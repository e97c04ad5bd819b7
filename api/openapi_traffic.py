"""The traffic of models described: its routes, with examples, and what their schemas say beyond the types."""

from __future__ import annotations

from typing import cast

from api.operations import Json, Operation, content, parameter, ref
from batchline.wire_traffic import TrafficBody, TrafficShown

TRAFFIC_SHAPES = (TrafficBody, TrafficShown)

_BODY: Json = {"production": "1", "canary": None, "shadow": None}
_SET: Json = {
    "model": "digits",
    "production": "3",
    "canary": {"version": "4", "percent": 5.0},
    "shadow": "5",
    "updated_at": "2026-11-22T03:24:04.271374Z",
    "lately": None,
    "object": "model.traffic",
}
_READ: Json = _SET | {
    "lately": {
        "window_s": 3600.0,
        "production": {"version": "3", "jobs": 1902, "failed": 2, "p50_ms": 0.412, "p95_ms": 0.98},
        "canary": {"version": "4", "jobs": 98, "failed": 0, "p50_ms": 0.377, "p95_ms": 0.91},
        "shadow": {"version": "5", "jobs": 1997, "failed": 0, "p50_ms": 0.702, "p95_ms": 1.77},
        "compared": {"pairs": 256, "agree": 251},
    }
}
_RESET: Json = _BODY | {"model": "digits", "updated_at": None, "lately": None, "object": "model.traffic"}

_PATH = "/v1/models/{model}/traffic"
_MODEL = parameter("path", "model", {"type": "string", "minLength": 1}, "The name of a model.", "digits")
_PERCENT = (
    " The canary takes `percent` of the jobs, chosen by the Idempotency-Key, else by the job's id: a submit that is"
    " repeated goes to the same version."
)

TRAFFIC_OPERATIONS = (
    Operation(
        "get", _PATH, "get_traffic", "Read which version takes a model's jobs, and how the versions do",
        {200: content(ref("TrafficShown"), _READ)}, (404, 503), None, (_MODEL,), "read",
        "`lately` is for keys with the scope `admin`. It counts jobs of the last hour that have ended, among the newest"
        " 20,000 of all models, by version, however they came to it; those of the shadow are copies. `compared` are the"
        " newest 256 copies of which the client's job and the copy succeeded with small outputs: a pair agrees if all"
        " rows have the same labels (whole numbers, booleans, texts), or where the model gives only floats, if they are"
        " within 0.001 of each other, or of one in a thousand.",
    ),
    Operation(
        "put", _PATH, "set_traffic", "Set which version takes the jobs that name none",
        {200: content(ref("TrafficShown"), _SET)}, (400, 404, 413, 415, 422, 503),
        content(ref("TrafficBody"), _BODY), (_MODEL,), "admin",
        "The body is the whole rule. It pins production: a version that is imported later takes no traffic until it is"
        f" named here.{_PERCENT} The shadow gets a copy of each of these jobs, which the client never sees: best"
        " effort, at the lowest priority, for an hour. Its inputs must be those of the others.",
    ),
    Operation(
        "delete", _PATH, "reset_traffic", "Go back to the highest version taking all jobs",
        {200: content(ref("TrafficShown"), _RESET)}, (404, 503), None, (_MODEL,), "admin",
    ),
)  # fmt: skip


def refine_traffic(schemas: Json) -> None:
    """Say of the schemas what types cannot."""
    version = {"anyOf": [{"type": "string", "pattern": "^[0-9]{1,9}$"}, {"type": "integer", "minimum": 1}]}
    cast("Json", schemas["TrafficBody"]["properties"])["production"] = version
    cast("Json", schemas["TrafficBody"]["properties"])["shadow"] = {"anyOf": [*version["anyOf"], {"type": "null"}]}
    cast("Json", schemas["CanaryBody"]["properties"])["version"] = version
