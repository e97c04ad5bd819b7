"""From what a batch asks for to the work of one slice."""

from __future__ import annotations

import sys
import threading
import uuid
from collections import OrderedDict
from importlib.abc import MetaPathFinder

import msgspec
import numpy as np
import pyarrow as pa

from batchline.batch import DataSet
from batchline.data import open_sink, open_source, places_of
from batchline.data.blobs import Blobs
from batchline.data.columns import Mapper
from batchline.data.contract import SinkContext
from batchline.errors import InvalidRequestError, SourceError
from batchline.job import ClaimedJob
from batchline.settings import Settings
from batchline.store.batch_contract import Results, SliceWork
from workers.data_set import DataSetWork, Opened
from workers.models import LoadedModel
from workers.requests import RequestsWork
from workers.stretches import Work

_KEPT = 8
"""Batches whose source and columns are known still when their next slice comes."""


def warm() -> None:
    """Have Arrow make its first conversions now, there and back, and find no pandas.

    Each way looks for it by itself, and would import it where it is installed, in the middle of the first slice: a
    second of CPU for nothing we use. The reader of a slice has what others leave of the cores: on a busy machine that
    second took it twenty.
    """
    sys.meta_path.insert(0, _NoPandas())
    try:
        pa.array(np.zeros(1)).to_numpy(zero_copy_only=False)
    finally:
        del sys.meta_path[0]


class _NoPandas(MetaPathFinder):
    """Says that there is no pandas. Arrow asks once each way; None in sys.modules it would take for the module."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:  # noqa: ARG002
        if fullname == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=fullname)


class Works:
    """Opens sources and sinks for slices."""

    def __init__(self, settings: Settings, results: Results) -> None:
        self._places = places_of(settings)
        self._blobs = Blobs(self._places)
        self._max_rows = settings.max_rows
        self._results = results
        self._opened: OrderedDict[tuple[uuid.UUID, int], Opened] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, ask: SliceWork, job: ClaimedJob, model: LoadedModel) -> Work:
        """The work of a claimed slice.

        Raises:
            SourceError, SinkError: it cannot be done as it stands.
            SourceUnavailableError, SinkUnavailableError: it may be tried again.
        """
        if ask.batch.kind == "requests":
            return RequestsWork(ask, job, model.spec, self._blobs, max_rows=self._max_rows)
        wanted = msgspec.json.decode(ask.batch.body, type=DataSet)
        context = SinkContext(ask.batch.id, wanted.input.key, job.id)
        sink = open_sink(wanted.output, self._places, context, results=self._results)
        return DataSetWork(ask, job, model.spec, self._source(ask.batch.id, wanted, model), sink)

    def _source(self, batch_id: uuid.UUID, wanted: DataSet, model: LoadedModel) -> Opened:
        key = (batch_id, model.id)
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
                return self._opened[key]
        source = open_source(wanted.input, self._places)
        try:
            opened = (source, Mapper(model.spec, wanted, source.schema()))
        except InvalidRequestError as e:
            raise SourceError(e.detail) from e
        with self._lock:
            self._opened[key] = opened
            if len(self._opened) > _KEPT:
                self._opened.popitem(last=False)
        return opened
