"""What stands behind a data set: sources that are cut into pieces and read, sinks that are staged, then published.

Rows travel as Arrow record batches. Shapes: N rows of one `Rows`, in the order of the source. Places (folders, buckets,
databases) are opened by `batchline.data.open_source` and `open_sink`, one file per format or place beside this one.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from batchline.batch import Chunk, Piece, Staged

ROW = "row"
"""The column of the output that numbers rows when the input names no key: int64, from 0 within the batch."""

MAYBE_NUMBERS: dict[bytes | str, bytes | str] = {b"batchline": b"maybe numbers"}
"""Metadata of a field of text that numbers may be read from: CSV has no types, and one word makes a column text."""

UNTYPED: dict[bytes | str, bytes | str] = {b"batchline untyped": b"text"}
"""Metadata of a field whose type is a guess: `Source.read` gives it as text, as it stands in the file, if told so."""

EXACT_AS_TEXT: dict[bytes | str, bytes | str] = {b"batchline exact": b"text"}
"""Metadata of a field of floats that are more than that: where it is passed on it is asked of `Source.read` as text."""

FROM_PATH: dict[bytes | str, bytes | str] = {b"batchline path": b"hive"}
"""Metadata of a field that stands in the paths of files and not in them: it is read only where it is named."""


def marked(field: pa.Field[Any], mark: Mapping[bytes | str, bytes | str]) -> bool:
    """Whether a field has one of the marks above."""
    return bool(field.metadata) and field.metadata.items() >= mark.items()


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows of a source, and what is wrong with some of them: a line that is no JSON, a value that does not fit.

    A row with a fault has nulls in `batch`; it keeps its place, so that row numbers hold.
    """

    batch: pa.RecordBatch
    faults: Mapping[int, str] = field(default_factory=dict[int, str])
    """Row within `batch` -> what is wrong, for people."""


def typeless(schema: pa.Schema) -> bool:
    """Whether a source's first rows tell no type: it has none, as a CSV file of a header or an empty JSONL file."""
    return all(pa.types.is_null(kind) for kind in schema.types)


class Source(Protocol):
    """One data set: a table, or all files of a URI in order of their names."""

    at_once: int
    """Pieces worth reading at a time: more than one where each waits for an answer, and then threads may share this."""

    def schema(self) -> pa.Schema:
        """Names and types of the columns, from metadata or the first rows; see `typeless`.

        Raises:
            SourceError: there is no such file or table, it may not be read, or it is no such format; names it.
            SourceUnavailableError: the place does not answer; may be tried again.
        """
        ...

    def pieces(self, slice_rows: int) -> Iterator[Piece]:
        """Pieces of at most about `slice_rows` rows, in order, with exact row counts; memory does not grow with size.

        Raises: as `schema`.
        """
        ...

    def read(
        self, piece: Piece, columns: Sequence[str] | None, *, batch_rows: int, texts: Collection[str] = ()
    ) -> Iterator[Rows]:
        """The rows of a piece, all of them, at most `batch_rows` at a time.

        Args:
            piece: as planned; a file whose version differs by now is not read.
            columns: only these, in this order; None for all.
            batch_rows: most rows of one `Rows`.
            texts: those of the columns that are wanted as text; only `UNTYPED` and `EXACT_AS_TEXT` ones can be had so.

        Raises:
            SourceError: the file changed, is truncated, lacks a column, has another type, swells beyond its limit;
                the message names file, row and column as far as they are known.
            SourceUnavailableError: may be tried again.
        """
        ...


class Part(Protocol):
    """What one attempt writes of one slice, in the order of its rows. Nobody sees any of it before it is published."""

    refused: Sequence[int]
    """Numbers of rows that were written and that the place does not take, known when it is staged. They are among the
    errors, by the sink's own doing."""

    def write(self, rows: pa.RecordBatch, numbers: Sequence[int] | None = None) -> None:
        """Append rows that succeeded: key (or `row`; the default sink wants both), kept columns, outputs.

        The faults of a stretch of rows come before or right after its good rows, before those of the next stretch.
        `numbers` are the rows' within the batch; without them they are numbered through from 0.
        """
        ...

    def write_errors(self, errors: pa.RecordBatch) -> None:
        """Append rows that did not: `row`, key if there is one, `code`, `message`.

        A key whose own name is one of the others' is called `key`.
        """
        ...

    def stage(self) -> Staged:
        """Make it durable, unpublished; the returned record is all that `Sink.publish` needs, on any machine."""
        ...

    def abort(self) -> None:
        """Leave nothing behind; safe after anything."""
        ...


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished batch says of itself beside its parts."""

    batch: str
    model: str
    digest: str
    rows: int
    succeeded: int
    failed: int
    parts: Sequence[str]
    schema: Mapping[str, str]
    """Column -> Arrow type."""
    parent: str | None = None
    """The batch whose failed rows this one did again: both together are the whole."""


class Sink(Protocol):
    """Where results go. Raises SinkError (no permission, disk full, no such table) and SinkUnavailableError."""

    def check(self, schema: pa.Schema) -> None:
        """Whether the sink can take this schema and may be written to; called once, when the batch is planned."""
        ...

    def open(self, number: int, attempt: int, schema: pa.Schema) -> Part:
        """Begin the part of slice `number`; another attempt at it may be writing its own at the same time."""
        ...

    def publish(self, number: int, staged: Staged) -> None:
        """Make a staged part visible, whole; repeatable: published already is well."""
        ...

    def discard(self, number: int, staged: Staged) -> None:
        """Remove a staged part that lost; repeatable."""
        ...

    def complete(self, manifest: Manifest) -> None:
        """After the last part of a completed batch: write the manifest, swap the table; repeatable."""
        ...

    def sweep(self) -> None:
        """Remove what attempts of this batch have left behind unpublished; called when the batch has ended."""
        ...


@dataclass(frozen=True)
class Places:
    """What the operator allows and configured; see the settings of the same names."""

    blobs: str
    """file:///folder or s3://bucket/prefix: uploaded files, inline rows, OpenAI's output files."""
    data_roots: tuple[str, ...] = ()
    """Folders below which file:// URIs may be read and written; none: no file:// at all."""
    databases: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name -> DSN."""
    s3_endpoint_url: str = ""
    """Empty: AWS. Credentials and region come from AWS's own environment."""


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a sink needs to know of its batch."""

    batch: uuid.UUID
    key: str | None
    """Name of the output's key column, None: `row`."""
    job: uuid.UUID | None = None
    """The slice in hand: the default sink files its lines under it. None where nothing is written."""


class ResultStore(Protocol):
    """What the default sink needs of the store: `batchline.store.batch_contract.Results` has it."""

    def write(self, job_id: uuid.UUID, attempt: int, chunks: Sequence[Chunk]) -> None:
        """Append chunks of a slice, in order; repeating a chunk after a lost reply writes it once."""
        ...

    def sweep(self, batch_id: uuid.UUID) -> None:
        """Delete lines of attempts that lost."""
        ...
