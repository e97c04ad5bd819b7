"""Files: what was uploaded and what batches have put out; the rows here, the bytes in the blob store."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from batchline.store.batch_contract import FileView
from batchline.store.postgres import Database

_FIELDS = "id, tenant_id, purpose, filename, bytes, blob, created_at, expires_at"

_ADD = f"""
INSERT INTO files ({_FIELDS})
VALUES (%(id)s, %(tenant)s, %(purpose)s, %(filename)s, %(bytes)s, %(blob)s, %(created)s, %(expires)s)
ON CONFLICT (id) DO NOTHING
"""

_LIST = f"""
SELECT {_FIELDS} FROM files WHERE tenant_id = %(tenant)s AND deleted_at IS NULL
  AND (%(purpose)s::text IS NULL OR purpose = %(purpose)s) AND (%(after)s::uuid IS NULL OR id < %(after)s::uuid)
ORDER BY id DESC LIMIT %(limit)s
"""
_LIST_ASCENDING = _LIST.replace("id < %(after)s", "id > %(after)s").replace("id DESC", "id")

_UNUSED = "NOT EXISTS (SELECT FROM batches b WHERE b.input_file_id = f.id AND b.ended_at IS NULL)"

# Three indexes, one for each reason. What is taken can be read no more, since its bytes may go any moment.
_TAKE_GARBAGE = f"""
WITH gone AS MATERIALIZED (
  SELECT f.id, f.blob FROM files f WHERE f.id IN (
    (SELECT f.id FROM files f WHERE f.deleted_at IS NOT NULL AND {_UNUSED} ORDER BY f.deleted_at LIMIT %(limit)s)
    UNION ALL
    (SELECT f.id FROM files f WHERE f.deleted_at IS NULL AND f.expires_at < now() AND {_UNUSED}
     ORDER BY f.expires_at LIMIT %(limit)s)
    UNION ALL
    (SELECT f.id FROM files f WHERE f.deleted_at IS NULL AND f.created_at < now() - %(kept)s * interval '1 second'
     AND {_UNUSED} ORDER BY f.created_at LIMIT %(limit)s))
  LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE files f SET deleted_at = coalesce(f.deleted_at, now()) FROM gone WHERE f.id = gone.id RETURNING f.id, f.blob
"""


class Files:
    """See `batchline.store.batch_contract.Files`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, file: FileView) -> None:
        params = {
            "id": file.id,
            "tenant": file.tenant_id,
            "purpose": file.purpose,
            "filename": file.filename,
            "bytes": file.bytes,
            "blob": file.blob,
            "created": file.created_at,
            "expires": file.expires_at,
        }
        self._db.run(_ADD, params)

    def read(self, file_id: uuid.UUID) -> FileView | None:
        rows = self._db.run(f"SELECT {_FIELDS} FROM files WHERE id = %(id)s AND deleted_at IS NULL", {"id": file_id})
        return FileView(*rows[0]) if rows else None

    def list(
        self, tenant_id: int, *, purpose: str | None, after: uuid.UUID | None, limit: int, ascending: bool = False
    ) -> list[FileView]:
        params = {"tenant": tenant_id, "purpose": purpose, "after": after, "limit": limit}
        return [FileView(*row) for row in self._db.run(_LIST_ASCENDING if ascending else _LIST, params)]

    def delete(self, tenant_id: int, file_id: uuid.UUID) -> bool:
        sql = """UPDATE files SET deleted_at = now() WHERE id = %(id)s AND tenant_id = %(tenant)s AND deleted_at IS NULL
          RETURNING 1"""
        return bool(self._db.run(sql, {"id": file_id, "tenant": tenant_id}))

    def take_garbage(self, *, kept_s: float, limit: int) -> list[tuple[uuid.UUID, str]]:
        return [(row[0], row[1]) for row in self._db.run(_TAKE_GARBAGE, {"kept": kept_s, "limit": limit})]

    def forget(self, file_ids: Sequence[uuid.UUID]) -> None:
        sql = "DELETE FROM files WHERE id = ANY(%(ids)s::uuid[]) AND deleted_at IS NOT NULL"
        self._db.run(sql, {"ids": list(file_ids)})
