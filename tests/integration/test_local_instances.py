"""Workers that the autoscaler starts on this machine: once each, found again, ended, and never a stranger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from system import until

from batchline.errors import LocalError
from batchline.local import children
from batchline.local.instances import Instances, LocalInstance, NoRoomError
from batchline.local.plan import Process
from batchline.local.stack import down, status, up

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable, "-I", "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]  # fmt: skip
LAUNCHER = """
import os, sys, time, uuid
from pathlib import Path
from batchline.local.instances import Instances
argv = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
Instances(Path(sys.argv[1])).launch(uuid.UUID(sys.argv[2]), int(sys.argv[3]), argv, os.environ, stack="s", pool="cpu")
print("launched", flush=True)
time.sleep(600)
"""


@pytest.fixture
def instances(tmp_path: Path) -> Iterator[Instances]:
    made = Instances(tmp_path)
    yield made
    made.end_all(grace_s=0.0)


def launch(
    instances: Instances, count: int = 1, argv: list[str] = SLEEPER, launch_id: uuid.UUID | None = None, **more: object
) -> list[LocalInstance]:
    return instances.launch(launch_id or uuid.uuid4(), count, argv, os.environ, stack="s", pool="cpu", **more)


def test_an_instance_has_a_name_a_session_and_a_log_of_its_own(instances: Instances, tmp_path: Path) -> None:
    """BATCHLINE_INSTANCE is its id; nothing comes from or goes to who started it; its log is nobody else's to read."""
    code = "import os, time; print(os.environ['BATCHLINE_INSTANCE'], os.getsid(0), flush=True); time.sleep(600)"
    launch_id = uuid.uuid4()
    (found,) = launch(instances, argv=[sys.executable, "-I", "-S", "-c", code], launch_id=launch_id)
    assert found.id == f"local-{launch_id.hex}-1"
    log = tmp_path / "logs" / f"{found.id}.log"
    until(lambda: log.read_text() == f"{found.id} {found.pid}\n", within_s=10, what="log")
    assert log.stat().st_mode & 0o777 == 0o600
    assert Path(f"/proc/{found.pid}/fd/0").readlink() == Path("/dev/null")
    assert os.getpgid(found.pid) == found.pid


def test_instances_outlive_a_killed_launcher_and_are_found_again(instances: Instances, tmp_path: Path) -> None:
    """kill -9 of the process that launched them: they run on, and the same launch names them to the next."""
    launch_id = uuid.uuid4()
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path), str(launch_id), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "launched\n"
        launcher.kill()
    found = instances.list("s", "cpu")
    assert len(found) == 2
    assert launch(instances, 2, launch_id=launch_id) == found
    assert instances.list() == found


def test_a_launch_that_was_cut_short_is_completed(instances: Instances, tmp_path: Path) -> None:
    """The launcher was killed between the first process and the second: repeated, only the second is started."""
    launch_id = uuid.uuid4()
    (first,) = launch(instances, 1, launch_id=launch_id)
    (tmp_path / "run" / "instances" / f"{launch_id.hex}.done").unlink()
    both = launch(instances, 2, launch_id=launch_id)
    assert both[0] == first
    assert instances.list() == both


def test_who_launches_at_once_launches_once(instances: Instances, tmp_path: Path) -> None:
    """Two autoscalers with the same launch in hand, each without the other's lock: a process takes its name or ends."""
    launch_id = uuid.uuid4()
    elsewhere = [Instances(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda one: launch(one, 2, launch_id=launch_id), elsewhere))
    assert told == [told[0]] * 4
    assert instances.list() == told[0]
    record = tmp_path / "run" / "instances" / f"{told[0][0].id}.json"
    tags = json.dumps({"id": told[0][0].id})
    late = [
        sys.executable,
        "-I",
        "-S",
        str(Path(children.__file__).with_name("detach.py")),
        str(record),
        "0",
        "1",
        tags,
    ]
    before = record.read_bytes()
    with subprocess.Popen([*late, "/bin/echo", "ran twice"], stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == b""
    assert record.read_bytes() == before


def test_a_stranger_with_the_same_id_is_never_signalled(instances: Instances, tmp_path: Path) -> None:
    """The process that a record named is gone and its id is another's now: not listed, not ended."""
    (found,) = launch(instances)
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: not instances.list(), within_s=10, what="gone")
    path = tmp_path / "run" / "instances" / f"{found.id}.json"
    stranger = subprocess.Popen(SLEEPER)
    earlier = found.started_ticks - 1  # a tick has 10 ms, in which a test can start two processes
    try:
        for changes in ({"pid": stranger.pid, "started_ticks": earlier}, {"boot": "another"}):
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
            assert instances.list() == []
            instances.end([found.id], grace_s=0.0)
            assert instances.end_all(grace_s=0.0) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_record_speaks_only_of_the_instance_that_it_is_named_after(instances: Instances, tmp_path: Path) -> None:
    """Its files are found by the id in it, which might lead out of the folder."""
    (found,) = launch(instances)
    folder = tmp_path / "run" / "instances"
    record = json.loads((folder / f"{found.id}.json").read_text())
    (folder / f"local-{found.launch}-2.json").write_text(json.dumps(record | {"id": "../../state"}))
    assert instances.list() == [found]


