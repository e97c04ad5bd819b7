"""What OpenAPI is told of costs."""

from __future__ import annotations

from api.examples import JOB
from api.operations import OBJECT, Json, Operation, content, parameter
from batchline.store.cost_contract import By

_WHEN = "A date (its midnight, UTC) or a time with its zone"
_COSTS: Json = {
    "object": "costs",
    "by": "tenant",
    "from": "2026-11-22T00:00:00Z",
    "to": "2026-11-22T10:00:00Z",
    "data": [
        {"key": "default", "idle": False, "worker_s": 5400.0, "cost": 0.0465, "on_demand": 0.1339},
        {"key": None, "idle": True, "worker_s": 1800.0, "cost": 0.0155, "on_demand": 0.0446},
    ],
    "total": {"machines": 2, "machine_s": 7200.0, "cost": 0.062, "on_demand": 0.1785, "saved": 0.1165},
}
_JOB_COST: Json = {
    "object": "job_cost",
    "id": JOB["id"],
    "machine": "i-0a1b2c3d4e5f60718",
    "worker_s": 0.0021,
    "cost": 1.8e-08,
    "on_demand": 5.2e-08,
}

COST_OPERATIONS = (
    Operation(
        "get", "/v1/costs", "get_costs", "Read what machines cost, and for whom",
        {200: content(OBJECT, _COSTS)}, (422, 503), None,
        (
            parameter("query", "by", {"type": "string", "enum": [by.value for by in By], "default": By.TENANT.value},
                      "What lines are told by."),
            parameter("query", "from", {"type": "string"}, f"{_WHEN}; by default midnight before `to`.", "2026-11-22"),
            parameter("query", "to", {"type": "string"}, f"{_WHEN}; by default now.", "2026-11-22T10:00:00Z"),
        ),
        "admin",
        "Hours are whole, at most 92 days of them. The lines add up to the total: what no job had is a line of its own,"
        " `idle`. Workers report every few seconds. A batch of the line is null for jobs outside of batches; beyond a"
        " thousand lines there is one for all others.",
    ),
    Operation(
        "get", "/v1/jobs/{job_id}/cost", "get_job_cost", "Read what a job cost",
        {200: content(OBJECT, _JOB_COST)}, (404, 503), None,
        (parameter("path", "job_id", {"type": "string", "pattern": "^job_[0-9a-v]{25}[048cgkos]$"}, "The id of a job.",
                   JOB["id"]),),
        "read",
        "Its part of the worker's time, at what the machine cost in that hour. Null while it is not known: before the"
        " end, until the worker's next report, after the result was deleted, and where nothing has a price.",
    ),
)  # fmt: skip
