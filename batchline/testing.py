"""Throw-away servers for tests, ours and users': real PostgreSQL and Valkey on free ports in a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from batchline.local.servers import PostgresServer, ValkeyServer

_FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextmanager
def ephemeral_postgres(
    settings: Mapping[str, str] | None = None, *, durable: bool = False
) -> Generator[PostgresServer]:
    """A running PostgreSQL with an empty database, gone with its data at the end of the block.

    Args:
        settings: the server's own settings, over the defaults.
        durable: keep fsync and synchronous_commit on, as a benchmark or a crash test needs.
    """
    with tempfile.TemporaryDirectory(prefix="batchline-pg-") as folder:
        server = PostgresServer(Path(folder), settings=({} if durable else _FORGETFUL) | dict(settings or {}))
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")


@contextmanager
def ephemeral_valkey(settings: Mapping[str, str] | None = None) -> Generator[ValkeyServer]:
    """A running, empty Valkey, gone with its data at the end of the block.

    Args:
        settings: the server's own settings, over the defaults.
    """
    with tempfile.TemporaryDirectory(prefix="batchline-valkey-") as folder:
        server = ValkeyServer(Path(folder), settings=settings)
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
