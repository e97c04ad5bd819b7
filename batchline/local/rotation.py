"""Bounds logs that children write through a descriptor of their own, by copying and truncating them.

The descriptors append (see `children.spawn`), so a writer goes on at the new end of its file and needs no telling. What
it writes between the last read and the truncation, some microseconds, is lost.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LIMIT_BYTES = 10 * 2**20
KEPT = 2
"""Old files beside the present one: three of LIMIT_BYTES a process."""
_STEP_BYTES = 2**20

_log = logging.getLogger(__name__)


def rotate_all(folder: Path) -> None:
    """Rotate every `*.log` of the folder that has outgrown its limit; a fault of one is logged."""
    for log in folder.glob("*.log"):
        try:
            rotate(log, limit_bytes=LIMIT_BYTES)
        except OSError as e:
            _log.warning("what %s held is lost: %s", log, e.strerror)


def rotate(log: Path, *, limit_bytes: int, kept: int = KEPT) -> bool:
    """Move the end of a log that is longer than its limit to `NAME.1`, what was there to `NAME.2`, and so on.

    Args:
        log: appended to by others; need not exist.
        limit_bytes: what a file may hold. Of a log that grew far beyond it since the last look only the end is kept.
        kept: how many old files stay, from 1.

    Returns:
        Whether it was rotated.

    Raises:
        OSError: the old lines could not be kept (a full disk); the log is empty all the same, for it is worth less
            than the room.
    """
    try:
        file = log.open("r+b")
    except FileNotFoundError:
        return False
    with file:
        size = file.seek(0, os.SEEK_END)
        if size <= limit_bytes:
            return False
        old = [log.with_name(f"{log.name}.{n}") for n in range(1, kept + 1)]
        try:
            for older, newer in zip(reversed(old), reversed(old[:-1]), strict=False):
                with suppress(FileNotFoundError):
                    newer.replace(older)
            file.seek(size - limit_bytes)
            file.readline(_STEP_BYTES)  # begin with a whole line
            _copy(file, old[0], limit_bytes)
        finally:
            file.truncate(0)
    return True


def _copy(source: BinaryIO, path: Path, limit_bytes: int) -> None:
    """Copy to the end, or twice the limit where a writer is faster than we are."""
    path.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as target:
            copied = 0
            while copied < 2 * limit_bytes and (piece := source.read(_STEP_BYTES)):
                target.write(piece)
                copied += len(piece)
    except OSError:
        path.unlink(missing_ok=True)
        raise
