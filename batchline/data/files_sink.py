"""A folder as the place of results: for each slice a part and, where rows failed, an errors part; last the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pyarrow as pa

from batchline.batch import Staged
from batchline.data.contract import Manifest, SinkContext
from batchline.data.part_files import Writer, writer
from batchline.data.places import Folder, Upload
from batchline.data.uris import Format
from batchline.errors import BatchlineError, SinkError

MANIFEST = "manifest.json"


class FilesSink:
    """See `batchline.data.contract.Sink`. `Staged.parts` have `name`, for the manifest."""

    def __init__(self, folder: Folder, kind: Format, context: SinkContext) -> None:
        self._folder = folder
        self._kind: Format = kind
        self._short = context.batch.hex[-12:]

    def check(self, schema: pa.Schema) -> None:
        if self._kind == "csv" and (wrong := [f.name for f in schema if pa.types.is_struct(f.type)]):
            raise SinkError(
                f"The column {wrong[0]!r} is a structure and does not fit into CSV: leave it out of `keep`."
            )
        self._folder.probe()

    def open(self, number: int, attempt: int, schema: pa.Schema) -> FilesPart:
        del attempt  # names of unpublished files are their own
        return FilesPart(self._folder, self._kind, f"{number:05d}-{self._short}.{self._kind}", schema)

    def publish(self, number: int, staged: Staged) -> None:
        del number  # the records name it
        for record in staged.parts:
            self._folder.publish(record)

    def discard(self, number: int, staged: Staged) -> None:
        del number  # as above
        for record in staged.parts:
            self._folder.discard(record)

    def complete(self, manifest: Manifest) -> None:
        told: Mapping[str, object] = {**msgspec.to_builtins(manifest), "format": self._kind}
        name = f"manifest-{self._short}.json" if manifest.parent else MANIFEST  # the parent's stays
        self._folder.put(name, msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")

    def sweep(self) -> None:
        self._folder.sweep(f"-{self._short}.")


class FilesPart:
    """See `batchline.data.contract.Part`. A file without rows is not made."""

    refused: Sequence[int] = ()

    def __init__(self, folder: Folder, kind: Format, name: str, schema: pa.Schema) -> None:
        self._folder = folder
        self._kind: Format = kind
        self._name = name
        self._schema = schema
        self._good: _Opened | None = None
        self._bad: _Opened | None = None
        self._records: list[dict[str, str]] = []

    def write(self, rows: pa.RecordBatch, numbers: Sequence[int] | None = None) -> None:
        del numbers  # files take any row
        if rows.num_rows:
            if self._good is None:
                self._good = _Opened(self._folder, self._kind, f"part-{self._name}", self._schema)
            self._good.write(rows)

    def write_errors(self, errors: pa.RecordBatch) -> None:
        if errors.num_rows:
            if self._bad is None:
                self._bad = _Opened(self._folder, self._kind, f"errors-{self._name}", errors.schema)
            self._bad.write(errors)

    def stage(self) -> Staged:
        opened = [file for file in (self._good, self._bad) if file is not None]
        for file in opened:
            self._records.append(file.stage())
        rows, errors = (file.rows if file is not None else 0 for file in (self._good, self._bad))
        return Staged(self._records, rows, errors, sum(file.upload.size for file in opened))

    def abort(self) -> None:
        for file in (self._good, self._bad):
            if file is not None:
                file.upload.abort()


class _Opened:
    """One file that is being written, and in which format."""

    def __init__(self, folder: Folder, kind: Format, name: str, schema: pa.Schema) -> None:
        self.rows = 0
        self.upload: Upload = folder.create(name)
        self._name = name
        try:
            self._writer: Writer = writer(kind, self.upload, schema)
        except (BatchlineError, pa.ArrowException) as e:
            self.upload.abort()
            raise self._told(e) from e

    def write(self, rows: pa.RecordBatch) -> None:
        try:
            self._writer.write(rows)
        except pa.ArrowException as e:
            raise self._told(e) from e
        self.rows += rows.num_rows

    def stage(self) -> dict[str, str]:
        try:
            self._writer.finish()
        except pa.ArrowException as e:
            raise self._told(e) from e
        return self.upload.stage()

    def _told(self, e: Exception) -> BatchlineError:
        if isinstance(e, BatchlineError):
            return e
        return SinkError(f"{self._name}: a column does not fit the file's format.")
