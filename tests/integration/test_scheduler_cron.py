"""Schedules that fire: one batch a fire time whoever fires, overlap, catching up, clocks that jump, what is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import stack
from scheduler_rig import Rig

from batchline.batch import DataSet
from batchline.batch_bodies.scheduled import ASKED_WHILE_DISABLED
from batchline.job import new_job_id
from batchline.store.batch_contract import Run, ScheduleView
from batchline.traffic import Canary, Rule
from scheduler.chores.cron import CATCH_UP_STEP, Cron


class Clockwork(Rig):
    """A rig that has the cron chore, and schedules for it."""

    def __init__(self, store, folder, **settings):
        super().__init__(store, folder, **settings)
        self.cron = Cron(self.settings, store, self.doors, self.finds)

    def schedule(self, *, minutes_ago=0.0, body=None, **changes):
        """A schedule of every minute whose next fire time was so many minutes ago."""
        now = self.store.schedules.now()
        at = now.replace(second=0, microsecond=0) - timedelta(minutes=minutes_ago)
        default = {"model": "digits", "input": {"uri": f"file://{self.folder}/{{fire_time:%Y-%m-%d}}.jsonl"}}
        fields = {
            "id": new_job_id(), "tenant_id": stack.TENANT, "name": f"s{new_job_id().hex}", "cron": "* * * * *",
            "timezone": "UTC", "batch": json.dumps(body or default), "catch_up": "all", "overlap": "allow",
            "enabled": True, "created_at": now, "next_fire_at": at,
        }  # fmt: skip
        found = self.store.schedules.add(ScheduleView(**fields | changes))
        assert isinstance(found, ScheduleView)
        return found

    def runs(self, schedule):
        """(fire time, outcome) of all runs, oldest first."""
        return [(r.fire_at, r.outcome) for r in reversed(self.store.schedules.runs(schedule.id, after=None, limit=999))]

    def outcomes(self, schedule):
        return [outcome for _, outcome in self.runs(schedule)]

    def batches(self, schedule):
        sql = "SELECT id FROM batches WHERE schedule_id = %(id)s ORDER BY fire_at"
        return [row[0] for row in self.store.db.run(sql, {"id": schedule.id})]

    def end_batches(self, schedule):
        self.store.db.run(
            "UPDATE batches SET status = 'completed', ended_at = now() WHERE schedule_id = %(id)s", {"id": schedule.id}
        )


@pytest.fixture
def rig(store, tmp_path):
    rig = Clockwork(store, tmp_path)
    rig.model()
    return rig


def test_a_fire_time_becomes_a_batch_with_its_date_filled_in(rig):
    """In the schedule's own zone; the schedule moves on to its next fire time."""
    schedule = rig.schedule(timezone="Pacific/Kiritimati")
    assert rig.cron.step() == 1
    (batch,) = rig.batches(schedule)
    view = rig.read(batch)
    local = schedule.next_fire_at + timedelta(hours=14)
    assert f"{local:%Y-%m-%d}.jsonl" in msgspec.json.decode(view.body, type=DataSet).input.uri
    assert (view.schedule_id, view.fire_at, view.tenant_id) == (schedule.id, schedule.next_fire_at, stack.TENANT)
    moved = rig.store.schedules.read(schedule.id)
    assert moved.next_fire_at == schedule.next_fire_at + timedelta(minutes=1)
    assert rig.runs(schedule) == [(schedule.next_fire_at, "submitted")]
    assert rig.store.schedules.runs(schedule.id, after=None, limit=1)[0].batch_id == batch


def test_the_version_is_that_of_production_when_it_fires(rig, tmp_path):
    """A data set is never the canary's; what the rule said when the schedule was made does not matter."""
    for version in "23":
        rig.model(version=version)
    rig.store.traffic.put("digits", Rule(1, Canary(3, 100.0)))
    schedule = rig.schedule(minutes_ago=1)
    rig.store.traffic.put("digits", Rule(2, Canary(3, 100.0)))
    Clockwork(rig.store, tmp_path).cron.step()
    assert {rig.read(batch).version for batch in rig.batches(schedule)} == {"2"}


def test_disabled_schedules_do_not_fire(rig):
    """Nor do those whose time has not come."""
    rig.schedule(enabled=False)
    rig.schedule(minutes_ago=-5)
    assert rig.cron.step() == 0


