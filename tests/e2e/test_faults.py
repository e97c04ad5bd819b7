"""What was answered with 202 ends exactly once, whatever dies meanwhile. Faults are injected, the ledger is counted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import httpx
import pytest
from chaos_monkey import ROWS, ledger_of, outage_of_redis, settle, survive
from ledger import Audit, audit, open_jobs
from stack import query
from system import System, running_system, until

LAUNCHERS = Path(__file__).parents[1] / "launchers"


@pytest.mark.timeout(400)
def test_three_thousand_jobs_end_once_under_fifteen_kills(tmp_path, digits_model):
    """Workers, APIs and schedulers die by kill -9, Redis is flushed and stopped, Postgres crashes: nothing is lost,
    nothing is done twice, no innocent job fails."""
    with running_system(tmp_path / "system", {"digits": digits_model}, apis=2, workers=2) as system:
        chaos = survive(system, tmp_path, digits_model, seed=1, pause_s=1.5, threads=8, jobs_each=400, within_s=240)
        assert chaos.kills >= 15, chaos.faults


def test_without_redis_jobs_are_accepted_and_done(tmp_path, digits_model):
    """Redis is away for 10 s under load: what is submitted meanwhile is also done meanwhile (60 s in `make chaos`)."""
    with running_system(tmp_path / "system", {"digits": digits_model}) as system:
        outage_of_redis(system, tmp_path, 10.0)


def test_a_row_that_kills_the_process_is_poison_and_its_neighbours_succeed(tmp_path, digits_model):
    """The guilty job fails alone, as poison; everyone who shared its micro-batch or its process succeeds."""
    env = {"BATCHLINE_MAX_FAILURES": "2"}
    with running_system(tmp_path / "system", {"digits": digits_model}, workers=0, env=env) as system:
        guilty_row = [16.0, 15.0, *ROWS[0][2:]]
        bodies = [{"model": "digits", "inputs": [row]} for row in [*ROWS[:30], guilty_row, *ROWS[30:60]]]
        with httpx.Client(base_url=system.urls[0], headers={"Authorization": f"Bearer {system.key}"}) as http:
            ids = [http.post("/v1/jobs", json=body).json()["id"] for body in bodies]
            worker = system.add("workers", launcher=[str(LAUNCHERS / "worker_that_dies.py")])
            deaths = 0
            deadline = time.monotonic() + 90
            while open_jobs(system.postgres.url) and time.monotonic() < deadline:
                idle_or_dead = "the worker dies or all jobs have ended"
                until(
                    lambda: not worker.is_alive() or not open_jobs(system.postgres.url), within_s=90, what=idle_or_dead
                )
                if not worker.is_alive():
                    deaths += 1
                    worker.start()
            jobs = [http.get(f"/v1/jobs/{i}").json() for i in ids]
        guilty = jobs.pop(30)
        assert (guilty["status"], guilty["code"]) == ("failed", "poison"), guilty
        assert guilty["errors"][0]["code"] == "poison"
        assert {j["status"] for j in jobs} == {"succeeded"}
        assert deaths == 3, "once in company, then max_failures times alone"


@pytest.mark.timeout(240)
def test_a_kill_every_second_fails_no_innocent_job(tmp_path, digits_model):
    """kill -9 at random every second: jobs that were alone in the process when it died are not taken for poison."""
    with running_system(tmp_path / "system", {"digits": digits_model}, apis=2, workers=2) as system:
        ledger = ledger_of(system, tmp_path)
        ledger.start(4, jobs_each=10_000, pause_s=0.02)
        rng = random.Random(2)
        kills, next_at = 0, time.monotonic()
        for _ in range(60):
            next_at += 1.0
            part = rng.choice(list(system.parts.values()))
            if part.is_alive():
                part.kill()
                kills += 1
            part.start()
            until(lambda at=next_at: ledger.refused or time.monotonic() >= at, within_s=5, what="the next kill is due")
            assert not ledger.refused
        ledger.join(within_s=0)
        found = settle(system, ledger, within_s=60)
        print(f"kills {kills}, {found}")
        assert kills >= 45
        assert found.accepted > 100
        assert found.is_clean, found


def test_a_killed_workers_jobs_are_back_within_45_s_with_default_leases(tmp_path, digits_model):
    """Lease 30 s, heartbeat 10 s, sweep 5 s: the last of its jobs has ended 45 s after the kill at the latest."""
    defaults = {
        f"BATCHLINE_{n}": v
        for n, v in [("LEASE_S", "30"), ("HEARTBEAT_S", "10"), ("SWEEP_S", "5"), ("LEADER_LEASE_S", "10")]
    }
    with running_system(tmp_path / "system", {"digits": digits_model}, workers=0, env=defaults) as system:
        # Postgres has just started, and rescue waits until it is older than a lease: let it be so before the kill.
        began = time.monotonic()
        doomed = system.add("workers", BATCHLINE_FAILPOINTS="worker.before_finish=kill")
        with httpx.Client(base_url=system.urls[0], headers={"Authorization": f"Bearer {system.key}"}) as http:
            until(lambda: time.monotonic() - began > 31, within_s=40, what="Postgres is older than a lease")
            ids = [http.post("/v1/jobs", json={"model": "digits", "inputs": [row]}).json()["id"] for row in ROWS[:20]]
            until(lambda: not doomed.is_alive(), within_s=20, what="the worker dies in mid-batch")
            killed_at = time.monotonic()
            # On another host, as far as the system can tell: it does not see that the dead one's pid is gone.
            system.add("workers", launcher=[str(LAUNCHERS / "worker_elsewhere.py")])
            until(lambda: not open_jobs(system.postgres.url), within_s=45, what="rescued and done")
            print(f"recovered {time.monotonic() - killed_at:.1f} s after the kill")
            assert {http.get(f"/v1/jobs/{i}").json()["status"] for i in ids} == {"succeeded"}


def frozen_worker(system: System, tmp_path: Path, launcher: list[str] | None) -> Audit:
    """A worker stops in mid-batch for longer than its lease; another does its jobs; then it goes on and finishes."""
    ledger = ledger_of(system, tmp_path)
    ledger.start(1, jobs_each=40)
    ledger.join(within_s=30)
    frozen = system.add(
        "workers", launcher=launcher, BATCHLINE_FAILPOINTS="worker.before_finish=sleep:1.5", BATCHLINE_LOG_LEVEL="INFO"
    )
    running = "SELECT count(*) FROM jobs WHERE status = 'running'"
    until(lambda: query(system.postgres.url, running)[0][0] > 0, within_s=20, what="it has claimed")
    frozen_pid = frozen.pid
    os.kill(frozen_pid, signal.SIGSTOP)
    try:
        system.add("workers", launcher=[str(LAUNCHERS / "worker_elsewhere.py")])
        found = settle(system, ledger, within_s=60)
    finally:
        os.kill(frozen_pid, signal.SIGCONT)
    until(
        lambda: "stale results dropped" in frozen.log() or audit(system.postgres.url, ledger).ended_twice,
        within_s=30,
        what="the stale finish came",
    )
    return audit(system.postgres.url, ledger) if found.is_clean else found


def test_a_worker_that_wakes_up_after_its_lease_writes_nothing(tmp_path, digits_model):
    """Its finish finds that the attempt is no longer its own: dropped, and counted."""
    with running_system(tmp_path / "system", {"digits": digits_model}, workers=0) as system:
        assert frozen_worker(system, tmp_path, None).is_clean


def test_the_checker_sees_a_missing_fence(tmp_path, digits_model):
    """Mutant: without the attempt guard the same scenario is counted as done twice."""
    with running_system(tmp_path / "system", {"digits": digits_model}, workers=0) as system:
        found = frozen_worker(system, tmp_path, [str(LAUNCHERS / "worker_without_fence.py")])
        assert found.ended_twice > 0
        assert found.results_twice > 0


def lonely_nudges(system: System, tmp_path: Path) -> Audit:
    """Single jobs with pauses, no scheduler, no idle polling: only the nudge after the commit carries them."""
    ledger = ledger_of(system, tmp_path)
    ledger.start(1, jobs_each=5, pause_s=0.2)
    ledger.join(within_s=30)
    with contextlib.suppress(AssertionError):
        until(lambda: not open_jobs(system.postgres.url), within_s=6, what="all done")
    return audit(system.postgres.url, ledger)


@pytest.mark.parametrize(("launcher", "clean"), [(None, True), ("api_that_nudges_first.py", False)])
def test_the_checker_sees_a_nudge_before_the_commit(tmp_path, digits_model, launcher, clean):
    """With dispatch and idle polling off, nudging before the commit strands jobs; nudging after it does not."""
    env = {"BATCHLINE_IDLE_POLL_S": "3600"}
    with running_system(tmp_path / "system", {"digits": digits_model}, apis=0, env=env) as system:
        system.parts["scheduler0"].stop()
        system.add("api", launcher=[str(LAUNCHERS / launcher)] if launcher else None)
        system.ready()
        found = lonely_nudges(system, tmp_path)
        assert found.accepted == 5
        assert (found.not_terminal == 0) is clean, json.dumps(found.statuses)
