"""Files and batches described: their routes, and what their schemas say beyond the types."""

from __future__ import annotations

from typing import cast

from api import examples_data as examples
from api.operations import KEY, Json, Operation, content, parameter, ref
from batchline.batch_bodies import MAX_METADATA_KEY, MAX_METADATA_PAIRS, MAX_METADATA_VALUE
from batchline.wire import (
    BatchBody,
    BatchList,
    DataSetBody,
    FileBody,
    FileDeleted,
    FileList,
    OpenAIErrorBody,
    RequestsBody,
)

DATA_SHAPES = (BatchBody, BatchList, DataSetBody, FileBody, FileDeleted, FileList, OpenAIErrorBody, RequestsBody)

_TAIL = "[0-9a-v]{25}[048cgkos]$"
BATCH_ID = {"type": "string", "pattern": f"^batch_{_TAIL}"}
_FILE_ID = {"type": "string", "pattern": f"^file-{_TAIL}"}
_BATCH = parameter("path", "batch_id", BATCH_ID, "The id of a batch.", examples.BATCH["id"])
_FILE = parameter("path", "file_id", _FILE_ID, "The id of a file.", examples.FILE["id"])
_BYTES: Json = {"type": "string", "contentMediaType": "application/octet-stream"}
_FORM: Json = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"contentMediaType": "application/octet-stream"},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}
_METADATA: Json = {
    "type": ["object", "null"],
    "maxProperties": MAX_METADATA_PAIRS,
    "propertyNames": {"maxLength": MAX_METADATA_KEY},
    "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE},
}


def _limit(most: int, default: int) -> Json:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return parameter("query", "limit", schema, "How many of them.")


def _after(schema: Json) -> Json:
    return parameter("query", "after", schema, "The last id of the page before.")


def _batch_move(name: str, summary: str, description: str, *errors: int) -> Operation:
    return Operation(
        "post",
        f"/v1/batches/{{batch_id}}/{name}",
        f"{name}_batch",
        summary,
        {200: content(ref("BatchBody"), examples.BATCH)},
        (404, 409, 503, *errors),
        None,
        (_BATCH, KEY) if name == "retry" else (_BATCH,),
        "submit",
        description,
    )


DATA_OPERATIONS = (
    Operation(
        "post", "/v1/files", "create_file", "Upload a file of requests",
        {200: content(ref("FileBody"), examples.FILE)}, (400, 413, 415, 503),
        content(_FORM, media_type="multipart/form-data"), (), "submit",
        "Streamed to the blob store. The lines are read when a batch is made of it.",
    ),
    Operation(
        "get", "/v1/files", "list_files", "List files, newest first",
        {200: content(ref("FileList"))}, (400, 503), None,
        (
            _after(_FILE_ID),
            _limit(10_000, 10_000),
            parameter("query", "order", {"type": "string", "enum": ["asc", "desc"]}, "By time of creation."),
            parameter("query", "purpose", {"type": "string", "pattern": "^[^\\x00]*$"}, "Only files of this purpose."),
        ),
        "read",
    ),
    Operation(
        "get", "/v1/files/{file_id}", "get_file", "Read what is known of a file",
        {200: content(ref("FileBody"), examples.FILE)}, (404, 503), None, (_FILE,), "read",
    ),
    Operation(
        "get", "/v1/files/{file_id}/content", "get_file_content", "Read a file",
        {200: content(_BYTES, media_type="application/octet-stream")}, (404, 503), None, (_FILE,), "read",
    ),
    Operation(
        "delete", "/v1/files/{file_id}", "delete_file", "Delete a file",
        {200: content(ref("FileDeleted"), examples.DELETED)}, (404, 503), None, (_FILE,), "submit",
        "A batch that is being made of it goes on.",
    ),
    Operation(
        "post", "/v1/batches", "create_batch", "Submit a batch: a data set, or a file of requests",
        {200: content(ref("BatchBody"), examples.BATCH)}, (400, 404, 409, 410, 413, 415, 422, 429, 503),
        content({"anyOf": [ref("DataSetBody"), ref("RequestsBody")]}, examples.DATA_SET), (KEY,), "submit",
        "With `model`, the rows of `input` are scored into `output`; without an output they are read from /results."
        " With `input_file_id`, it is OpenAI's: each line of the file is a request to `endpoint`. The batch is"
        " `validating` until its rows have been counted and cut into slices.",
    ),
    Operation(
        "get", "/v1/batches", "list_batches", "List batches, newest first",
        {200: content(ref("BatchList"))}, (400, 503), None, (_after(BATCH_ID), _limit(100, 20)), "read",
    ),
    Operation(
        "get", "/v1/batches/{batch_id}", "get_batch", "Read a batch",
        {200: content(ref("BatchBody"), examples.BATCH)}, (404, 503), None, (_BATCH,), "read",
        "The parts of `rows` add up to its total at every read.",
    ),
    Operation(
        "get", "/v1/batches/{batch_id}/results", "get_batch_results", "Read the results of a data set",
        {200: content({"type": "string"}, examples.RESULTS, media_type="application/jsonl")}, (400, 404, 410, 503),
        None,
        (
            _BATCH,
            parameter("query", "after", {"type": "integer", "minimum": 0, "maximum": 10**15}, "A row number."),
            parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": 10**15}, "Most rows."),
        ),
        "read",
        "JSON lines in the order of rows, up to the first that is not finished; a row that failed has an `error`."
        " `Batchline-Complete: true` means that the batch had ended, so that no more will come; what `limit` cut off is"
        " read with `after`.",
    ),
    _batch_move(
        "cancel", "Cancel a batch", "Rows that are done stay. A batch that is cancelled already is answered again."
    ),
    _batch_move("pause", "Pause a batch", "What is running finishes; the batch stays in_progress, with `paused_at`."),
    _batch_move("resume", "Resume a batch", "The inverse of pause."),
    _batch_move(
        "retry", "Do again what a batch left undone",
        "A new batch with `parent_id`, of the rows that failed, were cancelled or expired; of all rows if the batch"
        " never began, as when its file came late.", 400, 410, 422,
    ),
)  # fmt: skip


def refine(schemas: Json) -> None:
    """Say of the schemas what types cannot."""
    for name in ("DataSetBody", "RequestsBody", "BatchBody"):
        cast("Json", schemas[name]["properties"])["metadata"] = _METADATA
    requests = cast("Json", schemas["RequestsBody"]["properties"])
    requests["input_file_id"] = _FILE_ID
    requests["endpoint"] = {"type": "string", "pattern": "^(/v1/jobs|/v2/models/[a-z0-9][a-z0-9._-]{0,99}/infer)$"}
    requests["completion_window"] = {"type": "string", "pattern": "^[1-9][0-9]{0,5}[mhd]$"}
    cast("Json", schemas["InputBody"]["properties"])["rows"] = {
        "type": "array", "minItems": 1, "description": "As jobs take them, or objects of columns.",
    }  # fmt: skip
