"""Logs of the embedded stack stay bounded, and keep whole lines."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from batchline.local import children, rotation, supervisor
from batchline.local.rotation import rotate
from batchline.local.supervisor import Part, Supervisor

CHATTY = "import itertools\nfor n in itertools.count(): print(f'line {n:09d} ' + 'x' * 80, flush=True)"


def lines(*paths: Path) -> list[str]:
    return [line for path in paths for line in path.read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_log_within_its_limit_is_left_alone(tmp_path: Path) -> None:
    """Nothing is copied before a log is longer than its limit; one that is not there is no error."""
    log = tmp_path / "api.log"
    log.write_text("12345")
    assert not rotate(log, limit_bytes=5)
    assert not rotate(tmp_path / "none.log", limit_bytes=5)
    assert names(tmp_path) == ["api.log"]


def test_the_present_file_and_two_old_ones_are_kept(tmp_path: Path) -> None:
    """Each rotation moves the files one further; the oldest goes; all are private."""
    log = tmp_path / "api.log"
    for n in range(4):
        log.write_text(f"begin {n}\nend {n}\n")
        assert rotate(log, limit_bytes=12)
    assert log.read_text() == ""
    assert lines(tmp_path / "api.log.1", tmp_path / "api.log.2") == ["end 3", "end 2"]
    assert names(tmp_path) == ["api.log", "api.log.1", "api.log.2"]
    assert (tmp_path / "api.log.1").stat().st_mode & 0o777 == 0o600


def test_a_writer_goes_on_at_the_new_end(tmp_path: Path) -> None:
    """What appends through its own descriptor needs no telling: no hole, and its next line is the file's first."""
    log = tmp_path / "api.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"before\n" * 10)
        assert rotate(log, limit_bytes=20)
        writer.write(b"after\n")
    assert log.read_bytes() == b"after\n"


def test_a_disk_that_is_full_gets_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the old lines cannot be kept the log is emptied all the same, and no half copy stays."""
    log = tmp_path / "api.log"
    log.write_text("line\n" * 10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rotation.os, "open", full)
    with pytest.raises(OSError, match="No space left"):
        rotate(log, limit_bytes=20)
    monkeypatch.undo()
    assert log.read_text() == ""
    assert names(tmp_path) == ["api.log"]


def test_the_supervisor_bounds_what_a_chatty_child_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes through a limit of 50 kB leave three files, each of whole lines in their order; the first are gone."""
    logs = tmp_path / "logs"
    logs.mkdir()
    log, limit = logs / "chatty.log", 50_000
    monkeypatch.setattr(supervisor, "ROTATE_EVERY_S", 0.02)
    monkeypatch.setattr(rotation, "LIMIT_BYTES", limit)

    def spawn() -> subprocess.Popen[bytes]:
        return children.spawn([sys.executable, "-c", CHATTY], log=log, env={"PATH": os.defpath})

    def stop_when_much_was_written() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            old = logs / "chatty.log.2"
            if old.exists() and (written := lines(old)) and int(written[0].split()[1]) > 30_000:
                break
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop_when_much_was_written)
    Supervisor([[Part("chatty", spawn)]], tmp_path / "state.json", logs).run(watcher.start)
    watcher.join()
    old = [logs / "chatty.log.2", logs / "chatty.log.1"]
    assert names(logs) == ["chatty.log", "chatty.log.1", "chatty.log.2"]
    assert all(path.stat().st_size > limit * 0.9 for path in old), "but for the line that the cut goes through"
    for path in old:
        numbers = [int(line.split()[1]) for line in lines(path)[:-1]]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert "\0" not in log.read_text()
