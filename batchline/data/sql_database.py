"""The operator's SQL databases: which one is meant, short transactions on it, its errors in our own words."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg2
from psycopg2 import sql

from batchline.data import table_names
from batchline.errors import (
    BatchlineError,
    RetryableError,
    SinkError,
    SinkUnavailableError,
    SourceError,
    SourceUnavailableError,
)

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

log = logging.getLogger("batchline.data")

Row: TypeAlias = tuple[Any, ...]
Text: TypeAlias = sql.Composable

_CONNECT: Mapping[str, Any] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "application_name": "batchline",
}
_SESSION = (
    "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL client_encoding = 'UTF8';"
    " SET LOCAL intervalstyle = 'postgres'; SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1;"
    " SET LOCAL lock_timeout = '10s'; SET LOCAL client_min_messages = 'error'"
)
"""Of each transaction, so that a pooler in transaction mode may stand between; texts are read in these forms."""

_REFUSED_LOGIN = ("authentication failed", "no pg_hba.conf entry", "does not exist", "no password supplied")
_LATER = ("08", "57P", "53300", "53200", "53400", "55P03", "55006", "40001", "40P01", "58")
_GONE = ("42P01", "42703", "3F000", "42883")


@dataclass(frozen=True, slots=True)
class Side:
    """As what the errors of a database are raised."""

    wrong: type[BatchlineError]
    unavailable: type[RetryableError]


SOURCE = Side(SourceError, SourceUnavailableError)
SINK = Side(SinkError, SinkUnavailableError)


@dataclass(frozen=True, slots=True)
class Database:
    """One database by the operator's name for it; every transaction has a connection of its own."""

    name: str
    dsn: str
    side: Side

    @classmethod
    def named(cls, databases: Mapping[str, str], name: str | None, side: Side) -> Database:
        """The database of this name, or the only one.

        Raises:
            SourceError | SinkError: there is none of this name, or none or several to choose from.
        """
        known = ", ".join(sorted(databases)) or "none"
        if name is None and len(databases) == 1:
            name = next(iter(databases))
        if name is None:
            raise side.wrong(f"Name the database of the table; the operator has configured: {known}.")
        if name not in databases:
            raise side.wrong(f"There is no database {name!r}; the operator has configured: {known}.")
        return cls(name, databases[name], side)

    @contextmanager
    def transaction(self, about: str, *, read_only: bool = False) -> Generator[Cursor]:
        """One transaction, committed at the end of the block; `about` names the table in errors.

        Raises:
            SourceError | SinkError: the statement cannot succeed as things stand.
            SourceUnavailableError | SinkUnavailableError: it may, later.
        """
        with self.translated(about), closing(self.connect()) as connection:
            if read_only:
                connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            with connection.cursor() as cursor:
                cursor.execute(_SESSION)
                yield cursor
            connection.commit()

    def connect(self) -> Connection:
        """A new connection, without autocommit.

        Raises: as `transaction`.
        """
        try:
            return psycopg2.connect(self.dsn, **_CONNECT)
        except psycopg2.Error as e:
            log.warning("no connection to the database %s: %s", self.name, str(e).strip())
            if any(word in str(e) for word in _REFUSED_LOGIN):
                raise self.side.wrong(
                    f"The database {self.name!r} does not let Batchline in: the operator should look at its user,"
                    " password and database name; the log says more."
                ) from e
            raise self.side.unavailable(f"The database {self.name!r} cannot be reached; is it up?") from e

    @contextmanager
    def translated(self, about: str) -> Generator[None]:
        """Raise errors of the driver as ours."""
        try:
            yield
        except psycopg2.Error as e:
            raise self._error(about, e) from e
        except (ValueError, UnicodeEncodeError) as e:  # NUL characters and lone surrogates, from the driver
            raise self.side.wrong(f"{about}: a text cannot be sent to the database: {e}.") from e

    def _error(self, about: str, error: psycopg2.Error) -> BatchlineError:
        code = error.pgcode or "08000"
        log.warning("%s in the database %s: %s %s", about, self.name, code, str(error).strip())
        if code == "57014":
            return self.side.wrong(
                f"{about}: the database's statement_timeout ran out; raise it for Batchline's user, or give the key an"
                " index."
            )
        if code == "53100":
            return self.side.wrong(f"{about}: the database {self.name!r} has no room left on its disk.")
        if code.startswith(_LATER):
            return self.side.unavailable(f"{about}: the database {self.name!r} does not answer now ({code}).")
        if code in _GONE:
            return self.side.wrong(
                f"{about}: the table, or a column of it, is gone from the database {self.name!r}; put it back and retry"
                " the batch."
            )
        if code == "42501":
            return self.side.wrong(f"{about}: Batchline's user in {self.name!r} lacks the permission; grant it.")
        if code.startswith(("22", "23")):
            return self.side.wrong(f"{about}: {_told(error)}.")
        return self.side.wrong(f"{about}: the database {self.name!r} refused ({code}); its log says why.")


def _told(error: psycopg2.Error) -> str:
    """What the database says of a value or a constraint, without the statement."""
    diag = error.diag
    parts = [diag.message_primary or "a value does not fit", diag.message_detail or ""]
    return " ".join(p.strip().rstrip(".") + "." for p in parts if p).rstrip(".")


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view by its place; `oid` None: there is none."""

    schema: str
    name: str
    oid: int | None = None
    kind: str = ""
    """pg_class.relkind: r table, p partitioned, v view, m materialized view, f foreign."""

    @property
    def shown(self) -> str:
        return table_names.shown(self.schema, self.name)

    @property
    def id(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def beside(self, name: str) -> Table:
        """Another table of the same schema."""
        return Table(self.schema, name)


def find_table(cursor: Cursor, database: Database, text: str) -> Table:
    """The table that a text names, see `table_names`; `oid` None when there is none.

    Raises:
        SourceError | SinkError: no name of a table, or one of the system's own.
    """
    try:
        schema, name = table_names.parse(text)
    except ValueError as e:
        raise database.side.wrong(f"{text!r} {e}.") from None
    if schema is None:
        cursor.execute("SELECT current_schema()")
        schema = one(cursor)[0] or "public"
        cursor.execute(
            "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = to_regclass(quote_ident(%s))",
            (name,),
        )
        found = cursor.fetchone()
        schema = found[0] if found else schema
    if schema.startswith("pg_") or schema == "information_schema":
        raise database.side.wrong(f"{text!r} belongs to the database system; it is no data set.")
    cursor.execute(
        "SELECT c.oid, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
        (schema, name),
    )
    found = cursor.fetchone()
    return Table(schema, name, *(found or ()))


def find_oid(cursor: Cursor, table: Table) -> int | None:
    """The table's oid, if it is there."""
    cursor.execute(
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, table.name),
    )
    found = cursor.fetchone()
    return found[0] if found else None


_UNIQUE = """
SELECT EXISTS (
  SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
  WHERE i.indrelid = %s AND a.attname = %s AND i.indisunique AND i.indisvalid AND i.indimmediate
    AND i.indnkeyatts = 1 AND i.indpred IS NULL
)
"""


def is_unique(cursor: Cursor, oid: int, column: str) -> bool:
    """Whether a column alone is unique, by an index that ON CONFLICT can use."""
    cursor.execute(_UNIQUE, (oid, column))
    return bool(one(cursor)[0])


def one(cursor: Cursor) -> Row:
    """The row of a statement that has one."""
    row = cursor.fetchone()
    if row is None:
        raise AssertionError("a statement without its row")
    return row
