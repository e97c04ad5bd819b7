"""What several tests of one process and its neighbours start from."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import api_server
import pytest
import stack
from api_server import Running

from batchline.local.servers import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from aws_cloud import Cloud


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, template: str, valkey: ValkeyServer) -> Iterator[Running]:
    """An API on a database of the module's own, and somebody who does its jobs."""
    with (
        stack.database_from(postgres.url, template) as url,
        api_server.running_api(url, valkey.url) as running,
        api_server.fake_worker(running, valkey.url),
    ):
        yield running


@pytest.fixture(scope="module")
def module_cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    from aws_cloud import cloud  # moto is large, and few modules want it

    with cloud(request.module.clock) as made:
        yield made


@pytest.fixture
def aws(module_cloud: Cloud) -> Iterator[Cloud]:
    """A cloud without faults yet, in which time goes by the `clock` of the module."""
    module_cloud.proxy.reset()
    yield module_cloud
    module_cloud.proxy.reset()


@pytest.fixture
def pool() -> str:
    """A name that no other test has: they share the cloud."""
    return f"p{uuid.uuid4().hex[:8]}"
