"""Schema migrations: run by every process at its start, under a lock, or by `batchline migrate`."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from batchline.errors import StoreUnavailableError

_LOCK = 0x42_4C_4E_45  # "BLNE": one number for all who migrate
_FOLDER = Path(__file__).parent


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["url"] = url
    return config


def head() -> str:
    """The schema version that this code is written for."""
    return ScriptDirectory.from_config(_config("")).get_current_head() or ""


def current(url: str) -> str | None:
    """The schema version of the database; None when it has none."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg2"), poolclass=NullPool)
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def migrate(url: str) -> str:
    """Bring the schema to `head`; returns it. Two processes at once: one works, the other waits.

    The lock is of the transaction, not of the session, so that it holds behind a pgbouncer in transaction mode.
    """
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg2"), poolclass=NullPool)
    config = _config(url)
    with engine.begin() as connection:
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
        raise StoreUnavailableError(
            f"The database has schema {have or 'none'}, this code needs {want}: run `batchline migrate`."
        )
