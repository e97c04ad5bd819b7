"""What several tests of one process and its neighbours start from."""

from __future__ import annotations

from collections.abc import Iterator

import api_server
import pytest
import stack
from api_server import Running

from batchline.local.servers import PostgresServer, ValkeyServer


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer) -> Iterator[Running]:
    """An API on a database of the module's own, and somebody who does its jobs."""
    with (
        stack.database_from(postgres.url, template) as url,
        api_server.running_api(url, valkey.url) as running,
        api_server.fake_worker(running, valkey.url),
    ):
        yield running
