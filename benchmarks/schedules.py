"""A thousand schedules: how long a tick of the cron chore takes, and what they cost the scheduler's CPU."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Generator
from pathlib import Path

from batchline import cron
from batchline.data import places_of
from batchline.job import new_job_id
from batchline.registry import import_model
from batchline.settings import Settings
from batchline.store import Store, open_store
from batchline.store.batch_contract import ScheduleView
from batchline.store.migrations.__main__ import prepare
from batchline.testing import ephemeral_postgres, ephemeral_valkey
from benchmarks.harness import Bench, Goal, Report, Sample, durability, interleave
from benchmarks.processes import Process, running
from benchmarks.rig import Rig, rig
from scheduler.chores.cron import Cron
from scheduler.doors import Doors
from scheduler.finds import Finds

SUMMARY = "1,000 schedules: a tick of the cron chore, idle and all due at once; CPU of a scheduler"
SCHEDULES = 1_000
TICKS = 200
START_S = 3.0
"""A scheduler imports, leads and settles; not measured."""


def _add(store: Store, model: str, folder: Path) -> None:
    """Schedules of every hour, spread over its minutes, over one small file."""
    now = store.schedules.now()
    (folder / "rows.jsonl").write_text(json.dumps([0.0] * 64) + "\n", encoding="utf-8")
    body = {"model": model, "input": {"uri": f"file://{folder}/rows.jsonl"}, "metadata": {"at": "{fire_time:%H:%M}"}}
    for n in range(SCHEDULES):
        line = f"{n % 60} * * * *"
        schedule = ScheduleView(
            new_job_id(), 1, f"schedule {n}", line, "Europe/Berlin", json.dumps(body), "last", "allow", True, now,
            cron.next_after(line, "Europe/Berlin", now),
        )  # fmt: skip
        store.schedules.add(schedule)


def _ticks(one: Rig, chore: Cron, all_due: bool) -> Sample:
    """Ticks until nothing is due any more, or TICKS of them; every fire time makes a run and a batch."""
    if all_due:
        one.store.db.run("UPDATE schedules SET next_fire_at = date_trunc('minute', now()) + random() * interval '1 us'")
    spans: list[float] = []
    fired = 0
    while (len(spans) < TICKS) if not all_due else True:
        at = time.perf_counter()
        moved = chore.step()
        spans.append(time.perf_counter() - at)
        fired += moved
        if all_due and not moved:
            break
    figures = {"p50_ms": statistics.median(spans) * 1e3, "max_ms": max(spans) * 1e3}
    return figures | {"fired": float(fired), "fired_per_s": fired / sum(spans)}


@contextlib.contextmanager
def _scheduler(bench: Bench, schedules: bool) -> Generator[Process]:
    """A scheduler process on a database and a Valkey of its own."""
    folder = bench.folder / f"scheduler-{schedules}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(ephemeral_postgres(durable=True))
        valkey = stack.enter_context(ephemeral_valkey())
        prepare(postgres.url, "")
        store = open_store(postgres.url, connections=2)
        import_model(folder / "models", "digits", bench.digits.model, store.catalogue.register_model)
        if schedules:
            _add(store, "digits", folder)
        store.close()
        env = {
            "DATABASE_URL": postgres.url, "REDIS_URL": valkey.url, "BATCHLINE_BLOBS": f"file://{folder}/blobs",
            "BATCHLINE_DATA_ROOTS": str(folder), "BATCHLINE_LOG_LEVEL": "WARNING",
        }  # fmt: skip
        yield stack.enter_context(running("scheduler", [sys.executable, "-m", "scheduler"], folder, env=env))


def _cpu(process: Process, seconds: float) -> Sample:
    """Share of one core that a process takes."""
    used, at = process.cpu_s(), time.perf_counter()
    time.sleep(seconds)
    return {"cpu_percent": 100.0 * (process.cpu_s() - used) / (time.perf_counter() - at)}


def run(bench: Bench) -> Report | None:
    if bench.peer_only:
        return None
    with rig(bench, "schedules") as (one,):
        folder = bench.folder / "schedules"
        folder.mkdir()
        settings = Settings(blobs=f"file://{folder}/blobs", data_roots=str(folder))
        chore = Cron(settings, one.store, Doors(places_of(settings), one.store), Finds(one.store))
        _add(one.store, one.model.spec.name, folder)
        one.store.db.run("UPDATE schedules SET next_fire_at = next_fire_at + interval '1 day'")
        facts: dict[str, object] = {"postgres": durability(one.url), "schedules": SCHEDULES, "cores": os.cpu_count()}
        idle = functools.partial(_ticks, one, chore, all_due=False)
        due = functools.partial(_ticks, one, chore, all_due=True)
        samples = interleave({"tick, none due": idle, "tick, all due": due}, bench)
    with _scheduler(bench, schedules=False) as bare, _scheduler(bench, schedules=True) as full:
        time.sleep(START_S)
        sides = {"scheduler, no schedules": bare, f"scheduler, {SCHEDULES:,} schedules": full}
        seconds = max(bench.measured_s, 5.0)
        samples |= interleave({name: functools.partial(_cpu, side, seconds) for name, side in sides.items()}, bench)
    report = Report("schedules", samples, ("p50_ms", "max_ms", "fired_per_s", "cpu_percent"), facts=facts)
    cpu = report.median(f"scheduler, {SCHEDULES:,} schedules", "cpu_percent")
    report.notes.append(
        "an hourly schedule each, spread over the minutes; due ones become a run and a batch, which is planned"
    )
    report.goals = [
        Goal("ms of a tick at most, none of 1,000 due", report.median("tick, none due", "max_ms"), 50.0, False, "ms"),
        Goal("ms of a tick (median), all 1,000 due", report.median("tick, all due", "p50_ms"), 50.0, False, "ms"),
        Goal("CPU of the scheduler, 1,000 schedules", cpu, 1.0, at_least=False, unit="%"),
    ]
    return report
