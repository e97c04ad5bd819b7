"""The supervisor, on tiny children: restarts, order, state file, end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from batchline.errors import LocalError
from batchline.local import children, supervisor
from batchline.local.supervisor import Part, Supervisor, next_failures, read_state
from batchline.retry import backoff_s


def until(condition: Callable[[], object], deadline_s: float = 15.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.01)


def part(tmp_path: Path, name: str, code: str, **more: object) -> Part:
    def spawn() -> subprocess.Popen[bytes]:
        return children.spawn([sys.executable, "-c", code], log=tmp_path / f"{name}.log", env={"PATH": os.defpath})

    return Part(name, spawn, log=tmp_path / f"{name}.log", **more)


pytestmark = pytest.mark.timeout(40)

FOREVER = "import time; time.sleep(600)"

DRIVER = """
import os, sys
from pathlib import Path
from batchline.local import children, supervisor
from batchline.local.supervisor import Part, Supervisor
folder = Path(sys.argv[1])
(folder / 'order').touch()
supervisor.FIRST_WAIT_S = 0.05
def part(name, code):
    env = {"PATH": os.defpath, "ORDER": str(folder / "order"), "NAME": name}
    noted = lambda: f"start {name}" in (folder / "order").read_text()
    return Part(name, lambda: children.spawn([sys.executable, "-c", code], log=folder / "log", env=env), ready=noted)
FOREVER = '''
import os, signal, sys
def note(what): open(os.environ["ORDER"], "a").write(f"{what} {os.environ['NAME']}\\\\n")
def stop(*_): note("stop"); sys.exit(0)
signal.signal(signal.SIGTERM, stop); note("start")
while True: signal.pause()
'''
STUBBORN = FOREVER.replace("SIGTERM, stop)", "SIGTERM, signal.SIG_IGN)")
stages = [[part("first", FOREVER)], [part("second", FOREVER)]]
if len(sys.argv) > 2:
    stages.append([part("stubborn", STUBBORN)])
Supervisor(stages, folder / "state.json").run(lambda: print("ready", flush=True))
"""


def drive(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    until(lambda: (tmp_path / "state.json").exists() and read_state(tmp_path / "state.json").ready)
    return process


def pids(tmp_path: Path) -> dict[str, int | None]:
    return {p.name: p.pid for p in read_state(tmp_path / "state.json").parts}


def test_failures_add_up_until_a_good_run() -> None:
    """Each short run counts one more; a run of 60 s starts the count again."""
    assert [next_failures(n, 1.0) for n in (0, 1, 7)] == [1, 2, 8]
    assert next_failures(7, 60.0) == 1
    assert next_failures(7, 59.9) == 8


def test_the_wait_grows_from_one_second_to_thirty() -> None:
    """Ceilings 1, 2, 4, 8, 16, 30, 30 s; never less than half of that."""
    for failures, ceiling in zip(range(1, 8), (1, 2, 4, 8, 16, 30, 30), strict=True):
        wait = backoff_s(failures, base_s=supervisor.FIRST_WAIT_S, cap_s=supervisor.LONGEST_WAIT_S)
        assert ceiling / 2 <= wait <= ceiling


def test_a_dead_part_is_started_again_and_counted(tmp_path: Path) -> None:
    """kill -9 of a child: a new process, one restart, the signal written down; its neighbour is left alone."""
    process = drive(tmp_path)
    try:
        before = pids(tmp_path)
        os.kill(before["second"], signal.SIGKILL)
        until(lambda: pids(tmp_path)["second"] not in (None, before["second"]))
        until(lambda: read_state(tmp_path / "state.json").parts[1].state == "running")
        first, second = read_state(tmp_path / "state.json").parts
        assert (second.restarts, second.last_exit) == (1, -signal.SIGKILL)
        assert (first.restarts, first.pid) == (0, before["first"])
    finally:
        process.terminate()
        process.wait(20)


def test_stops_in_reverse_order_and_forgets_its_state(tmp_path: Path) -> None:
    """SIGTERM: the last stage stops first, nothing stays alive, the state file is gone, exit code 0."""
    process = drive(tmp_path)
    family = pids(tmp_path)
    process.terminate()
    assert process.wait(20) == 0
    assert (tmp_path / "order").read_text().split("\n")[:4] == [
        "start first",
        "start second",
        "stop second",
        "stop first",
    ]
    assert not any(children.is_alive(pid) for pid in family.values())
    assert not (tmp_path / "state.json").exists()


def test_a_second_signal_stops_the_stubborn_at_once(tmp_path: Path) -> None:
    """A child that ignores SIGTERM holds the end up for its grace (15 s) only when nobody asks again."""
    process = drive(tmp_path, "stubborn")
    stubborn = pids(tmp_path)["stubborn"]
    begun = time.monotonic()
    process.terminate()
    while children.is_alive(stubborn):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert time.monotonic() - begun < 12
    assert process.wait(20) == 0


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    """kill -9 of the supervisor leaves no child behind, not even one that ignores SIGTERM."""
    process = drive(tmp_path, "stubborn")
    family = pids(tmp_path)
    process.kill()
    process.wait()
    until(lambda: not any(children.is_alive(pid) for pid in family.values()))


def test_a_part_that_never_comes_up_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three failures before the first readiness: everything is stopped, the message holds the end of the log."""
    monkeypatch.setattr(supervisor, "FIRST_WAIT_S", 0.01)
    spawned: list[subprocess.Popen[bytes]] = []
    good = part(tmp_path, "good", FOREVER)

    def spawn() -> subprocess.Popen[bytes]:
        spawned.append(good.spawn())
        return spawned[-1]

    bad = part(tmp_path, "bad", "raise SystemExit('no such table')", settle_s=5.0)
    with pytest.raises(LocalError, match=r"bad does not come up: ended with exit code 1.*[\s\S]*no such table"):
        Supervisor([[Part("good", spawn)], [bad]], tmp_path / "state.json").run()
    assert [p.poll() is not None for p in spawned] == [True]


