"""One embedded Postgres and Valkey for the whole run; each test gets a database and a key space of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import stack

from batchline.local.servers import PostgresServer, ValkeyServer
from batchline.store import Store, open_store
from batchline.store.migrations import migrate
from batchline.testing import ephemeral_postgres, ephemeral_valkey
from examples import digits

_KEY_SPACES = 64
_turns = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The run's Postgres. Tests that stop or kill a server start one of their own."""
    with ephemeral_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: PostgresServer) -> str:
    """The name of a migrated database that nobody connects to."""
    name = "batchline_template"
    stack.query(postgres.url, f"CREATE DATABASE {name}")
    migrate(stack.url_of(postgres.url, name))
    return name


@pytest.fixture
def database_url(postgres: PostgresServer, template: str) -> Iterator[str]:
    """An empty, migrated database, gone after the test."""
    with stack.database_from(postgres.url, template) as url:
        yield url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store on the test's own database."""
    store = open_store(database_url)
    yield store
    store.close()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """The run's Valkey. Tests that stop, flush or kill a server start one of their own."""
    with ephemeral_valkey({"databases": str(_KEY_SPACES)}) as server:
        yield server


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """An empty numbered database of the run's Valkey; note that pub/sub channels are shared by all numbers."""
    url = f"{valkey.url.rsplit('/', 1)[0]}/{next(_turns) % _KEY_SPACES}"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    return url


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the digits model of examples/."""
    folder = tmp_path_factory.mktemp("digits")
    digits.build(folder)
    return folder
