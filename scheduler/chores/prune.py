"""Prune: delete jobs, their results and messages, batches, keys, dead workers and costs past their retention."""

from __future__ import annotations

from batchline.settings import Settings
from batchline.store import Store
from scheduler.chore import Chore


def prune(settings: Settings, store: Store) -> Chore:
    def step() -> int:
        batches = store.batches.prune(results_kept_s=settings.results_kept_s, batches_kept_s=settings.jobs_kept_s)
        jobs = store.chores.prune(
            results_kept_s=settings.results_kept_s,
            jobs_kept_s=settings.jobs_kept_s,
            keys_kept_s=settings.idempotency_kept_s,
        )
        shadows = store.traffic.prune(kept_s=settings.jobs_kept_s)
        endpoints = store.webhooks.prune(kept_s=settings.jobs_kept_s)
        return max(batches, jobs, shadows, endpoints, store.costs.prune(kept_s=settings.costs_kept_s))

    return Chore("prune", 60.0, step, portion=store.chores.STEP)
