"""Becomes another program that ends with its parent; run by path, so it imports nothing of ours.

    python -I -S trampoline.py DEATH_SIGNAL PARENT_PID IDENTITY PROGRAM [ARGUMENT ...]

IDENTITY is `self`, `namespace` (uid 1000 of a user namespace of its own: still root's files outside, no root's rights)
or `UID:GID`. Both changes of identity clear the death signal, so it is set after them. Linux only; elsewhere a child
outlives a parent that was killed with SIGKILL.
"""

import ctypes
import os
import sys

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib doubles this program's start-up time
        file.write(text)


def _enter_namespace(libc: ctypes.CDLL) -> None:
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "user namespaces are not allowed here")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"1000 {uid} 1")
    _write("/proc/self/gid_map", f"1000 {gid} 1")


def main(arguments: list[str]) -> None:
    death_signal, parent, identity, *argv = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if identity == "namespace":
            _enter_namespace(libc)
        elif identity != "self":
            uid, gid = map(int, identity.split(":"))
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != int(parent):
            sys.exit("the parent ended before its child began")
    os.execve(argv[0], argv, os.environ)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])
