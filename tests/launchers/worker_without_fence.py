"""MUTANT: a worker whose finish asks neither for the attempt nor for the worker nor for the status."""

import runpy

from batchline.job import Move, guard
from batchline.store import claims

FENCE = "j.worker_id = %(worker)s AND j.attempt = t.attempt"
assert FENCE in claims._FINISH
assert guard(Move.FINISH, by_id=True) in claims._FINISH
claims._FINISH = (
    claims._FINISH.replace(FENCE, "true")
    .replace(guard(Move.FINISH, by_id=True), "true")
    .replace(
        "JOIN u ON u.id = t.id ORDER BY t.id",
        "JOIN u ON u.id = t.id ORDER BY t.id ON CONFLICT (job_id) DO UPDATE SET outputs = excluded.outputs",
    )
)
runpy.run_module("workers", run_name="__main__", alter_sys=True)
