"""Becomes a program that outlives who started it, written down before it runs; run by path, it imports nothing of ours.

    python -I -S detach.py RECORD OWNER_PID STATUS_DESCRIPTOR TAGS PROGRAM [ARGUMENT ...]

RECORD is the file that says so: the JSON object TAGS with the process's id and start time. Whoever finds it there ends
without running anything, so a program is started once for each RECORD. The program becomes a child of OWNER_PID, which
must have adopted its orphans (`children.adopt_orphans`), and is killed with it; 0: it belongs to nobody. The descriptor
is closed when RECORD is there, or will never be. Linux only.
"""

import ctypes
import json
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1


def _become_orphan() -> None:
    """Go on in a child of a child that has ended, in a session of its own."""
    between = os.getpid()
    if os.fork():
        os._exit(0)
    os.setsid()
    while os.getppid() == between:
        time.sleep(0.001)


def _tie_to(owner: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != owner:
        sys.exit("the system that this process belongs to has ended")


def _write_down(record: str, tags: str) -> bool:
    """Whether this process is the one that RECORD names."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123 - pathlib loads slowly
        started_ticks = int(stat.read().rpartition(")")[2].split()[19])
    known = json.loads(tags) | {"pid": os.getpid(), "started_ticks": started_ticks, "launched_at_s": time.time()}
    draft = f"{record}.{os.getpid()}"
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(known, file)
    try:
        os.link(draft, record)
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)  # noqa: PTH108
    return True


def main(arguments: list[str]) -> None:
    record, owner, status, tags, *argv = arguments
    _become_orphan()
    if int(owner):
        _tie_to(int(owner))
    os.set_inheritable(int(status), False)
    if _write_down(record, tags):
        os.execve(argv[0], argv, os.environ)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])