def test_missed_fire_times_by_catch_up(rig):
    """`none` passes over what is late, `last` runs one, `all` every one, in portions."""
    none, last = rig.schedule(minutes_ago=30, catch_up="none"), rig.schedule(minutes_ago=30, catch_up="last")
    everything = rig.schedule(minutes_ago=30, catch_up="all")
    for _ in range(3):
        rig.cron.step()
    assert rig.outcomes(none) in (["skipped", "submitted"], ["skipped"])
    assert rig.outcomes(last) == ["skipped", "submitted"]
    assert rig.runs(last)[1][0] >= last.next_fire_at + timedelta(minutes=30)
    assert len(rig.outcomes(everything)) >= 31 > CATCH_UP_STEP
    assert set(rig.outcomes(everything)) == {"submitted"}


def test_overlap_skip(rig):
    """While a batch of the schedule has not ended, fire times are passed over, and say why."""
    schedule = rig.schedule(overlap="skip", catch_up="last")
    rig.cron.step()
    rig.store.db.run("UPDATE schedules SET next_fire_at = now()")
    rig.cron.step()
    assert rig.outcomes(schedule) == ["submitted", "skipped"]
    assert "has not ended" in rig.store.schedules.runs(schedule.id, after=None, limit=1)[0].detail
    rig.end_batches(schedule)
    rig.store.db.run("UPDATE schedules SET next_fire_at = now()")
    rig.cron.step()
    assert rig.outcomes(schedule) == ["submitted", "skipped", "submitted"]


def test_overlap_queue_runs_one_after_another(rig):
    """In the order of fire times, each when the batch before it has ended."""
    schedule = rig.schedule(minutes_ago=3, overlap="queue")
    rig.cron.step()
    assert rig.outcomes(schedule) == ["submitted", "queued", "queued", "queued"]
    for n in range(2, 5):
        assert rig.cron.step() == 0, "the batch before has not ended"
        rig.end_batches(schedule)
        assert rig.cron.step() == 1
        assert len(rig.batches(schedule)) == n
    assert [rig.read(b).fire_at for b in rig.batches(schedule)] == [at for at, _ in rig.runs(schedule)]


def test_catching_up_all_with_overlap_skip_queues_what_was_missed(rig):
    """Else `all` would mean one."""
    schedule = rig.schedule(minutes_ago=4, overlap="skip")
    rig.cron.step()
    assert rig.outcomes(schedule)[:4] == ["submitted", "queued", "queued", "queued"]


def test_a_queued_run_of_a_disabled_schedule_is_skipped(rig):
    """It does not start when its turn comes."""
    schedule = rig.schedule(minutes_ago=1, overlap="queue")
    rig.cron.step()
    rig.end_batches(schedule)
    rig.store.db.run("UPDATE schedules SET enabled = false")
    assert rig.cron.step() == 1
    assert rig.outcomes(schedule) == ["submitted", "skipped"]
    assert rig.cron.step() == 0


def test_a_backfill_that_was_asked_of_a_disabled_schedule_runs(rig):
    """One after another, whatever the schedule does by itself."""
    schedule = rig.schedule(overlap="skip", enabled=False, next_fire_at=None)
    now = rig.store.schedules.now().replace(second=0, microsecond=0)
    for hours in (2, 1):
        run = Run(schedule.id, now - timedelta(hours=hours), "queued", ASKED_WHILE_DISABLED, None, None, now)
        rig.store.schedules.run_now(run, None)
    assert rig.cron.step() == 1
    assert rig.outcomes(schedule) == ["submitted", "queued"]
    rig.end_batches(schedule)
    assert rig.cron.step() == 1
    assert rig.outcomes(schedule) == ["submitted", "submitted"]


def test_a_body_that_does_not_fit_any_more_is_a_failed_run(rig):
    """The model is gone: the history says so, and the schedule goes on."""
    schedule = rig.schedule(body={"model": "gone", "input": {"rows": [[0.0] * 64]}})
    assert rig.cron.step() == 1
    (run,) = rig.store.schedules.runs(schedule.id, after=None, limit=9)
    assert (run.outcome, run.batch_id) == ("failed", None)
    assert "/model" in run.detail
    assert rig.store.schedules.read(schedule.id).next_fire_at > schedule.next_fire_at


