"""`python -m autoscaler` as a process: killed at every step, started twice, told to end, given nonsense."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import stack
from fake_provider import Cloud, Crew

from batchline.store.instances import LEASE

TESTS = Path(__file__).parents[1]
MOST = 4
STEPS = ("after_adopt", "after_stop", "after_intend", "after_launch", "after_settle")
STEPS += ("after_drain", "after_stopping", "after_end", "after_gone")


class System:
    """Autoscaler processes, the cloud that they share, and the workers there."""

    def __init__(self, store, database_url: str, folder: Path, cleanup: ExitStack, settings: str) -> None:
        self.store = store
        self.cloud = Cloud(folder / "cloud.json")
        self.crew = Crew(store, self.cloud, store.catalogue.register_model(stack.a_spec(pool="cpu")))
        self.log = folder / "log"
        self._cleanup = cleanup
        self.config = folder / "autoscaler.toml"
        self.config.write_text(
            f"every_s = 0.1\nreconcile_s = 0.5\n[pools.cpu]\nprovider = 'fake'\nmax_workers = {MOST}\n"
            f"policy = 'queue'\npolicy_options = {{ rows_per_worker = 10, cooldown_s = 0.3 }}\n{settings}\n"
            f"[pools.cpu.fake]\npath = '{self.cloud.path}'\n"
        )
        self._env = {
            "DATABASE_URL": database_url,
            "BATCHLINE_AUTOSCALER": str(self.config),
            "BATCHLINE_LEADER_LEASE_S": "0.6",
            "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
        }

    def start(self, failpoints: str = "") -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-P", str(TESTS / "launchers" / "autoscaler_in_a_file.py")]
        with self.log.open("ab") as log:
            env = os.environ | self._env | {"BATCHLINE_FAILPOINTS": failpoints}
            process = subprocess.Popen(argv, env=env, stderr=log)
        self._cleanup.callback(process.wait)
        self._cleanup.callback(process.kill)
        return process

    def until(self, condition: Callable[[], object], what: str) -> None:
        """The workers work meanwhile."""
        deadline = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within a minute\n{self.log.read_text()[-4000:]}"
            self.crew.step()
            time.sleep(0.01)

    def ledger(self) -> set[str]:
        return {i.id for i in self.store.instances.list()}

    def untracked(self) -> set[str]:
        """What runs, and neither the ledger nor a launch that is to be called again knows."""
        launches = {str(launch.id) for launch in self.store.instances.unsettled()}
        instances = self.cloud.read()["instances"]
        known = self.ledger() | {id_ for id_, i in instances.items() if i["launch"] in launches}
        return self.cloud.live() - known

    def holders(self) -> list[uuid.UUID]:
        return [row[0] for row in self.store.db.run(f"SELECT holder FROM leases WHERE name = '{LEASE}'")]


@pytest.fixture
def system(store, database_url, tmp_path):
    with ExitStack() as cleanup:
        yield lambda settings="": System(store, database_url, tmp_path, cleanup, settings)


def test_killed_at_every_step_it_leaves_nothing_untracked_and_stops_nobody_busy(system, store):
    """kill -9 between each two steps of launch and stop, one after the other, with an orphan to sweep and work to do.

    At each death all that runs is in the ledger or of a launch that is known as unsettled; then a last scaler ends it.
    """
    it, jobs = system(), set[uuid.UUID]()
    it.cloud.start("stray-0", str(uuid.uuid4()), age_s=1000.0)
    it.crew.leave_alone |= {"stray-0", "stray-1"}
    for step in STEPS:
        more = [stack.new_job() for _ in range(40)]
        store.jobs.submit(more)
        jobs |= {job.id for job in more}
        process = it.start(f"autoscaler.{step}=kill")
        it.until(lambda p=process: p.poll() is not None, f"killed {step}")
        assert process.returncode == -signal.SIGKILL
        assert it.untracked() <= {"stray-0"}, step
    it.cloud.start("stray-1", str(uuid.uuid4()), age_s=1000.0)
    it.start()
    it.until(lambda: store.jobs.terminal(list(jobs)) == jobs, "all done")
    it.until(lambda: not it.cloud.live() and not it.ledger(), "back to nothing")
    state = it.cloud.read()
    assert store.instances.unsettled() == []
    assert state["peak"] <= MOST
    assert it.crew.busy_stopped == 0
    assert {i.id for i in store.instances.list(gone_within_s=1e6)} == set(state["instances"])


def test_two_started_at_once_launch_once_and_the_second_takes_over(system, store):
    """SIGTERM lets go of the lease at once and ends with 0; the other leads."""
    it = system("min_workers = 3")
    pair = [it.start(), it.start()]
    it.until(lambda: len(it.ledger()) == 3, "launched")
    it.until(lambda: '"leading"' in it.log.read_text() and "looking on" in it.log.read_text(), "both there")
    state = it.cloud.read()
    assert (len(state["instances"]), len(state["launches"])) == (3, 1)
    assert len(it.holders()) == 1
    pair[0].send_signal(signal.SIGTERM)
    assert pair[0].wait(30) == 0
    it.cloud.vanish(min(it.cloud.live()))
    it.until(lambda: len(it.cloud.live()) == 3 and it.cloud.live() == it.ledger(), "replaced")
    assert len(it.cloud.read()["instances"]) == 4
    _a_changed_file_counts_at_once(it)
    pair[1].send_signal(signal.SIGTERM)
    assert pair[1].wait(30) == 0
    assert it.holders() == []
    assert len(it.cloud.live()) == 4, "workers outlive the scaler"


def _a_changed_file_counts_at_once(it):
    """One that is refused does not; the kill switch needs no restart."""
    text = it.config.read_text()
    it.config.write_text(text.replace("min_workers = 3", "min_workers = 9"))
    it.until(lambda: "the one before stays" in it.log.read_text(), "refused")
    it.config.write_text(text.replace("min_workers = 3", "min_workers = 4"))
    it.until(lambda: len(it.cloud.live()) == 4, "one more")
    it.config.write_text("enabled = false\n" + text.replace("min_workers = 3", "min_workers = 0"))
    it.until(lambda: "switched off" in it.store.instances.decisions(limit=1)[0].reason, "switched off")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[pools.cpu]\nmin_workers = 3\nmax_workers = 2\nprovider = 'gce'", ("above the maximum", "no provider 'gce'")),
        ("[pools.cpu]\nprovider = 'fake'\n[pools.cpu.fake]\npath = '/nowhere/x'", ("pools.cpu: there is no cloud at",)),
    ],
)
def test_a_bad_configuration_is_refused_at_start(system, text, told):
    """Exit 1, what and where on stderr, no traceback; the database is not even asked."""
    it = system()
    it.config.write_text(text)
    process = it.start()
    assert process.wait(60) == 1
    log = it.log.read_text()
    assert all(part in log for part in told), log
    assert "Traceback" not in log
