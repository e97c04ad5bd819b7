"""Schema migrations: run by every process at its start, under a lock, or by `batchline migrate`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from batchline.errors import StoreUnavailableError

_LOCK = 0x42_4C_4E_45  # "BLNE": one number for all who migrate
_FOLDER = Path(__file__).parent


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["url"] = url
    return config


def _engine(url: str) -> Engine:
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg2"), poolclass=NullPool, connect_args={"connect_timeout": 5}
    )


@contextmanager
def _answering() -> Generator[None]:
    try:
        yield
    except ArgumentError as e:
        raise StoreUnavailableError("DATABASE_URL is no URL: give postgresql://USER:PASSWORD@HOST:PORT/NAME.") from e
    except OperationalError as e:
        said = (str(e.orig).strip().splitlines() or ["no answer"])[0]
        raise StoreUnavailableError(f"Postgres did not answer ({said}): is it up, and is DATABASE_URL right?") from e


def head() -> str:
    """The schema version that this code is written for."""
    return ScriptDirectory.from_config(_config("")).get_current_head() or ""


def current(url: str) -> str | None:
    """The schema version of the database; None when it has none.

    Raises:
        StoreUnavailableError: Postgres cannot be reached.
    """
    with _answering(), _engine(url).connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def migrate(url: str) -> str:
    """Bring the schema to `head`; returns it. Two processes at once: one works, the other waits.

    The lock is of the transaction, not of the session, so that it holds behind a pgbouncer in transaction mode.
    """
    config = _config(url)
    with _answering(), _engine(url).begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return head()


def check(url: str) -> None:
    """Raise unless the schema is what this code is written for.

    Raises:
        StoreUnavailableError: it is older or newer; the message says which and what to do.
    """
    have, want = current(url), head()
    if have != want:
        newer = have is not None and have.isdecimal() and have > want
        todo = "a newer release has migrated it, start that" if newer else "run `batchline migrate`"
        raise StoreUnavailableError(f"The database has schema {have or 'none'}, this code needs {want}: {todo}.")