def test_the_deaf_are_killed_when_their_grace_is_over(instances: Instances, tmp_path: Path) -> None:
    """Asked once, an instance is ending and may go on; asked again after its grace, it is killed."""
    (found,) = launch(instances, argv=STUBBORN)
    until(lambda: "deaf" in (tmp_path / "logs" / f"{found.id}.log").read_text(), within_s=10, what="deaf")
    instances.end([found.id], grace_s=60.0)
    instances.end([found.id], grace_s=60.0)
    assert instances.list() == [found]
    assert instances.ending_since_s(found) is not None
    instances.end([found.id], grace_s=0.0)
    until(lambda: not instances.list(), within_s=10, what="killed")


def test_no_room_starts_nothing(instances: Instances) -> None:
    """What fits is started; then the error says that there is no room."""
    assert len(launch(instances, 3, room=2)) == 2
    with pytest.raises(NoRoomError):
        launch(instances, room=2)
    assert len(instances.list()) == 2


def test_a_program_that_cannot_start_has_been_an_instance(instances: Instances) -> None:
    """It is named, so that nobody starts it for ever, and is not listed."""
    (found,) = launch(instances, argv=["/no/such/program"])
    until(lambda: not instances.list(), within_s=10, what="ended")
    assert found.pid


def test_what_ended_is_forgotten_after_a_day(instances: Instances, tmp_path: Path) -> None:
    """Record, mark and log of a process that ended go with a later launch; a running one keeps its own."""
    (old,), (kept,) = launch(instances), launch(instances)
    instances.end([old.id], grace_s=60.0)
    until(lambda: len(instances.list()) == 1, within_s=10, what="ended")
    day_ago = time.time() - 90_000
    folder = tmp_path / "run" / "instances"
    for found in (old, kept):
        path = folder / f"{found.id}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"launched_at_s": day_ago}))
        os.utime(tmp_path / "logs" / f"{found.id}.log", (day_ago, day_ago))
    (later,) = launch(instances)
    left = {path.name for path in (*folder.iterdir(), *(tmp_path / "logs").iterdir())}
    launches = {f"{found.launch}.done" for found in (kept, later)}
    assert left == {"lock", *launches, *(f"{i.id}{end}" for i in (kept, later) for end in (".json", ".log"))}


SCALER = """
import os, sys, time, uuid
from pathlib import Path
from batchline.local.instances import Instances
instances = Instances(Path(os.environ["BATCHLINE_FOLDER"]))
if not instances.list():
    code = "import time; time.sleep(600)"
    instances.launch(uuid.uuid4(), 2, [sys.executable, "-I", "-S", "-c", code], os.environ, stack="s", pool="cpu")
time.sleep(600)
"""
TABLE = (Process("worker", ("-I", "-S", "-c", "import time; time.sleep(600)")), Process("autoscaler", ("-c", SCALER)))


@pytest.fixture
def a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a running stack of which only a worker and an autoscaler are there; it has added two workers."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere/0")
    try:
        up(tmp_path, detach=True, processes=TABLE)
        until(lambda: len(status(tmp_path).parts) == 4, within_s=20, what="two instances")
        yield tmp_path
    finally:
        down(tmp_path)


def pids(folder: Path) -> dict[str, int]:
    return {part.name: part.pid or 0 for part in status(folder).parts}


def parents(folder: Path) -> set[int]:
    """Of the instances."""
    stats = [Path(f"/proc/{i.pid}/stat").read_text() for i in Instances(folder).list()]
    return {int(stat.rpartition(")")[2].split()[1]) for stat in stats}


def test_down_ends_added_workers_after_a_kill_of_the_autoscaler(a_stack: Path) -> None:
    """kill -9 of the autoscaler: its workers run on, below the supervisor; `down` leaves none."""
    before = pids(a_stack)
    os.kill(before["autoscaler"], signal.SIGKILL)
    until(lambda: pids(a_stack)["autoscaler"] not in (0, before["autoscaler"]), within_s=20, what="restarted")
    assert parents(a_stack) == {status(a_stack).pid}
    assert {name: pid for name, pid in pids(a_stack).items() if name != "autoscaler"} == {
        name: pid for name, pid in before.items() if name != "autoscaler"
    }
    added = [name for name in before if name.startswith("local-")]
    os.kill(before[added[0]], signal.SIGKILL)
    until(lambda: not Path(f"/proc/{before[added[0]]}").exists(), within_s=10, what="reaped")
    assert down(a_stack)
    assert not any(children.is_alive(pid) for pid in before.values())


def test_added_workers_end_with_a_killed_supervisor(a_stack: Path) -> None:
    """kill -9 of the supervisor ends them like every other part, and the next `up` finds none."""
    before = pids(a_stack)
    os.kill(status(a_stack).pid or 0, signal.SIGKILL)
    until(lambda: not any(children.is_alive(pid) for pid in before.values()), within_s=10, what="all ended")
    assert not down(a_stack)
    assert Instances(a_stack).list() == []


def test_down_ends_what_a_dead_system_left(tmp_path: Path, instances: Instances) -> None:
    """Where the kernel does not end them with the supervisor, `down` does; `down` of a folder of nothing is none."""
    (tmp_path / "run").mkdir()
    (found,) = launch(instances)
    assert down(tmp_path)
    assert not children.is_alive(found.pid)
    assert not down(tmp_path)


def test_ending_all_gives_up_on_what_cannot_be_killed(instances: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stays is named in the error."""
    (found,) = launch(instances)
    monkeypatch.setattr("batchline.local.instances._send", lambda *_: None)
    monkeypatch.setattr("batchline.local.instances._KILLED_S", 0.1)
    with pytest.raises(LocalError, match=found.id):
        instances.end_all(grace_s=0.0)
    monkeypatch.undo()