def test_a_once_part_runs_before_the_next_stage_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that fails at first is repeated; what stands after it starts when it has succeeded."""
    monkeypatch.setattr(supervisor, "FIRST_WAIT_S", 0.01)
    mark = tmp_path / "mark"
    code = f"import pathlib, sys; p = pathlib.Path({str(mark)!r}); p.exists() or (p.touch(), sys.exit(1))"
    once = part(tmp_path, "once", code, once=True)
    after = part(tmp_path, "after", f"import pathlib; assert pathlib.Path({str(mark)!r}).exists(); {FOREVER}")
    states: list[dict[str, object]] = []

    def ready() -> None:
        states.extend(json.loads((tmp_path / "state.json").read_text())["parts"])
        os.kill(os.getpid(), signal.SIGTERM)

    Supervisor([[once], [after]], tmp_path / "state.json").run(ready)
    assert [(s["name"], s["restarts"]) for s in states] == [("once", 1), ("after", 0)]


def test_a_part_that_cannot_be_spawned_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of spawn counts like an early end, and is shown."""
    monkeypatch.setattr(supervisor, "FIRST_WAIT_S", 0.01)

    def spawn() -> subprocess.Popen[bytes]:
        raise LocalError("Port 1 is in use")

    with pytest.raises(LocalError, match="Port 1 is in use"):
        Supervisor([[Part("never", spawn)]], tmp_path / "state.json").run()


def test_the_state_is_its_owners_business(tmp_path: Path) -> None:
    """The state file has mode 0600, also where a crash left one that others could read."""
    path = tmp_path / "state.json"
    (tmp_path / "state.json.new").write_text("{}")
    modes: list[int] = []

    def ready() -> None:
        modes.append(path.stat().st_mode & 0o777)
        os.kill(os.getpid(), signal.SIGINT)

    Supervisor([[part(tmp_path, "one", FOREVER, settle_s=0.1)]], path).run(ready)
    assert modes == [0o600]


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    """After run, SIGTERM and SIGINT mean what they meant before."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGCHLD)
    Supervisor([[part(tmp_path, "one", FOREVER)]], tmp_path / "s").run(lambda: os.kill(os.getpid(), signal.SIGINT))
    after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGCHLD)
    assert after == before
