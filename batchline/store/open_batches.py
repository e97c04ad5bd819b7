"""How many batches a tenant may have open: counted under its lock, which whoever adds one holds to the commit."""

from __future__ import annotations

from batchline.batch import NewBatch
from batchline.errors import QuotaError
from batchline.store.postgres import Transaction

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('batchline.batches'), %(tenant)s)"

# Whoever repeats a submit whose reply was lost finds its own.
_OPEN = """
SELECT count(*) FROM (
  SELECT FROM batches WHERE tenant_id = %(tenant)s AND ended_at IS NULL AND id <> %(id)s LIMIT %(most)s) o
"""

_ENDED = """
SELECT count(*) FROM batches WHERE tenant_id = %(tenant)s AND ended_at > now() - %(within)s * interval '1 second'
  AND NOT results_pruned
"""
_WITHIN_S = 600.0
_MAX_RETRY_S = 300.0


def check(transaction: Transaction, batch: NewBatch, most: int | None) -> None:
    """Raise unless there is room for one more; None is no limit.

    Raises:
        QuotaError: the tenant has `most` open batches; it may come again when one has ended, by the pace of the last
            ten minutes.
    """
    if most is None:
        return
    params = {"tenant": batch.tenant_id, "id": batch.id, "most": most, "within": _WITHIN_S}
    transaction.run(_LOCK, params)
    if transaction.run(_OPEN, params)[0][0] < most:
        return
    ended = transaction.run(_ENDED, params)[0][0]
    raise QuotaError(
        f"This tenant may have {most} batches that have not ended, and has them; wait for one to end, or cancel one.",
        retry_after_s=min(_MAX_RETRY_S, _WITHIN_S / max(ended, 1)),
    )
