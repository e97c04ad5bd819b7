"""The API described: OpenAPI 3.1 from the wire shapes, with examples, and a plain page made from it."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from http import HTTPStatus
from importlib.metadata import version as version_of
from typing import cast

import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from api import examples, examples_data, openai
from api.http import answer
from api.openapi_costs import COST_OPERATIONS
from api.openapi_data import BATCH_ID, DATA_OPERATIONS, DATA_SHAPES, refine
from api.openapi_schedules import SCHEDULE_OPERATIONS, SCHEDULE_SHAPES, refine_schedules
from api.openapi_traffic import TRAFFIC_OPERATIONS, TRAFFIC_SHAPES, refine_traffic
from api.openapi_webhooks import WEBHOOK_OPERATIONS, WEBHOOK_SHAPES, refine_webhooks
from api.operations import KEY, OBJECT, REF, Json, Operation, content, parameter, ref
from batchline.job import Status
from batchline.v2_tensors import InferBody
from batchline.wire import JobBody, JobList, Problem, SubmitBody

_JOB_ID = {"type": "string", "pattern": "^job_[0-9a-v]{25}[048cgkos]$"}


_PREFER = parameter(
    "header", "Prefer", {"type": "string"}, "`wait=N`: wait up to N seconds (at most 60) for the end.", "wait=10"
)
_ID = parameter("path", "job_id", _JOB_ID, "The id of a job.", examples.JOB["id"])
_MODEL = parameter("path", "model", {"type": "string", "minLength": 1}, "The name of a model.", "digits")
_VERSION = parameter("path", "version", {"type": "string", "minLength": 1}, "A version, or `production`.", "1")
_LIST = (
    parameter("query", "status", {"type": "string", "enum": [s.value for s in Status]}, "Only jobs that stand so."),
    parameter("query", "model", {"type": "string", "pattern": "^[^\\x00]*$"}, "Only jobs of this model."),
    parameter("query", "batch", BATCH_ID, "Only the slices of this batch; without it, none of any."),
    parameter("query", "after", _JOB_ID, "The last id of the page before."),
    parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "Jobs on a page."),
)
_INFER = Operation(
    "post",
    "/v2/models/{model}/infer",
    "v2_infer",
    "Submit tensors and wait for the outputs",
    {200: content(OBJECT, examples.INFERRED), 202: content(ref("JobBody"), examples.JOB)},
    (400, 404, 409, 410, 413, 415, 422, 429, 500, 503, 504),
    content(ref("InferBody"), examples.INFER)
    | {"application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}},
    (_MODEL, _PREFER, KEY),
    "submit",
    "Open Inference Protocol v2, with the binary tensor extension, gzip and deflate. The first axis of every tensor is"
    " the rows. The answer waits up to 60 s (504 after that; the job goes on); `Prefer: respond-async` answers 202 with"
    " a job. If any row fails, the whole answer is an error, since a tensor has no place for a missing row.",
)
_V2_MODEL = Operation(
    "get",
    "/v2/models/{model}",
    "v2_model",
    "Read the signature of a model",
    {200: content(OBJECT)},
    (404, 503),
    None,
    (_MODEL,),
    "read",
)
_V2_READY = Operation(
    "get",
    "/v2/models/{model}/ready",
    "v2_model_ready",
    "Ask whether a model may be used",
    {200: content(OBJECT)},
    (404, 503),
    None,
    (_MODEL,),
    "read",
)


def _versioned(operation: Operation) -> Operation:
    path = operation.path.replace("{model}", "{model}/versions/{version}")
    return replace(operation, path=path, name=f"{operation.name}_version", parameters=(*operation.parameters, _VERSION))


OPERATIONS = (
    Operation(
        "post",
        "/v1/jobs",
        "submit_job",
        "Submit rows as a job",
        {200: content(ref("JobBody"), examples.DONE), 202: content(ref("JobBody"), examples.JOB)},
        (400, 404, 409, 410, 413, 415, 422, 429, 503),
        content(ref("SubmitBody"), examples.SUBMIT),
        (_PREFER, KEY),
        "submit",
        "202 means that the job is on disk. With `Prefer: wait=N`, 200 and the finished job if it ends in time. A 503"
        " that says so may have been accepted: repeat it with the same Idempotency-Key.",
    ),
    Operation(
        "get", "/v1/jobs", "list_jobs", "List jobs, newest first, without outputs",
        {200: content(ref("JobList"))}, (422, 503), None, _LIST, "read",
    ),
    Operation(
        "get", "/v1/jobs/{job_id}", "get_job", "Read a job and its results",
        {200: content(ref("JobBody"), examples.DONE)}, (404, 410, 503), None, (_ID, _PREFER), "read",
    ),
    Operation(
        "post", "/v1/jobs/{job_id}/cancel", "cancel_job", "Cancel a job",
        {200: content(ref("JobBody"))}, (404, 409, 503), None, (_ID,), "submit",
        "A job that is cancelled already is answered again; one that has ended otherwise is 409.",
    ),
    *DATA_OPERATIONS,
    *SCHEDULE_OPERATIONS,
    *COST_OPERATIONS,
    Operation("get", "/v1/models", "list_models", "List models", {200: content(OBJECT)}, (503,), scope="read"),
    Operation(
        "get", "/v1/models/{model}", "get_model", "Read a model: versions, signature, policy",
        {200: content(OBJECT)}, (404, 503), None, (_MODEL,), "read",
    ),
    *TRAFFIC_OPERATIONS,
    *WEBHOOK_OPERATIONS,
    Operation("get", "/v1/workers", "list_workers", "List workers", {200: content(OBJECT)}, (503,), scope="admin"),
    Operation(
        "get", "/v1/backlog", "get_backlog", "Read how much is queued and running, by pool",
        {200: content(OBJECT, examples.BACKLOG)}, (503,), scope="admin",
        description="For scalers that follow a number, as KEDA's metrics-api: `pools.cpu.unfinished_rows`. Every pool"
        " of a model is there, also without work.",
    ),
    Operation(
        "get", "/v1/autoscaler", "get_autoscaler", "Read what the autoscaler sees, wants and has, by pool",
        {200: content(OBJECT, examples.AUTOSCALER)}, (503,), scope="admin",
        description="Decisions are kept when they change, and once a minute; `age_s` is that of the last one. A scaler"
        " may follow `pools.cpu.desired`. Instances that are gone are shown for an hour.",
    ),
    Operation("get", "/livez", "livez", "Whether the process lives", {200: content(OBJECT)}),
    Operation("get", "/readyz", "readyz", "Whether the process can take work", {200: content(OBJECT)}, (503,)),
    Operation(
        "get", "/metrics", "metrics", "Read the metrics of this process",
        {200: content({"type": "string"}, media_type="text/plain")}, scope="admin",
        description="For Prometheus: its text format, or OpenMetrics if the request accepts it.",
    ),
    Operation("get", "/v2", "v2_server", "Name, version and extensions", {200: content(OBJECT)}),
    Operation("get", "/v2/health/live", "v2_live", "Whether the process lives", {200: content(OBJECT)}),
    Operation("get", "/v2/health/ready", "v2_ready", "Whether it can take work", {200: content(OBJECT)}, (503,)),
    _V2_MODEL,
    _versioned(_V2_MODEL),
    _V2_READY,
    _versioned(_V2_READY),
    _INFER,
    _versioned(_INFER),
    Operation("get", "/openapi.json", "openapi", "This description", {200: content(OBJECT)}),
    Operation(
        "get", "/docs", "docs", "This description to read", {200: content({"type": "string"}, media_type="text/html")}
    ),
)  # fmt: skip
"""Every route; a test holds it equal to the route table."""


def document(max_rows: int) -> Json:
    """The whole OpenAPI document."""
    shapes = [
        SubmitBody, JobBody, JobList, Problem, InferBody, *DATA_SHAPES, *SCHEDULE_SHAPES, *TRAFFIC_SHAPES,
        *WEBHOOK_SHAPES,
    ]  # fmt: skip
    _, schemas = msgspec.json.schema_components(shapes, ref_template=REF, schema_hook=_anything)
    submit = cast("Json", schemas["SubmitBody"]["properties"])
    submit["inputs"] = {"type": "array", "minItems": 1, "maxItems": max_rows, "description": "A row: a nested list, an"
                        " object of inputs by name, or a string, as the model takes it. The value of a list of one"
                        " may stand by itself."}  # fmt: skip
    submit["parameters"] |= {"maxProperties": 0}
    submit["metadata"] = {"type": ["object", "null"]}
    job = cast("Json", schemas["JobBody"]["properties"])
    for name, kind in (("outputs", "array"), ("errors", "array"), ("timings_ms", "object"), ("metadata", "object")):
        job[name] = {"type": [kind, "null"]}
    refine(schemas)
    refine_schedules(schemas)
    refine_traffic(schemas)
    refine_webhooks(schemas)
    schemas["V2Error"] = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Batchline",
            "version": version_of("batchline"),
            "description": "Asynchronous batch inference: submit rows, get an id at once, read the result.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        },
    }


def _anything(_: type) -> Json:
    """The schema of what is not looked into."""
    return {"description": "Any JSON value."}


def _operation(operation: Operation) -> Json:
    errors = operation.errors + ((401, 403) if operation.scope else ())
    responses: Json = {
        str(status): {"description": HTTPStatus(status).phrase, "content": told}
        for status, told in operation.answers.items()
    }
    for status in sorted(errors):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": _error(status, operation.path)}
    found: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": " ".join(
            filter(None, (operation.description, operation.scope and f"Needs the scope `{operation.scope}`."))
        ),
        "parameters": list(operation.parameters),
        "responses": responses,
        "security": [{"key": []}] if operation.scope else [],
    }
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": operation.body}
    return found


def _error(status: int, path: str) -> Json:
    if openai.speaks(path):
        return content(ref("OpenAIErrorBody"), examples_data.ERRORS.get(status))
    if path.startswith("/v2"):
        return content(ref("V2Error"), {"error": HTTPStatus(status).phrase})
    return content(ref("Problem"), examples.PROBLEMS.get(status), media_type="application/problem+json")


def page(described: Json) -> str:
    """The description as one page of HTML that loads nothing."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Batchline API</title>",
             ("<style>body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
             "pre{background:#f4f4f4;padding:1em;overflow:auto}h2{margin-top:2em}</style>"),
             f"<h1>Batchline API {html.escape(described['info']['version'])}</h1>",
             "<p>The same for programs: <a href=/openapi.json>/openapi.json</a></p>"]  # fmt: skip
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p><b>{html.escape(operation['summary'])}.</b> {html.escape(operation['description'])}</p>")
            parts += [_line(p) for p in operation["parameters"]]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            parts += [_sample("Request", body)] if body else []
            for status, response in operation["responses"].items():
                sample: Json = next(iter(response["content"].values()))
                if status.startswith("2") and "example" in sample:
                    parts.append(_sample(f"{status} {response['description']}", sample["example"]))
            parts.append(f"<p>Answers: {', '.join(operation['responses'])}</p>")
    return "\n".join(parts)


def _line(parameter: Json) -> str:
    name, place, told = (html.escape(str(parameter[k])) for k in ("name", "in", "description"))
    return f"<p><code>{name}</code> ({place}): {told}</p>"


def _sample(title: str, value: object) -> str:
    return f"<p>{html.escape(title)}</p><pre>{html.escape(json.dumps(value, indent=1))}</pre>"


def handlers(max_rows: int) -> list[HTTPRouteHandler]:
    """The two routes that tell of all others."""
    described = document(max_rows)
    as_json, as_html = msgspec.json.encode(described), page(described).encode()

    async def openapi() -> ASGIResponse:
        return answer(200, as_json)

    async def docs() -> ASGIResponse:
        return answer(200, as_html, media_type="text/html; charset=utf-8")

    return [get("/openapi.json", name="openapi")(openapi), get("/docs", name="docs")(docs)]
