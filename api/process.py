"""One API process from its environment to its end."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from types import FrameType
from typing import Any, cast

import uvicorn

from api.app import Api, build
from api.connection import Connection
from batchline import logs, metrics
from batchline import settings as settings_module
from batchline.errors import BatchlineError
from batchline.queue.celery_queue import CeleryNudger
from batchline.queue.hints import Hints
from batchline.settings import Settings
from batchline.store import Store, open_store
from batchline.store.migrations import check

log = logging.getLogger("api")

GRACE_S = 10
"""How long requests in flight may take after SIGTERM."""

_STATEMENT_S = 10.0

_GARBAGE = 10_000
"""Objects that may come up before the collector looks for cycles; requests leave none behind."""


class Server(uvicorn.Server):
    """Sends waiting clients home before it waits for their requests."""

    def __init__(self, config: uvicorn.Config, api: Api) -> None:
        super().__init__(config)
        self._api = api

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._api.drain()
        await super().shutdown(sockets)


def serve(api: Api, host: str, port: int) -> Server:
    """A server for the application, not yet running."""
    config = uvicorn.Config(
        cast("Any", api.app),
        host=host,
        port=port,
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config, api)


def store_for(settings: Settings) -> Store:
    """The store of an API process. Its statements are short, and who asked is not kept waiting for longer.

    So a limit that is a third of that of other processes brings it back the sooner from a Postgres that hung.
    """
    limit_s = max(_STATEMENT_S, 2 * settings.group_wait_s)
    return open_store(settings.database_url, connections=settings.connections, statement_timeout_s=limit_s)


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        StoreUnavailableError: Postgres does not answer, or its schema is not ours.
    """
    store = store_for(settings)
    store.db.ping()
    check(settings.database_url)
    metrics.serve(settings.metrics_port, settings.metrics_host)
    nudger = CeleryNudger(settings.redis_url, Hints(settings.redis_url))
    server = serve(build(settings, store, nudger, Hints(settings.redis_url)), settings.host, settings.port)
    for ended_by in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again when it has shut down; by then it has been obeyed.
        signal.signal(ended_by, _obeyed)
    _spare_the_collector()
    log.info("serving", extra={"host": settings.host, "port": settings.port})
    server.run()
    store.close()
    return 0 if server.started else 1


def _spare_the_collector() -> None:
    """What stands now lives as long as the process; walking through it again stops all requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)


def _obeyed(number: int, _: FrameType | None) -> None:
    log.info("ended", extra={"signal": signal.Signals(number).name})


def main() -> int:
    """Read the environment and run; faults of either are told in words and end the process with 1."""
    try:
        settings = settings_module.load()
        logs.configure(level=settings.log_level)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        return run(settings)
    except BatchlineError as e:
        print(e.detail, file=sys.stderr)
        return 1