def test_a_tenant_without_room_skips_its_fire_times_once_each(store, tmp_path):
    """The reason stands in the history, and nothing is due any more: the chore does not turn hot."""
    rig = Clockwork(store, tmp_path, max_open_batches_tenant=2)
    rig.model()
    schedule = rig.schedule(minutes_ago=3)
    assert rig.cron.step()
    assert rig.outcomes(schedule)[:4] == ["submitted"] * 2 + ["skipped"] * 2
    assert not rig.cron.step()
    told = store.schedules.runs(schedule.id, after=None, limit=1)[0].detail
    assert (
        told == "This tenant may have 2 batches that have not ended, and has them; wait for one to end, or cancel one."
    )


def test_inline_rows_become_a_file_each_time(rig):
    """As when they are submitted by hand."""
    schedule = rig.schedule(body={"model": "digits", "input": {"rows": [[0.0] * 64]}})
    rig.cron.step()
    (batch,) = rig.batches(schedule)
    assert rig.planner.station().step()
    assert rig.read(batch).counts.total == 1


def test_a_clock_that_goes_back_fires_nothing_twice(rig):
    """The next fire time stays where it is; one that was fired before is left alone when it comes again."""
    schedule = rig.schedule()
    rig.cron.step()
    rig.store.db.run("UPDATE schedules SET next_fire_at = %(at)s", {"at": schedule.next_fire_at})
    rig.cron.step()
    assert rig.outcomes(schedule) == ["submitted"]
    assert len(rig.batches(schedule)) == 1


def test_two_schedulers_fire_each_time_once(rig, tmp_path):
    """Ten schedules with twenty fire times each, four threads over two schedulers: 200 batches, no more."""
    others = [rig, Clockwork(rig.store, tmp_path)]
    schedules = [rig.schedule(minutes_ago=19, cron="* * * * *") for _ in range(10)]
    until = max(s.next_fire_at for s in schedules) + timedelta(minutes=19)
    errors = []

    def fire(one):
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and one.store.schedules.due(limit=1):
                one.cron.step()
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=fire, args=(one,)) for one in others for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for schedule in schedules:
        wanted = [schedule.next_fire_at + timedelta(minutes=n) for n in range(20)]
        assert [at for at, _ in rig.runs(schedule) if at <= until] == wanted
        assert [rig.read(b).fire_at for b in rig.batches(schedule)][:20] == wanted


_PROCESS = """
import sys
from pathlib import Path
from batchline.store import open_store
sys.path[:0] = [sys.argv[3], sys.argv[4]]
from scheduler_rig import Rig
from scheduler.chores.cron import Cron
store = open_store(sys.argv[1])
rig = Rig(store, Path(sys.argv[2]))
print(Cron(rig.settings, store, rig.doors, rig.finds).step())
"""


@pytest.mark.parametrize("place", ["scheduler.before_fire", "store.after_run", "scheduler.after_fire"])
def test_killed_at_any_step_each_fire_time_has_one_batch(rig, database_url, tmp_path, place):
    """kill -9 before the transaction, between the run and its batch, and after it: the next one makes it whole."""
    schedule = rig.schedule()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _PROCESS, database_url, str(tmp_path), str(root / "tests"), str(root)]
    environ = {**os.environ, "BATCHLINE_FAILPOINTS": f"{place}=kill"}
    killed = subprocess.run(command, env=environ, capture_output=True, check=False, timeout=60)
    assert killed.returncode == -9, killed.stderr
    assert rig.outcomes(schedule) == (["submitted"] if place == "scheduler.after_fire" else [])
    deadline = time.monotonic() + 10
    while not rig.outcomes(schedule) and time.monotonic() < deadline:
        rig.cron.step()
    first = [
        r for r in rig.store.schedules.runs(schedule.id, after=None, limit=9) if r.fire_at == schedule.next_fire_at
    ]
    assert [r.outcome for r in first] == ["submitted"]
    assert [b for b in rig.batches(schedule) if rig.read(b).fire_at == schedule.next_fire_at] == [first[0].batch_id]


def test_a_dst_night_fires_once(rig):
    """Berlin, 02:30, the night it comes twice and the night it does not come: caught up, one batch a date."""
    for start in (datetime(2025, 10, 24, 0, 30, tzinfo=UTC), datetime(2026, 3, 27, 1, 30, tzinfo=UTC)):
        schedule = rig.schedule(cron="30 2 * * *", timezone="Europe/Berlin", next_fire_at=start)
        rig.cron.step()
        first = [at for at, _ in rig.runs(schedule)][:4]
        assert [at.date() for at in first] == [(start + timedelta(days=n)).date() for n in range(4)]
