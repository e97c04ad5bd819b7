"""Replacing all rows of a table in one transaction: a shadow table beside it is filled, then takes its place.

A table of our own on which nothing else hangs is exchanged by its name, in an instant. Any other keeps its identity:
its rows are deleted and those of the shadow inserted, so that views, foreign keys, triggers and grants go on to work;
readers see the old rows until the commit in both ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg2 import errors, sql

from batchline.data.sql_database import Table, find_oid, one
from batchline.errors import SinkError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

SWAPPED = -1
"""The slice of `_batchline_slices` that says: the swap is done."""

_LOSES = """
SELECT NOT (c.relkind = 'r' AND pg_has_role(c.relowner, 'USAGE') AND NOT c.relispartition AND NOT c.relhastriggers
   AND NOT c.relrowsecurity AND NOT c.relhassubclass AND c.reloptions IS NULL AND c.reltablespace = 0
   AND c.relreplident = 'd')
   OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
   OR EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND c.oid IN (k.conrelid, k.confrelid))
   OR EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid)
   OR EXISTS (SELECT FROM pg_publication_rel p WHERE p.prrelid = c.oid)
   OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attacl IS NOT NULL)
   OR EXISTS (SELECT FROM pg_description d
              WHERE d.classoid = 'pg_class'::regclass AND d.objoid = c.oid AND d.objsubid = 0)
FROM pg_class c WHERE c.oid = %s
"""
"""Whether a table has what a table LIKE it would not have, grants and owner aside."""

_INDEXES = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %s ORDER BY i.indexrelid
"""

_GRANTS = """
SELECT a.privilege_type, CASE WHEN a.grantee = 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END, a.is_grantable
FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = %s AND a.grantee <> c.relowner
"""


def make_shadow(cursor: Cursor, table: Table, shadow: Table) -> None:
    """An empty table of the same columns, indexes and constraints; one that is there stays."""
    cursor.execute(sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING ALL)").format(shadow.id, table.id))


def swap(cursor: Cursor, table: Table, shadow: Table, slices: Table, batch: str) -> None:
    """Let the rows of `shadow` take the place of the table's; once, however often it is called.

    Raises:
        SinkError: the shadow is gone and the swap was not done.
    """
    # Without parameters, beside which a % in a name would be read as a place for one.
    mark = sql.SQL("INSERT INTO {} (batch, slice, rows, errors) VALUES ({}, {}, 0, 0) ON CONFLICT DO NOTHING")
    cursor.execute(mark.format(slices.id, sql.Literal(batch), sql.Literal(SWAPPED)))
    if not cursor.rowcount:
        return
    oid = find_oid(cursor, shadow)
    if oid is None:
        raise SinkError(
            f"Table {shadow.shown}, which held the new rows of {table.shown}, is gone; run the batch again."
        )
    # In this mode nobody writes to the table while it is replaced; whoever reads goes on.
    cursor.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table.id))
    cursor.execute(_LOSES, (table.oid,))
    if one(cursor)[0] or not _exchanged(cursor, table, shadow, oid):
        _refill(cursor, table, shadow)


def _exchanged(cursor: Cursor, table: Table, shadow: Table, shadow_oid: int) -> bool:
    """Put the shadow in the table's place; False, and nothing done, if views hang on it or readers keep it busy."""
    names, new_names = _indexes(cursor, table.oid or 0), _indexes(cursor, shadow_oid)
    if len(names) != len(new_names):  # somebody has made or dropped an index since the batch began
        return False
    cursor.execute(_GRANTS, (table.oid,))
    grants = cursor.fetchall()
    cursor.execute("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = %s", (table.oid,))
    owner = one(cursor)[0]
    cursor.execute("SAVEPOINT before_exchange; SET LOCAL lock_timeout = '3s'")
    try:
        cursor.execute(sql.SQL("DROP TABLE {}").format(table.id))
    except (errors.DependentObjectsStillExist, errors.LockNotAvailable):
        cursor.execute("ROLLBACK TO before_exchange")
        return False
    cursor.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(shadow.id, sql.Identifier(table.name)))
    for name, new in zip(names, new_names, strict=True):
        cursor.execute(
            sql.SQL("ALTER INDEX {} RENAME TO {}").format(sql.Identifier(table.schema, new), sql.Identifier(name))
        )
    for privilege, grantee, grantable in grants:
        to = sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC")
        further = sql.SQL(" WITH GRANT OPTION" if grantable else "")
        cursor.execute(sql.SQL("GRANT {} ON {} TO {}{}").format(sql.SQL(privilege), table.id, to, further))
    cursor.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(table.id, sql.Identifier(owner)))
    return True


def _indexes(cursor: Cursor, oid: int) -> list[str]:
    """In the order of their making, which LIKE keeps."""
    cursor.execute(_INDEXES, (oid,))
    return [name for (name,) in cursor.fetchall()]


def _refill(cursor: Cursor, table: Table, shadow: Table) -> None:
    cursor.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
        " AND attidentity <> 'a'",
        (table.oid,),
    )
    columns = sql.SQL(", ").join([sql.Identifier(name) for (name,) in cursor.fetchall()])
    cursor.execute(sql.SQL("DELETE FROM {}").format(table.id))
    cursor.execute(sql.SQL("INSERT INTO {0} ({1}) SELECT {1} FROM {2}").format(table.id, columns, shadow.id))
    cursor.execute(sql.SQL("DROP TABLE {}").format(shadow.id))
