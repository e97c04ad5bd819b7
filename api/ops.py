"""Health, metrics, models and workers: what operators and probes ask."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from prometheus_client.exposition import choose_encoder

from api.http import answer, headers_of
from api.services import Services
from api.traffic import shown
from batchline.errors import BatchlineError, NotFoundError, StoreUnavailableError
from batchline.metrics import REGISTRY
from batchline.store.health import read_schema
from batchline.store.migrations import head
from batchline.traffic import Versions

AnyRequest = Request[Any, Any, Any]
_PING_FRESH_S = 1.0
_PING_WAIT_S = 2.0


class Health:
    """Whether work can be taken: the database answers and has our schema, and the process is not about to end."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._schema = head()
        self._asked: asyncio.Future[str | None] | None = None
        self._asked_at = float("-inf")
        self.draining = False

    async def check(self) -> None:
        """Raise StoreUnavailableError unless ready; asks Postgres at most once a second."""
        if self.draining:
            raise StoreUnavailableError("This process is about to end.")
        loop = asyncio.get_running_loop()
        if self._asked is None or (self._asked.done() and loop.time() - self._asked_at > _PING_FRESH_S):
            self._asked = asyncio.ensure_future(self._s.ask(lambda: read_schema(self._s.store.db)))
            self._asked_at = loop.time()
        try:
            schema = await asyncio.wait_for(asyncio.shield(self._asked), _PING_WAIT_S)
        except (TimeoutError, BatchlineError):
            raise StoreUnavailableError("The database does not answer.") from None
        # A newer one is a roll-out under way: this process serves on until its turn comes.
        if schema is None or schema < self._schema:
            raise StoreUnavailableError(
                f"The database has schema {schema or 'none'}, this code needs {self._schema}: run `batchline migrate`."
            )


class OpsRoutes:
    """The handlers."""

    def __init__(self, services: Services, health: Health) -> None:
        self._s = services
        self._health = health

    def handlers(self) -> list[HTTPRouteHandler]:
        return [
            get("/livez", name="livez")(self.live),
            get("/readyz", name="readyz")(self.ready),
            get("/metrics", name="metrics")(self.metrics),
            get("/v1/models", name="list_models")(self.models),
            get("/v1/models/{model:str}", name="get_model")(self.model),
            get("/v1/workers", name="list_workers")(self.workers),
        ]

    async def live(self) -> ASGIResponse:
        return answer(200, b'{"status":"ok"}')

    async def ready(self) -> ASGIResponse:
        await self._health.check()
        return answer(200, b'{"status":"ok"}')

    async def metrics(self, request: AnyRequest) -> ASGIResponse:
        """This process's, in the format that the scraper accepts."""
        headers = headers_of(request.scope)
        await self._s.keys.check(headers, "admin")
        encode, media_type = choose_encoder(headers.get(b"accept", b"").decode("latin-1"))
        return answer(200, encode(REGISTRY), media_type=media_type)

    async def models(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "read")
        known = self._s.models.known
        data = [_model(known, name) for name in known.names()]
        return answer(200, msgspec.json.encode({"object": "list", "data": data}))

    async def model(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "read")
        record = await self._s.models.resolve(request.path_params["model"], "latest")
        return answer(200, msgspec.json.encode(_model(self._s.models.known, record.spec.name)))

    async def workers(self, request: AnyRequest) -> ASGIResponse:
        await self._s.keys.check(headers_of(request.scope), "admin")
        views = await self._s.ask(self._s.store.workers.list)
        known = self._s.models.known
        refs = {r.id: r.spec.ref for name in known.names() for r in known.of(name)}
        data = [
            {
                "id": str(w.id),
                "object": "worker",
                "host": w.host,
                "pid": w.pid,
                "pool": w.pool,
                "device": w.device,
                "started_at": w.started_at,
                "heartbeat_at": w.heartbeat_at,
                "live": w.live,
                "draining": w.draining,
                "models": w.models.split(),
                "rows_per_s": w.rows_per_s,
                "speeds": {
                    refs[model_id]: {"online": speed.online or None, "bulk": speed.bulk or None}
                    for model_id, speed in w.speeds.items()
                    if model_id in refs
                },
                "instance": w.instance or None,
            }
            for w in views
        ]
        return answer(200, msgspec.json.encode({"object": "list", "data": data}))


def _model(known: Versions, name: str) -> dict[str, object]:
    records, rule = known.of(name), known.rule(name)
    if rule is None:
        raise NotFoundError("There is no such model.")
    return {
        "id": name,
        "object": "model",
        "created": int(records[0].created_at_s),
        "owned_by": "batchline",
        "aliases": {alias: str(version) for alias, version in known.aliases(name).items()},
        "traffic": shown(rule),
        "versions": [
            {
                "version": r.spec.version,
                "created": int(r.created_at_s),
                "digest": r.spec.digest,
                "size_bytes": r.spec.size_bytes,
                "inputs": r.spec.inputs,
                "outputs": r.spec.outputs,
                "policy": r.spec.policy,
                "text": r.spec.text,
            }
            for r in records
        ],
    }
