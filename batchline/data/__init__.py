"""Data sets: sources that are read in pieces and sinks that are staged, then published; one file a format or place."""

from __future__ import annotations

from batchline.batch import Input, Output
from batchline.data.contract import Places, ResultStore, Sink, SinkContext, Source
from batchline.data.places import blob_place, folder_of, place_of, places_of
from batchline.data.uris import format_of
from batchline.errors import SinkError, SourceError

__all__ = ["open_sink", "open_source", "places_of"]


def open_source(wanted: Input, places: Places) -> Source:
    """The data set that an input names; nothing is read yet.

    Raises:
        SourceError: no such place, or the operator does not allow it.
    """
    from batchline.data.files_source import FilesSource  # noqa: PLC0415 - what one kind needs stays its own

    if wanted.file is not None:
        place, root = blob_place(places)
        return FilesSource(place, root + wanted.file, wanted.format or "jsonl", blobs=root)
    if wanted.uri is not None:
        return FilesSource(place_of(wanted.uri, places), wanted.uri, format_of(wanted.uri, wanted.format))
    if wanted.table is not None:
        from batchline.data.sql_table import TableSource  # noqa: PLC0415 - files need no psycopg2

        return TableSource(places, wanted)
    raise SourceError("The input names no data set: give rows, a uri or a table.")


def open_sink(wanted: Output, places: Places, context: SinkContext, *, results: ResultStore | None = None) -> Sink:
    """Where an output says that results go; nothing is written yet.

    Args:
        wanted: of the batch.
        places: as configured.
        context: of the batch, and of the slice where parts are written.
        results: takes the lines of the default sink.

    Raises:
        SinkError: no such place, or the operator does not allow it.
    """
    if wanted.uri is not None:
        from batchline.data.files_sink import FilesSink  # noqa: PLC0415 - as above

        return FilesSink(folder_of(wanted.uri, places), wanted.format or "jsonl", context)
    if wanted.table is not None:
        from batchline.data.sql_table import TableSink  # noqa: PLC0415 - as above

        return TableSink(places, wanted, context)
    if results is None:
        raise SinkError("The default sink needs the store.")
    from batchline.data.lines import LinesSink  # noqa: PLC0415 - as above

    return LinesSink(results, context)
