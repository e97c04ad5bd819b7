"""The secrets of the system in containers: one folder of files, made once, on a volume that all of them mount.

postgres_password redis_password   0440: the servers run as other users and are members of the owner's group
database_url redis_url             0400: where the processes find the servers, passwords included
admin_key flower_basic_auth        0400: the API key of the tenant `default`; USER:PASSWORD
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from batchline.store.catalogue import new_key


def make_secrets(folder: Path) -> list[str]:
    """Make what is not there yet; what is there stays as it is.

    Args:
        folder: exists and is writable.

    Returns:
        The names of the files that were made.
    """
    made: list[str] = []

    def keep(name: str, make: Callable[[], str], mode: int = 0o400) -> str:
        path = folder / name
        if not path.exists():
            # Whole or not at all: a container may be killed at any line.
            draft = folder / f".{name}"
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii") as file:
                file.write(make() + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.chmod(mode)
            draft.rename(path)
            made.append(name)
        return path.read_text(encoding="ascii").strip()

    postgres = keep("postgres_password", lambda: secrets.token_urlsafe(24), 0o440)
    redis = keep("redis_password", lambda: secrets.token_urlsafe(24), 0o440)
    keep("database_url", lambda: f"postgresql://batchline:{postgres}@postgres:5432/batchline")
    keep("redis_url", lambda: f"redis://:{redis}@redis:6379/0")
    keep("admin_key", new_key)
    keep("flower_basic_auth", lambda: f"batchline:{secrets.token_urlsafe(18)}")
    return made
