"""The doors to data sets, sinks and the blob store, as planner, ender and chores need them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from batchline.batch import BatchView, DataSet
from batchline.data import columns, open_sink, open_source
from batchline.data.contract import Places, Sink, SinkContext, Source
from batchline.data.places import BLOB, OpenFile, blob_place
from batchline.errors import SourceError
from batchline.model import ModelSpec
from batchline.store import Store
from scheduler.refused import RefusedError

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BlobFile:
    """An uploaded file, open for reading."""

    uri: str
    """blob:KEY, as `Piece.uri` has it."""
    version: str
    file: OpenFile

    def chunks(self) -> Iterator[bytes]:
        """All of it, a piece at a time.

        Raises:
            SourceError, SourceUnavailableError: as `OpenFile.read_at`.
        """
        at = 0
        while chunk := self.file.read_at(at, min(_CHUNK_BYTES, self.file.size - at)):
            yield chunk
            at += len(chunk)
        self.file.verify()


class Doors:
    """Opens places as the operator configured them."""

    def __init__(self, places: Places, store: Store) -> None:
        self._places = places
        self._store = store

    def source(self, wanted: DataSet) -> Source:
        """The batch's data set."""
        return open_source(wanted.input, self._places)

    def fitted(self, wanted: DataSet, spec: ModelSpec, schema: pa.Schema) -> pa.Schema:
        """The schema of the output, if the columns of the input fit the model.

        Raises:
            RefusedError: they do not.
        """
        if faults := columns.check(spec, wanted, schema):
            raise RefusedError(faults)
        return columns.Mapper(spec, wanted, schema).schema

    def sink(self, batch: BatchView, wanted: DataSet) -> Sink:
        """Where the batch's results go."""
        context = SinkContext(batch.id, wanted.input.key)
        return open_sink(wanted.output, self._places, context, results=self._store.results)

    @contextmanager
    def blob(self, key: str) -> Generator[BlobFile]:
        """An uploaded file.

        Raises:
            SourceError: it is gone.
            SourceUnavailableError: the blob store does not answer.
        """
        place, root = blob_place(self._places)
        try:
            file = place.open(root + key)
        except SourceError as e:
            raise SourceError("The uploaded file of this batch is gone: upload it again.") from e
        try:
            yield BlobFile(BLOB + key, file.version, file)
        finally:
            file.close()
