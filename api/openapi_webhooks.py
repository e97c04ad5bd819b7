"""Webhooks described: their routes, with examples, and what their schemas say beyond the types."""

from __future__ import annotations

from typing import cast

from api.operations import Json, Operation, content, parameter, ref
from batchline.store.webhook_contract import MessageStatus
from batchline.webhook import BATCH_EVENTS, JOB_EVENTS, MAX_URL_CHARACTERS
from batchline.wire_webhooks import DeliveryList, DeliveryShown, EndpointList, EndpointShown, SecretShown

WEBHOOK_SHAPES = (DeliveryList, DeliveryShown, EndpointList, EndpointShown, SecretShown)

_EVENTS = [*JOB_EVENTS, *BATCH_EVENTS]
_MESSAGE_ID = {"type": "string", "pattern": "^msg_[0-9a-v]{25}[048cgkos]$"}
_ENDPOINT_ID = {"type": "string", "pattern": "^endpoint_[0-9a-v]{25}[048cgkos]$"}
_ENDPOINT: Json = {
    "id": "endpoint_qdrikg4ahkqu5shfd2h4o9gb94",
    "url": "https://example.com/batchline",
    "enabled": True,
    "created_at": "2026-11-22T03:24:04.271374Z",
    "disabled_at": None,
    "disabled_why": None,
    "object": "webhook_endpoint",
}
_LISTED: Json = {
    "id": "msg_06h02i2a7bs6d0i8lgbnfm6quo",
    "event": "job.succeeded",
    "status": "pending",
    "subject_id": "job_06h02i295tr8depcvro8po5se4",
    "endpoint_id": _ENDPOINT["id"],
    "url": _ENDPOINT["url"],
    "attempt_count": 1,
    "created_at": "2026-11-22T03:24:04.290455Z",
    "next_attempt_at": "2026-11-22T03:24:09.877012Z",
    "ended_at": None,
    "object": "webhook_delivery",
}
_READ: Json = _LISTED | {
    "attempts": [
        {"nth": 1, "at": "2026-11-22T03:24:04.81Z", "status_code": 502, "error": "answered 502", "duration_ms": 312}
    ]
}
_SECRET: Json = {
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
    "previous": None,
    "previous_until": None,
    "object": "webhook_secret",
}

_LIMIT = parameter(
    "query", "limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "How many of them."
)
_LIST = (
    parameter("query", "status", {"type": "string", "enum": [s.value for s in MessageStatus]}, "Only what stands so."),
    parameter("query", "event", {"type": "string", "enum": _EVENTS}, "Only what tells of this."),
    parameter("query", "after", _MESSAGE_ID, "The last id of the page before."),
    _LIMIT,
)
_MESSAGE = parameter("path", "message_id", _MESSAGE_ID, "The id of a delivery.", _LISTED["id"])
_DELIVERIES = "/v1/webhooks/deliveries"
_DELIVERY = _DELIVERIES + "/{message_id}"
_OF_ENDPOINT = parameter("path", "endpoint_id", _ENDPOINT_ID, "The id of an endpoint.", _ENDPOINT["id"])

WEBHOOK_OPERATIONS = (
    Operation(
        "get", _DELIVERIES, "list_deliveries", "List messages of webhooks, newest first, without their attempts",
        {200: content(ref("DeliveryList"), {
            "data": [_LISTED], "first_id": _LISTED["id"], "last_id": _LISTED["id"], "has_more": False, "object": "list",
        })}, (422, 503), None, _LIST, "read",
        "There is one for each job or batch that has ended, had a `webhook`, and whose event that asks for. Kept as"
        " long as the job or the batch.",
    ),
    Operation(
        "get", _DELIVERY, "get_delivery", "Read a message of a webhook and every attempt to deliver it",
        {200: content(ref("DeliveryShown"), _READ)}, (404, 503), None, (_MESSAGE,), "read",
    ),
    Operation(
        "post", _DELIVERY + "/replay", "replay_delivery", "Send a message again",
        {202: content(ref("DeliveryShown"), _READ)}, (404, 409, 503), None, (_MESSAGE,), "submit",
        "At once, with the same webhook-id and the same content, and with all its tries; also one that was delivered."
        " One that is under way is left to end. 409 while its endpoint is disabled.",
    ),
    Operation(
        "get", "/v1/webhooks/endpoints", "list_endpoints", "List the URLs that jobs and batches named",
        {200: content(ref("EndpointList"), {
            "data": [_ENDPOINT], "first_id": _ENDPOINT["id"], "last_id": _ENDPOINT["id"], "has_more": False,
            "object": "list",
        })}, (422, 503), None, (parameter("query", "after", _ENDPOINT_ID, "The last id of the page before."), _LIMIT),
        "read",
    ),
    Operation(
        "post", "/v1/webhooks/endpoints/{endpoint_id}/enable", "enable_endpoint", "Send an endpoint messages again",
        {200: content(ref("EndpointShown"), _ENDPOINT)}, (404, 503), None, (_OF_ENDPOINT,), "submit",
        "An endpoint is disabled when it answers 410. What ended meanwhile is sent by replay.",
    ),
    Operation(
        "get", "/v1/webhooks/secret", "get_webhook_secret", "Read what the messages of this tenant are signed with",
        {200: content(ref("SecretShown"), _SECRET)}, (503,), scope="submit",
        description="Standard Webhooks 1.0. Verify against `secret`, and against `previous` while there is one.",
    ),
    Operation(
        "post", "/v1/webhooks/secret/rotate", "rotate_webhook_secret", "Sign with a new secret",
        {200: content(ref("SecretShown"), _SECRET)}, (503,), scope="submit",
        description="The one before signs beside it for 24 hours, and one before that no more. Repeated"
        " within a minute, it changes nothing.",
    ),
)  # fmt: skip


def refine_webhooks(schemas: Json) -> None:
    """Say of the schemas what types cannot."""
    asked = cast("Json", schemas["Webhook"]["properties"])
    asked["url"] = {"type": "string", "pattern": "^https?://", "maxLength": MAX_URL_CHARACTERS, "description":
                    "Where to post; no user, no fragment, no private address."}  # fmt: skip
    asked["events"] = {"type": "array", "items": {"type": "string", "enum": _EVENTS}, "uniqueItems": True,
                       "description": "Those of a job, or those of a batch; none: all of them."}  # fmt: skip
