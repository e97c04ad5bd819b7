"""The composition root: one application over a store, a nudger and hints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from litestar import Litestar
from litestar.types import ASGIApp

from api import openapi
from api.admission import Admission, Limits
from api.asking import Asking
from api.auth import Keys
from api.backlog import Backlog
from api.batches import data_routes
from api.catalogue import Models
from api.commits import Commits
from api.costs import CostRoutes
from api.front import Front
from api.jobs import JobRoutes
from api.ops import Health, OpsRoutes
from api.problems import handle
from api.protocol_v2 import V2Routes
from api.reads import Reads
from api.refresh import Refresh
from api.scaling import ScalingRoutes
from api.services import Services
from api.shadows import Shadows
from api.traffic import TrafficRoutes
from api.webhooks import WebhookRoutes
from batchline.clock import SystemClock
from batchline.queue.contract import Finished, Nudger
from batchline.settings import Settings
from batchline.store import Store, open_store
from batchline.store.clock import StoreClock
from batchline.webhook import parse_allowed

CLOSE_S = 10.0
_SLACK_S = 0.5
SHADOW_STATEMENT_S = 5.0


@dataclass(frozen=True)
class Api:
    """The application, its services, and how to make it stop taking work."""

    app: ASGIApp
    litestar: Litestar
    services: Services
    health: Health

    def drain(self) -> None:
        """From now on: not ready, and nobody is kept waiting. Called in the event loop."""
        self.health.draining = True
        self.services.reads.release()


def build(settings: Settings, store: Store, nudger: Nudger, hints: Finished) -> Api:
    """Put one API process together; nothing runs before the application's lifespan begins."""
    clock = StoreClock(store.db, SystemClock())
    # Keys, pings, lists and cancels; with commits, reads and refresh that is six connections at most.
    ask = Asking(threads=3, timeout_s=settings.group_wait_s + _SLACK_S)
    parsing = ThreadPoolExecutor(2, thread_name_prefix="parse")
    models = Models(store.catalogue.models, store.traffic.rules, ask, clock)
    backlog = Backlog(
        store.chores,
        store.workers,
        max_rows_tenant=settings.max_queued_rows_tenant,
        max_rows=settings.max_queued_rows,
    )
    # One connection more, opened at the first copy, which must not take one from what clients wait for.
    shadow_store = open_store(settings.database_url, connections=1, statement_timeout_s=SHADOW_STATEMENT_S)
    limits = Limits(settings.max_rows, settings.ttl_default_s, parse_allowed(settings.webhook_allow))
    services = Services(
        settings=settings,
        store=store,
        ask=ask,
        parsing=parsing,
        keys=Keys(store.catalogue.find_key, ask, clock),
        models=models,
        backlog=backlog,
        admission=Admission(models, backlog, parsing, clock, limits),
        commits=Commits(
            store.jobs.submit, nudger.nudge, wait_s=settings.group_wait_s, limit_bytes=settings.group_bytes
        ),
        shadows=Shadows(shadow_store.traffic.copy, nudger.nudge, backlog.shadow_rows, clock),
        reads=Reads(store.jobs, timeout_s=settings.group_wait_s + _SLACK_S),
    )
    refresh = Refresh([clock.refresh, models.refresh, backlog.refresh])
    health = Health(services)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        loop = asyncio.get_running_loop()
        services.commits.start(loop)
        services.reads.start(loop)
        services.shadows.start(loop)
        refresh.start()
        hints.listen(services.reads.hint)
        yield
        await asyncio.to_thread(_close, services, refresh, nudger, hints)
        shadow_store.close()
        ask.close()
        parsing.shutdown(wait=False, cancel_futures=True)

    jobs = JobRoutes(services)
    litestar = Litestar(
        route_handlers=[
            *jobs.handlers(),
            *V2Routes(services, health).handlers(),
            *data_routes(services, clock),
            *OpsRoutes(services, health).handlers(),
            *TrafficRoutes(services).handlers(),
            *WebhookRoutes(services).handlers(),
            *ScalingRoutes(services).handlers(),
            *CostRoutes(services, clock).handlers(),
            *openapi.handlers(settings.max_rows),
        ],
        exception_handlers={Exception: handle},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
        lifespan=[lifespan],
    )
    return Api(cast("ASGIApp", Front(litestar, jobs)), litestar, services, health)


def _close(services: Services, refresh: Refresh, nudger: Nudger, hints: Finished) -> None:
    services.commits.close(CLOSE_S)
    services.shadows.close(1.0)
    services.reads.close(1.0)
    refresh.close(1.0)
    nudger.close()
    hints.close()
