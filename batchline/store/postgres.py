"""The connection to Postgres: pool, timeouts, retries of what is safe to repeat, errors in our own words.

Every call is one short autocommitted statement, or one short transaction where it says so: it works behind a pgbouncer
in transaction mode, and no transaction of ours stays open. Whoever locks rows of several tables takes them in this
order: schedules, idempotency keys, the tenant's lock of `open_batches`, batches, jobs (by id), slices.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, TypeVar, cast

import psycopg2
import psycopg2.extensions
import psycopg2.extras
from sqlalchemy import create_engine
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from batchline.errors import StoreUnavailableError
from batchline.logs import Outage
from batchline.metrics import POSTGRES_ERRORS
from batchline.store.patience import Patience
from batchline.store.prepared import UNKNOWN, prepared

log = logging.getLogger("batchline.store")
T = TypeVar("T")
Row = tuple[Any, ...]
Params = Mapping[str, object]

_DEADLOCK, _SERIALIZATION = "40P01", "40001"
_ReadOnly = psycopg2.errors.ReadOnlySqlTransaction
_Missing = (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn)
_Meddled = (psycopg2.errors.InsufficientPrivilege, psycopg2.errors.InternalError_)
"""What others do to a table meanwhile: its rights are taken away, it is being rebuilt. It passes."""
_Lost = (psycopg2.OperationalError, psycopg2.InterfaceError, _ReadOnly, *_Meddled)
_TRIES = 5
_GRACE_S = 5.0
"""After its own timeout the server has so long to say so."""

psycopg2.extras.register_uuid()


def _connect_args(statement_timeout_s: float) -> dict[str, object]:
    return {
        "connect_timeout": 5,
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "application_name": "batchline",
        "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} -c lock_timeout=2000 "
        # Every statement of ours has its index; a plan made while a table was empty must not scan it when it is full.
        "-c idle_in_transaction_session_timeout=5000 -c jit=off -c enable_seqscan=off",
    }


class Transaction:
    """The statements of one transaction; see `Database.transact`."""

    def __init__(self, cursor: psycopg2.extensions.cursor, patience: Patience) -> None:
        self._cursor = cursor
        self._patience = patience

    def run(self, sql: str, params: Params | None = None) -> list[Row]:
        """Run one statement and return its rows."""
        self._patience.begin(self._cursor.connection)
        self._cursor.execute(sql, params)
        return self._cursor.fetchall() if self._cursor.description else []

    def copy(self, sql: str, data: bytes) -> None:
        """Run a COPY … FROM STDIN with the data."""
        self._patience.begin(self._cursor.connection)
        self._cursor.copy_expert(sql, BytesIO(data))


class Database:
    """A small pool of connections and one way to run a statement."""

    def __init__(self, url: str, *, connections: int = 6, statement_timeout_s: float = 30.0) -> None:
        self._prepares = True
        self._unfit = Outage(
            log, "the schema lacks what this release needs: run `batchline migrate`", "the schema fits"
        )
        self._patience = Patience(statement_timeout_s + _GRACE_S)
        driver_url = make_url(url).set(drivername="postgresql+psycopg2")
        self.engine: Engine = create_engine(
            driver_url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=5.0,
            pool_use_lifo=True,  # the one used last is the warm one, on both sides
            isolation_level="AUTOCOMMIT",
            connect_args=_connect_args(statement_timeout_s),
        )

    def run(self, sql: str, params: Params | None = None, *, repeat: bool = True, prepare: bool = False) -> list[Row]:
        """Run one statement and return its rows.

        Args:
            sql: one statement with %(name)s parameters.
            params: their values.
            repeat: whether running it again after a lost connection does no harm. Deadlocks and serialization
                failures are repeated in any case: the server has rolled them back.
            prepare: plan it once a connection; for short statements that run often.

        Raises:
            StoreUnavailableError: Postgres cannot be reached, gave up on us, or has no such table or column (yet).
            psycopg2.Error: the statement itself is at fault (bad data, a bug).
        """
        return self._repeated(lambda: self._once(sql, params, prepare=prepare), repeat=repeat)

    def transact(self, work: Callable[[Transaction], T], *, repeat: bool = True) -> T:
        """Run several statements that happen together or not at all; keep it short, others may wait for its locks.

        Each statement sees what was committed before it began, so a row that is locked first guards all that follow.

        Args:
            work: runs the statements; called anew when the transaction is repeated.
            repeat: as for `run`; the lost reply may have been that of the COMMIT.

        Raises: as `run`.
        """
        return self._repeated(lambda: self._transacted(work), repeat=repeat)

    def _transacted(self, work: Callable[[Transaction], T]) -> T:
        with self._connected() as (driver, _), driver.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                answer = work(Transaction(cursor, self._patience))
                self._patience.begin(driver)
                cursor.execute("COMMIT")
            except BaseException:
                if not driver.closed:
                    cursor.execute("ROLLBACK")
                raise
            return answer

    def _once(self, sql: str, params: Params | None, *, prepare: bool) -> list[Row]:
        with self._connected() as (driver, info), driver.cursor() as cursor:
            if prepare and self._prepares:
                sql = self._prepared(cursor, sql, info)
            try:
                cursor.execute(sql, params)
            except psycopg2.errors.InvalidSqlStatementName:
                # A pooler between us and Postgres has changed the connection under us.
                self._prepares = False
                raise
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _connected(self) -> Generator[tuple[psycopg2.extensions.connection, dict[Any, Any]]]:
        """One connection of the pool and its notes."""
        try:
            connection = self.engine.raw_connection()
        except (
            psycopg2.OperationalError
        ) as e:  # not tried again: it may have taken seconds, in which a claim was held up
            raise _unanswered(e) from e
        driver = cast("psycopg2.extensions.connection", connection.driver_connection)
        self._patience.begin(driver)
        try:
            yield driver, connection.info
        except _Lost as e:
            self._patience.end(driver)
            if driver.closed or isinstance(e, _ReadOnly):
                # The server went away, or is primary no more: the other idle connections are as dead as this one.
                connection.invalidate(e)
                self.engine.dispose()
            raise
        finally:
            self._patience.end(driver)
            connection.close()

    def _prepared(self, cursor: psycopg2.extensions.cursor, sql: str, info: dict[Any, Any]) -> str:
        """Prepare `sql` on this connection unless it is; returns what to execute."""
        statement = prepared(sql)
        if statement.name not in info:
            try:
                cursor.execute(statement.prepare)
            except psycopg2.errors.DuplicatePreparedStatement:
                log.debug("prepared before us, by way of a pooler", extra={"statement": statement.name})
            info[statement.name] = True
        return statement.execute

    def _repeated(self, work: Callable[[], T], *, repeat: bool) -> T:
        for attempt in range(1, _TRIES + 1):
            try:
                answer = work()
            except _Missing as e:
                self._unfit.fails(error=_short(e))
                POSTGRES_ERRORS.labels("schema").inc()
                raise StoreUnavailableError("The database is not ready; try again.", retry_after_s=5.0) from e
            except (*_Lost, DBAPIError, PoolTimeoutError) as e:
                cause = e.orig if isinstance(e, DBAPIError) else e
                if _may_repeat(cause, repeat=repeat, attempt=attempt):
                    time.sleep(random.uniform(0.0, 0.02) * attempt)
                    continue
                if isinstance(cause, psycopg2.Error | PoolTimeoutError):
                    raise _unanswered(cause) from e
                raise
            self._unfit.well()
            return answer
        raise AssertionError("unreachable")

    def ping(self) -> None:
        """Raise StoreUnavailableError unless Postgres answers."""
        self.run("SELECT 1")

    def close(self) -> None:
        self._patience.close()
        self.engine.dispose()


def _unanswered(error: BaseException) -> StoreUnavailableError:
    """Clients read the message: where the database stands is for the log."""
    log.warning("postgres did not answer", extra={"error": _short(error)})
    POSTGRES_ERRORS.labels("disk_full" if isinstance(error, psycopg2.errors.DiskFull) else "unanswered").inc()
    return StoreUnavailableError("Postgres did not answer; try again.")


def _may_repeat(error: BaseException | None, *, repeat: bool, attempt: int) -> bool:
    code = getattr(error, "pgcode", None)
    if code in (_DEADLOCK, _SERIALIZATION, UNKNOWN):
        return attempt < _TRIES
    # The server went away while a pooled connection slept: one fresh connection tells.
    lost = code is None or str(code).startswith(("08", "57P"))
    return lost and repeat and attempt < 3 and isinstance(error, psycopg2.Error)


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def columns(records: Sequence[Sequence[object]], width: int) -> list[list[object]]:
    """Turn records into one list a column, which is what unnest() wants.

    Args:
        records: N records of `width` fields.
        width: number of columns; given since N may be 0.
    """
    return [[record[i] for record in records] for i in range(width)]
