"""workers: what runs the models, as the API sees it."""

from __future__ import annotations

from typing import Any, cast

from batchline.cli.output import Json, tell_json, tell_table
from batchline.cli.places import open_client


def workers(*, as_json: Json = False) -> None:
    """List the workers of the last hour."""
    with open_client() as client:
        answer = cast("dict[str, Any]", client.request("GET", "/v1/workers"))
    if as_json:
        tell_json(answer["data"])
        return
    tell_table(
        ["worker", "state", "pool", "device", "host", "pid", "rows/s", "models"],
        [(w["id"], _state(w), w["pool"], w["device"], w["host"], w["pid"], f"{w['rows_per_s']:.1f}",
          " ".join(w["models"])) for w in answer["data"]],
    )  # fmt: skip


def _state(worker: dict[str, Any]) -> str:
    if not worker["live"]:
        return "dead"
    return "draining" if worker["draining"] else "live"
