"""What state machines over the store have in common: their stores, their settings, and the proof that they can fail."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psycopg2
import pytest
import stack
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from batchline.store import open_store


@contextmanager
def bound(machine: type, database_url: str, watch: str) -> Generator[Any]:
    """The machine over three stores on the test's database, watched by a trigger."""
    stack.query(database_url, watch)
    stores = [open_store(database_url, connections=1) for _ in range(3)]
    kind = type("Bound", (machine,), {"url": database_url, "stores": stores})
    kind.model_id = stores[0].catalogue.register_model(stack.a_spec())
    try:
        yield kind
    finally:
        for store in stores:
            store.close()


def limit_s(sequences: int) -> int:
    """How long a test of so many sequences may take: on a busy machine half a second goes into each."""
    return max(180, 2 * sequences)


def settings_of(sequences: int, **changes: Any) -> settings:
    """So many sequences of up to 30 calls; the same ones each time, unless they are very many."""
    return settings(
        max_examples=sequences, stateful_step_count=30, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), derandomize=sequences < 1000, **changes,
    )  # fmt: skip


def assert_finds(
    machine: Any, monkeypatch: pytest.MonkeyPatch, module: ModuleType, mutant: tuple[str, str, str], sequences: int
) -> None:
    """With a guard cut out of the SQL the same machine finds what it was for.

    Args:
        machine: as `bound` made it.
        monkeypatch: puts the mutant into the module, for this test.
        module: of the store.
        mutant: the statement's name, the guard, and what stands in its place.
        sequences: enough to find it.
    """
    statement, guard, instead = mutant
    changed = getattr(module, statement).replace(guard, instead)
    assert changed != getattr(module, statement)
    monkeypatch.setattr(module, statement, changed)
    with pytest.raises((AssertionError, psycopg2.Error, ExceptionGroup)):
        run_state_machine_as_test(machine, settings=settings_of(sequences, phases=[Phase.generate], print_blob=False))
