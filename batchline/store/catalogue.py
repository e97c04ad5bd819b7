"""The catalogue: tenants and their keys, models and their specs. Small tables, read rarely and cached by callers."""

from __future__ import annotations

import hashlib
import logging
import secrets

import msgspec

from batchline.errors import InvalidRequestError
from batchline.model import ModelRecord, ModelSpec
from batchline.store.contract import SCOPES, KeyView, Principal
from batchline.store.postgres import Database


def new_key() -> str:
    """A fresh API key: 32 random bytes behind a prefix that secret scanners can look for."""
    return "blk_" + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """What is stored of a key. Keys are random, so a plain hash is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


_REGISTER_MODEL = """
INSERT INTO models AS m (name, version, pool, spec) VALUES (%(name)s, %(version)s, %(pool)s, %(spec)s)
ON CONFLICT (name, version) DO UPDATE SET pool = excluded.pool, spec = excluded.spec
  WHERE m.spec ->> 'digest' = excluded.spec ->> 'digest'
RETURNING id
"""

_MODELS = "SELECT id, spec::text, extract(epoch FROM created_at) FROM models ORDER BY name, version"

_ADD_KEY = """
WITH tenant AS (
  INSERT INTO tenants (name) VALUES (%(tenant)s) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
)
INSERT INTO api_keys (tenant_id, name, digest, scopes) SELECT id, %(name)s, %(digest)s, %(scopes)s FROM tenant
ON CONFLICT (digest) DO UPDATE SET revoked_at = NULL RETURNING id
"""

_FIND_KEY = """
SELECT k.id, t.id, t.name, k.scopes FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.digest = %(digest)s AND k.revoked_at IS NULL
"""

_KEYS = """
SELECT k.id, t.name, k.name, k.scopes, k.created_at, k.revoked_at
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id ORDER BY k.id
"""


log = logging.getLogger("store")


def _encoded(spec: ModelSpec) -> str:
    """The spec as JSON that reads back as it was; nan and infinity have none."""
    text = msgspec.json.encode(spec)
    try:
        if msgspec.json.decode(text, type=ModelSpec) == spec:
            return text.decode()
    except msgspec.ValidationError as e:
        raise InvalidRequestError(f"The spec of {spec.ref} cannot be kept: {e}.") from e
    raise InvalidRequestError(f"The spec of {spec.ref} cannot be kept: it does not read back as it was.")


def decoded(spec: str) -> ModelSpec:
    """Read a spec back.

    Raises:
        msgspec.ValidationError: it is none that this release knows.
    """
    return msgspec.json.decode(spec, type=ModelSpec)


class Catalogue:
    """See `batchline.store.contract.Catalogue`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._unreadable: set[int] = set()

    def register_model(self, spec: ModelSpec) -> int:
        params = {
            "name": spec.name,
            "version": int(spec.version),
            "pool": spec.policy.pool,
            "spec": _encoded(spec),
        }
        rows = self._db.run(_REGISTER_MODEL, params)
        if not rows:
            raise InvalidRequestError(
                f"{spec.ref} is registered with other bytes; versions never change: import it as a new version."
            )
        return int(rows[0][0])

    def models(self) -> list[ModelRecord]:
        records: list[ModelRecord] = []
        for number, spec, at in self._db.run(_MODELS):
            try:
                records.append(ModelRecord(number, decoded(spec), float(at)))
            except msgspec.ValidationError as e:  # one bad entry, or one of a newer release, hides itself alone
                if number not in self._unreadable:
                    self._unreadable.add(number)
                    log.error("catalogue entry passed over", extra={"model_id": number, "error": str(e)})  # noqa: TRY400
        return records

    def add_key(self, key: str, *, tenant: str, name: str, scopes: tuple[str, ...]) -> int:
        unknown = set(scopes) - set(SCOPES)
        if unknown or not scopes:
            raise InvalidRequestError(
                f"Scopes are {', '.join(SCOPES)}; {', '.join(sorted(unknown)) or 'none'} was given."
            )
        params = {"tenant": tenant, "name": name, "digest": digest_of(key), "scopes": " ".join(scopes)}
        return int(self._db.run(_ADD_KEY, params)[0][0])

    def find_key(self, key: str) -> Principal | None:
        rows = self._db.run(_FIND_KEY, {"digest": digest_of(key)})
        if not rows:
            return None
        key_id, tenant_id, tenant, scopes = rows[0]
        return Principal(key_id, tenant_id, tenant, frozenset(scopes.split()))

    def keys(self) -> list[KeyView]:
        return [KeyView(*row) for row in self._db.run(_KEYS)]

    def revoke_key(self, key_id: int) -> bool:
        sql = "UPDATE api_keys SET revoked_at = now() WHERE id = %(id)s AND revoked_at IS NULL RETURNING id"
        return bool(self._db.run(sql, {"id": key_id}))
