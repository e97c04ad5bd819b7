"""The models in memory: loaded once, checked against the catalogue, warmed up, least recently used go first."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from batchline.errors import BatchlineError, ModelError, SourceUnavailableError
from batchline.metrics import MODELS_LOADED
from batchline.model import DTYPES, ModelRecord, ModelSpec
from batchline.rows import Array
from batchline.store.contract import Catalogue
from workers.model_files import ModelFiles
from workers.runtimes.contract import OpenRuntime, Runtime
from workers.text import Tokenizer

log = logging.getLogger("workers")

_KEEP_FAILURE_S = 1.0
_AWAY_S = 5.0
"""So long is nothing fetched from a blob store that did not answer; what is loaded serves on."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run, and how long that took."""

    id: int
    spec: ModelSpec
    runtime: Runtime
    tokenizer: Tokenizer | None
    load_ms: float


class Models:
    """What this process knows of the catalogue, and what it has loaded of it.

    One load at a time; whoever runs a model that is unloaded meanwhile keeps it until the pass is done.
    """

    def __init__(
        self,
        files: ModelFiles,
        catalogue: Catalogue,
        open_runtime: OpenRuntime,
        *,
        limit_bytes: int,
        check: Callable[[ModelSpec], None] = lambda _: None,
    ) -> None:
        """`check` raises RuntimeMissingError for a model that could not be opened here, before its files are read."""
        self._files = files
        self._catalogue = catalogue
        self._open = open_runtime
        self._check = check
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._records: dict[int, ModelRecord] = {}
        self._loaded: OrderedDict[int, LoadedModel] = OrderedDict()
        self._failed: dict[int, tuple[float, ModelError]] = {}
        self._away_until = 0.0

    @property
    def busy(self) -> bool:
        """Whether no other model can be loaded right now: some thread loads one, or the blob store does not answer."""
        return self._loading.locked() or time.monotonic() < self._away_until

    def refresh(self) -> list[ModelRecord]:
        """Read the catalogue anew."""
        records = self._catalogue.models()
        self._records = {r.id: r for r in records}
        return records

    def has(self, model_id: int) -> bool:
        return model_id in self._loaded

    def get(self, model_id: int) -> LoadedModel | None:
        """The model if it is loaded; counts as a use of it."""
        with self._lock:
            model = self._loaded.get(model_id)
            if model is not None:
                self._loaded.move_to_end(model_id)
            return model

    def refs(self) -> str:
        """The loaded models, space-separated."""
        with self._lock:
            return " ".join(sorted(m.spec.ref for m in self._loaded.values()))

    def load(self, model_id: int) -> LoadedModel:
        """Load a model, unloading others for its room; a failure is remembered for a second.

        Raises:
            ModelError: it cannot be loaded; jobs for it may be tried again later.
            SourceUnavailableError: its files cannot be fetched now; its jobs had better wait for other workers.
            RuntimeMissingError: this process can never load it; its jobs must wait for other workers.
        """
        with self._loading:
            model = self.get(model_id)
            if model is not None:
                return model
            at, error = self._failed.get(model_id, (0.0, None))
            if error is not None and time.monotonic() - at < _KEEP_FAILURE_S:
                raise error
            try:
                model = self._load(self._record(model_id))
            except ModelError as e:
                self._failed[model_id] = (time.monotonic(), e)
                raise
            except SourceUnavailableError:
                self._away_until = time.monotonic() + _AWAY_S
                raise
            self._failed.pop(model_id, None)
            return model

    def preload(self, pool: str) -> None:
        """Load the newest version of each model of a pool while there is room; failures are logged."""
        newest = {r.spec.name: r for r in self.refresh() if r.spec.policy.pool == pool}
        for record in newest.values():
            if self._bytes() + record.spec.size_bytes > self._limit_bytes:
                continue
            try:
                self.load(record.id)
            except BatchlineError as e:
                log.warning("model not loaded", extra={"model": record.spec.ref, "error": e.detail})

    def _record(self, model_id: int) -> ModelRecord:
        if model_id not in self._records:
            self.refresh()
        record = self._records.get(model_id)
        if record is None:
            raise ModelError(f"The catalogue has no model number {model_id}.")
        return record

    def _load(self, record: ModelRecord) -> LoadedModel:
        spec = record.spec
        began = time.monotonic()
        self._check(spec)
        data = self._files.read(spec, spec.file)
        text = spec.text
        tokenizer = Tokenizer(self._files.read(spec, text.tokenizer), text.max_length) if text else None
        self._make_room(spec.size_bytes)
        runtime = self._open(spec, data)
        _warm_up(runtime, spec)
        model = LoadedModel(record.id, spec, runtime, tokenizer, (time.monotonic() - began) * 1000)
        with self._lock:
            self._loaded[record.id] = model
        MODELS_LOADED.set(self._bytes())
        log.info("model loaded", extra={"model": spec.ref, "bytes": len(data), "ms": round(model.load_ms)})
        return model

    def _bytes(self) -> int:
        with self._lock:
            return sum(m.spec.size_bytes for m in self._loaded.values())

    def _make_room(self, wanted: int) -> None:
        """The model that is wanted is loaded even if it is larger than the limit: alone."""
        while self._loaded and self._bytes() + wanted > self._limit_bytes:
            with self._lock:
                _, gone = self._loaded.popitem(last=False)
            log.info("model unloaded", extra={"model": gone.spec.ref})


def _warm_up(runtime: Runtime, spec: ModelSpec) -> None:
    """Run rows of zeros at both ends of the batch size; a model that dislikes zeros is still a model."""
    for count in sorted({1, spec.policy.max_batch_size}):
        try:
            runtime.run({t.name: _zeros(count, t.shape, t.dtype) for t in spec.inputs})
        except Exception as e:
            log.info("warm-up refused", extra={"model": spec.ref, "rows": count, "error": str(e)[:200]})
            return


def _zeros(count: int, shape: tuple[int | None, ...], dtype: str) -> Array:
    shape_now = (count, *(1 if d is None else d for d in shape))
    return np.full(shape_now, "", dtype=object) if dtype == "BYTES" else np.zeros(shape_now, dtype=DTYPES[dtype])
