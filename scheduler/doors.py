"""The doors to data sets, sinks and the blob store, as planner, ender and chores need them."""

from __future__ import annotations

import pyarrow as pa

from batchline.batch import BatchView, DataSet
from batchline.data import columns, open_sink, open_source
from batchline.data.blobs import Blobs
from batchline.data.contract import Places, Sink, SinkContext, Source, typeless
from batchline.model import ModelSpec
from batchline.store import Store
from scheduler.refused import RefusedError


class Doors:
    """Opens places as the operator configured them."""

    def __init__(self, places: Places, store: Store) -> None:
        self._places = places
        self._store = store
        self.blobs = Blobs(places)
        """Uploaded files, inline rows, and what batches of requests put out."""

    def source(self, wanted: DataSet) -> Source:
        """The batch's data set."""
        return open_source(wanted.input, self._places)

    def fitted(self, wanted: DataSet, spec: ModelSpec, schema: pa.Schema) -> pa.Schema:
        """The schema of the output, if the columns of the input fit the model as far as they are known.

        Raises:
            RefusedError: they do not.
        """
        if schema.names and (faults := columns.check(spec, wanted, schema)):
            raise RefusedError(faults)
        if typeless(schema):
            return columns.typeless_output(spec, wanted)
        return columns.Mapper(spec, wanted, schema).schema

    def sink(self, batch: BatchView, wanted: DataSet) -> Sink:
        """Where the batch's results go."""
        context = SinkContext(batch.id, wanted.input.key)
        return open_sink(wanted.output, self._places, context, results=self._store.results)
