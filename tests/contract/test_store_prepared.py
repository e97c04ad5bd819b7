"""Statements are planned once a connection, and go on unprepared where that cannot work."""

from stack import a_spec, a_worker, new_job, query

from batchline.job import Lane
from batchline.store import open_store
from batchline.store.prepared import prepared


def test_both_halves_keep_parameters_and_casts():
    """A parameter named twice is one; its cast stands on both sides."""
    found = prepared("SELECT %(ids)s::uuid[], %(n)s + 1, %(ids)s")
    assert found.prepare.endswith("AS SELECT $1::uuid[], $2 + 1, $1")
    assert found.execute == f"EXECUTE {found.name}(%(ids)s::uuid[], %(n)s)"


def test_a_statement_is_prepared_once_a_connection(database_url):
    """The second submit on the same connection plans nothing."""
    store = open_store(database_url, connections=1)
    model = store.catalogue.register_model(a_spec())
    for _ in range(3):
        store.jobs.submit([new_job(model)])
    names = store.db.run("SELECT count(*), sum(generic_plans + custom_plans) FROM pg_prepared_statements")
    assert names == [(1, 3)]
    store.close()


def test_a_pooler_that_swaps_connections_only_costs_the_preparing(database_url):
    """As behind pgbouncer: the statement is gone between PREPARE and EXECUTE; the call succeeds all the same."""
    store = open_store(database_url, connections=1)
    model = store.catalogue.register_model(a_spec())
    store.jobs.submit([new_job(model)])
    store.db.run("DEALLOCATE ALL")
    job = new_job(model)
    assert store.jobs.submit([job])[0].id == job.id
    assert query(database_url, "SELECT count(*) FROM jobs") == [(2,)]
    store.close()


def test_a_claim_too_survives_a_swapped_connection(database_url):
    """What may not be repeated after a lost reply may be repeated when it never ran."""
    store = open_store(database_url, connections=1)
    model = store.catalogue.register_model(a_spec())
    worker = a_worker(store)
    assert store.claims.claim(worker, model, Lane.ONLINE, rows=1).jobs == []
    store.jobs.submit([new_job(model)])
    store.db.run("DEALLOCATE ALL")
    assert len(store.claims.claim(worker, model, Lane.ONLINE, rows=1).jobs) == 1
    store.close()
