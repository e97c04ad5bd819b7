"""`contract.Catalogue` and the schema: versions never change, keys are not stored, migrations make the schema."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import msgspec
import pytest
import stack
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from batchline.errors import InvalidRequestError, StoreUnavailableError
from batchline.store import migrations, schema
from batchline.store.catalogue import new_key


def test_a_version_never_changes_its_bytes(store):
    """The same bytes may be registered again, with another policy; other bytes are a new version."""
    number = store.catalogue.register_model(stack.a_spec())
    assert store.catalogue.register_model(stack.a_spec(pool="gpu")) == number
    with pytest.raises(InvalidRequestError, match="new version"):
        store.catalogue.register_model(stack.a_spec(digest="e" * 64))
    (record,) = store.catalogue.models()
    assert (record.id, record.spec) == (number, stack.a_spec(pool="gpu"))
    assert store.catalogue.register_model(stack.a_spec(version="2", digest="e" * 64)) != number


def test_an_entry_that_cannot_be_read_hides_no_other(store, database_url):
    """Written by a newer release, or by hand: it is passed over, and the other models are served."""
    broken = store.catalogue.register_model(stack.a_spec())
    store.catalogue.register_model(stack.a_spec(version="2"))
    stack.query(
        database_url,
        """UPDATE models SET spec = jsonb_set(spec::jsonb, '{policy,predict_timeout_s}', 'null')"""
        f" WHERE id = {broken} RETURNING id",
    )
    assert [r.spec.version for r in store.catalogue.models()] == ["2"]


def test_a_spec_that_does_not_read_back_is_not_registered(store):
    """JSON has no word for nan."""
    spec = stack.a_spec()
    policy = msgspec.structs.replace(spec.policy, predict_timeout_s=math.nan)
    with pytest.raises(InvalidRequestError, match="cannot be kept"):
        store.catalogue.register_model(msgspec.structs.replace(spec, policy=policy))
    assert store.catalogue.models() == []


def test_a_key_speaks_for_its_tenant_until_it_is_revoked(store, database_url):
    """Its secret is nowhere in the database."""
    key = new_key()
    number = store.catalogue.add_key(key, tenant="acme", name="ci", scopes=("submit", "read"))
    assert store.catalogue.add_key(key, tenant="acme", name="ci", scopes=("submit", "read")) == number
    found = store.catalogue.find_key(key)
    assert (found.key_id, found.tenant, found.may("read"), found.may("admin")) == (number, "acme", True, False)
    assert store.catalogue.find_key(key + "x") is None
    (view,) = store.catalogue.keys()
    assert (view.tenant, view.name, view.scopes, view.revoked_at) == ("acme", "ci", "submit read", None)
    assert key not in str(stack.query(database_url, "SELECT api_keys::text FROM api_keys"))
    assert store.catalogue.revoke_key(number)
    assert not store.catalogue.revoke_key(number)
    assert store.catalogue.find_key(key) is None


def test_an_admin_may_do_everything_and_tenants_are_shared_by_keys(store):
    """Two keys of one name of tenant speak for one tenant."""
    first, second = new_key(), new_key()
    store.catalogue.add_key(first, tenant="acme", name="a", scopes=("admin",))
    store.catalogue.add_key(second, tenant="acme", name="b", scopes=("read",))
    assert store.catalogue.find_key(first).tenant_id == store.catalogue.find_key(second).tenant_id
    assert all(store.catalogue.find_key(first).may(scope) for scope in ("submit", "read", "admin"))


@pytest.mark.parametrize("scopes", [(), ("read", "everything")])
def test_unknown_scopes_are_refused(store, scopes):
    """A key without a scope would be a key to nothing."""
    with pytest.raises(InvalidRequestError):
        store.catalogue.add_key(new_key(), tenant="acme", name="a", scopes=scopes)


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800", "é" * 5000])
def test_any_text_may_be_asked_for_as_a_key(store, key):
    """What comes in a header is nobody's fault of ours."""
    assert store.catalogue.find_key(key) is None


def test_the_migrations_make_the_schema(database_url):
    """Tables, columns, types, indexes: nothing in one that is not in the other."""
    engine = create_engine(database_url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def test_the_partial_indexes_are_those_of_the_schema(database_url):
    """Alembic does not compare their conditions."""
    found = dict(stack.query(database_url, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"))
    for index in (index for table in schema.metadata.tables.values() for index in table.indexes):
        where = index.dialect_options["postgresql"]["where"]
        definition = re.sub(r"::\w+", "", found[index.name])
        assert ("WHERE" in definition) is (where is not None)
        bare = definition.partition("WHERE")[2].replace("(", "").replace(")", "").strip()
        assert bare == ("" if where is None else str(where))


@pytest.mark.parametrize(("have", "todo"), [(None, "migrate"), ("0000", "migrate"), ("9999", "a newer release")])
def test_a_schema_that_is_not_ours_says_what_to_do(monkeypatch, have, todo):
    """An older one is migrated; a newer one asks for the newer release, since ours cannot migrate it."""
    monkeypatch.setattr(migrations, "current", lambda _: have)
    with pytest.raises(StoreUnavailableError, match=todo):
        migrations.check("postgresql://nowhere")


def test_two_processes_migrate_at_once(postgres):
    """One works, the other waits, both come out at the head."""
    stack.query(postgres.url, "CREATE DATABASE test_migrate")
    url = stack.url_of(postgres.url, "test_migrate")
    with pytest.raises(StoreUnavailableError, match="batchline migrate"):
        migrations.check(url)
    code = f"from batchline.store.migrations import migrate; print(migrate({url!r}))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [migrations.head()] * 2
    assert [process.returncode for process in both] == [0, 0]
    migrations.check(url)
    stack.query(postgres.url, "DROP DATABASE test_migrate WITH (FORCE)")
