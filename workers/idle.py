"""What a worker does unasked: looks for work that nobody nudged it for, and for models that nobody registered."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from batchline.errors import BatchlineError
from batchline.job import Lane
from batchline.registry import Found, read_version, scan
from batchline.store.contract import Catalogue
from workers.engine import Engine

log = logging.getLogger("workers")

_PAUSE_S = 1.0


def look_for_work(engine: Engine, lane: Lane, every_s: float) -> None:
    """Until the process leaves: whenever nothing was claimed for `every_s`, ask; go on while there is work."""
    while not engine.closing.wait(every_s):
        if engine.idle_s(lane) < every_s:
            continue
        try:
            while engine.run(lane)["jobs"]:
                pass
        except Exception:
            log.exception("the engine failed")
            engine.closing.wait(_PAUSE_S)


class Newcomers:
    """Registers versions that appear in the repository; each bad one is logged once."""

    def __init__(self, repository: Path, catalogue: Catalogue) -> None:
        self._repository = repository
        self._catalogue = catalogue
        self._seen: set[tuple[str, str]] = set()

    def watch(self, stop: threading.Event, every_s: float = 5.0) -> None:
        """Look every `every_s` until `stop`."""
        while not stop.wait(every_s):
            try:
                self.look()
            except BatchlineError as e:
                log.warning("model repository not read", extra={"error": e.detail})

    def look(self) -> int:
        """Register what is new; returns how many."""
        unseen = [f for f in scan(self._repository) if (f.name, f.version) not in self._seen]
        if not unseen:
            return 0
        known = {(r.spec.name, r.spec.version) for r in self._catalogue.models()}
        return sum(self._admit(found, known) for found in unseen)

    def _admit(self, found: Found, known: set[tuple[str, str]]) -> bool:
        key = (found.name, found.version)
        try:
            if found.problem:
                log.warning("model refused", extra={"path": str(found.path), "error": found.problem})
            elif key not in known:
                spec = read_version(found.path, found.name, found.version)
                self._catalogue.register_model(spec)
                log.info("model registered", extra={"model": spec.ref})
                return True
        except BatchlineError as e:
            if e.retryable:
                raise
            log.warning("model refused", extra={"path": str(found.path), "error": e.detail})
        finally:
            self._seen.add(key)
        return False
