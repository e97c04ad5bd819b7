"""What a worker does unasked: looks for work that nobody nudged it for, and for models that nobody registered."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from batchline.data.model_blobs import ModelBlobs
from batchline.errors import BatchlineError
from batchline.job import Lane
from batchline.model import ModelSpec
from batchline.registry import Found, read_version, scan, with_digest
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
    """Registers versions that appear in the repository, and shares the bytes of all with workers that have none.

    What cannot be read is logged once; a database or blob store that is away is asked again at the next look.
    """

    def __init__(self, repository: Path, catalogue: Catalogue, blobs: ModelBlobs) -> None:
        self._repository = repository
        self._catalogue = catalogue
        self._blobs = blobs
        self._seen: set[tuple[str, str]] = set()
        self._shared: set[tuple[str, str]] = set()

    def watch(self, stop: threading.Event, every_s: float = 5.0) -> None:
        """Look every `every_s` until `stop`."""
        while not stop.is_set():
            try:
                self.look()
                self.share()
            except BatchlineError as e:
                log.warning("model repository not read", extra={"error": e.detail})
            except Exception:  # whatever it was, it may be over at the next look
                log.exception("model repository not read")
            stop.wait(every_s)

    def look(self) -> int:
        """Register what is new; returns how many."""
        unseen = [f for f in scan(self._repository) if (f.name, f.version) not in self._seen]
        if not unseen:
            return 0
        known = {(r.spec.name, r.spec.version) for r in self._catalogue.models()}
        return sum(self._admit(found, known) for found in unseen)

    def share(self) -> int:
        """Put into the blob store what the catalogue and the repository know and it does not; returns how many."""
        here = {(f.name, f.version): f.path for f in scan(self._repository) if f.problem is None}
        todo = (here.keys() & self._seen) - self._shared
        if not todo:
            return 0
        specs = {(r.spec.name, r.spec.version): r.spec for r in self._catalogue.models()}
        count = sum(self._share(specs[key], here[key]) for key in sorted(todo & specs.keys()))
        self._shared |= todo
        return count

    def _share(self, spec: ModelSpec, folder: Path) -> bool:
        if spec.text and not spec.text.digest:  # registered by a release that kept no digest of tokenizers
            spec = with_digest(spec, spec.text, folder / spec.text.tokenizer)
            self._catalogue.register_model(spec)
        try:
            if self._blobs.has(spec):
                return False
            self._blobs.publish(spec, folder)
        except BatchlineError as e:
            if e.retryable:
                raise
            told = {"model": spec.ref, "error": e.detail}
            log.warning("model not shared: only workers with its folder can serve it", extra=told)
            return False
        log.info("model put into the blob store", extra={"model": spec.ref})
        return True

    def _admit(self, found: Found, known: set[tuple[str, str]]) -> bool:
        key = (found.name, found.version)
        admitted = False
        try:
            if found.problem:
                log.warning("model refused", extra={"path": str(found.path), "error": found.problem})
            elif key not in known:
                spec = read_version(found.path, found.name, found.version)
                self._share(spec, found.path)
                self._catalogue.register_model(spec)
                log.info("model registered", extra={"model": spec.ref})
                admitted = True
        except BatchlineError as e:
            if e.retryable:
                log.warning("model not registered yet", extra={"path": str(found.path), "error": e.detail})
                return False
            log.warning("model refused", extra={"path": str(found.path), "error": e.detail})
        self._seen.add(key)
        return admitted
