"""The autoscaler sees what is queued and who works, and says it."""

import json
import os
import subprocess
import sys

from stack import a_spec, a_worker, new_job

from autoscaler.observe import Observer
from batchline.clock import SystemClock


def test_signals_are_queued_rows_and_live_workers_by_pool(store):
    """Rows of every tenant count; a draining worker is no capacity."""
    model = store.catalogue.register_model(a_spec(pool="cpu"))
    store.jobs.submit([new_job(model, rows=3), new_job(model, rows=4, tenant_id=2)])
    a_worker(store)
    store.workers.drain(a_worker(store))
    seen = Observer(store, SystemClock()).look()["cpu"].signals
    assert (seen.queued_rows, seen.bulk_rows, seen.workers, seen.draining) == (7, 0, 1, 1)


def test_status_tells_it_once(store, database_url):
    """`python -m autoscaler status --json`: one document on stdout, exit 0."""
    model = store.catalogue.register_model(a_spec(pool="cpu"))
    store.jobs.submit([new_job(model, rows=1500)])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "autoscaler", "status", "--json"],
        env=os.environ | {"DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pool = json.loads(done.stdout)["pools"][0]
    assert (pool["pool"], pool["queued_rows"], pool["desired"]) == ("cpu", 1500, 2)
