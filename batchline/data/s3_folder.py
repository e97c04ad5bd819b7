"""A prefix of S3 that takes parts: multipart uploads that are left open, and completed when they are published.

S3 can neither rename nor hide what was put, so even a small part takes three requests: begin, its bytes, complete. What
need not wait, a blob or a manifest, is one PUT as long as it is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from batchline.data import s3_client
from batchline.data.s3_client import FAULTS, code_of, sink_error, status_of
from batchline.data.uris import has_wildcards, s3_uri
from batchline.errors import SinkError

PART_BYTES = 8 << 20
"""S3 takes 10,000 parts of at least 5 MiB."""


class S3Upload:
    """One object that is being written; see `batchline.data.places.Upload`. S3 hears of it when a part is full."""

    def __init__(self, folder: S3Folder, name: str) -> None:
        self.closed = False
        self.size = 0
        self._folder = folder
        self._name = name
        self._upload = ""
        self._etags: list[str] = []
        self._pending = bytearray()

    def write(self, data: bytes | memoryview, /) -> int:
        count = len(data)
        self._pending += data
        self.size += count
        while len(self._pending) >= PART_BYTES:
            part = bytes(self._pending[:PART_BYTES])
            del self._pending[:PART_BYTES]
            self._send(part)
        return count

    def _send(self, part: bytes) -> None:
        self._upload = self._upload or self._folder.begin(self._name)
        self._etags.append(self._folder.send(self._name, self._upload, len(self._etags) + 1, part))

    def flush(self) -> None:
        """Parts are sent when they are full."""

    def close(self) -> None:
        self.closed = True

    def stage(self) -> dict[str, str]:
        if self._pending or not self._etags:
            self._send(bytes(self._pending))
            self._pending = bytearray()
        return {"name": self._name, "upload": self._upload, "etags": ",".join(self._etags)}

    def finish(self) -> None:
        if self._upload:
            self._folder.publish(self.stage())
        else:
            self._folder.put(self._name, bytes(self._pending))

    def abort(self) -> None:
        self._pending = bytearray()
        if self._upload:
            self._folder.discard({"name": self._name, "upload": self._upload})


class S3Folder:
    """An s3:// URI; see `batchline.data.places.Folder`."""

    def __init__(self, uri: str, endpoint: str, *, hidden: str | None) -> None:
        self.uri = uri.rstrip("/") + "/"
        target = s3_uri(self.uri, SinkError)
        if has_wildcards(target.key):
            raise SinkError(f"{uri} has wildcards: an output is one folder.")
        if hidden is not None and self.uri.startswith(hidden):
            raise SinkError(f"{uri} belongs to the server's own store.")
        self._bucket = target.bucket
        self._prefix = target.key
        self._endpoint = endpoint

    @property
    def _s3(self) -> Any:
        return s3_client.client(self._endpoint)

    def probe(self) -> None:
        self.discard({"name": "check", "upload": self.begin("check")})

    def create(self, name: str) -> S3Upload:
        return S3Upload(self, name)

    def begin(self, name: str) -> str:
        """Id of a new multipart upload."""
        try:
            return str(self._s3.create_multipart_upload(Bucket=self._bucket, Key=self._prefix + name)["UploadId"])
        except FAULTS as e:
            raise sink_error(self.uri + name, e) from e

    def send(self, name: str, upload: str, number: int, part: bytes) -> str:
        """Send one part, from 1; its ETag without quotes."""
        try:
            sent = self._s3.upload_part(
                Bucket=self._bucket, Key=self._prefix + name, UploadId=upload, PartNumber=number, Body=part
            )
        except FAULTS as e:
            raise sink_error(self.uri + name, e) from e
        return str(sent["ETag"]).strip('"')

    def publish(self, record: Mapping[str, str]) -> None:
        key = self._prefix + record["name"]
        parts = [{"PartNumber": at, "ETag": etag} for at, etag in enumerate(record["etags"].split(","), 1)]
        try:
            self._s3.complete_multipart_upload(
                Bucket=self._bucket, Key=key, UploadId=record["upload"], MultipartUpload={"Parts": parts}
            )
        except FAULTS as e:
            if code_of(e) != "NoSuchUpload":
                raise sink_error(self.uri + record["name"], e) from e
            self._need_published(record["name"])

    def _need_published(self, name: str) -> None:
        """An upload that is not there any more was completed before, or is lost."""
        try:
            self._s3.head_object(Bucket=self._bucket, Key=self._prefix + name)
        except FAULTS as e:
            if status_of(e) == 404:
                raise SinkError(f"{self.uri}{name} was written and is gone before it was published.") from e
            raise sink_error(self.uri + name, e) from e

    def discard(self, record: Mapping[str, str]) -> None:
        try:
            self._s3.abort_multipart_upload(
                Bucket=self._bucket, Key=self._prefix + record["name"], UploadId=record["upload"]
            )
        except FAULTS as e:
            if code_of(e) != "NoSuchUpload":
                raise sink_error(self.uri + record["name"], e) from e

    def put(self, name: str, data: bytes) -> None:
        try:
            self._s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)
        except FAULTS as e:
            raise sink_error(self.uri + name, e) from e

    def sweep(self, mark: str) -> None:
        try:
            for key, upload in list(self._uploads()):
                name = key[len(self._prefix) :]
                if mark in name and "/" not in name:
                    self.discard({"name": name, "upload": upload})
        except FAULTS as e:
            raise sink_error(self.uri, e) from e

    def _uploads(self) -> Iterator[tuple[str, str]]:
        pages = self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix)
        for page in pages:
            yield from ((entry["Key"], entry["UploadId"]) for entry in page.get("Uploads", ()))


class S3Root:
    """The prefix of the blob store; see `batchline.data.places.Root`."""

    def __init__(self, uri: str, endpoint: str) -> None:
        self._uri = uri
        self._endpoint = endpoint

    def folder(self, path: str) -> S3Folder:
        return S3Folder(self._uri + path, self._endpoint, hidden=None)

    def remove(self, key: str) -> None:
        target = s3_uri(self._uri + key, SinkError)
        try:
            s3_client.client(self._endpoint).delete_object(Bucket=target.bucket, Key=target.key)
        except FAULTS as e:
            raise sink_error(f"The file {key}", e) from e

    def keys(self, *, before: float) -> Iterator[str]:
        target = s3_uri(self._uri, SinkError)
        s3 = s3_client.client(self._endpoint)
        try:
            pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=target.bucket, Prefix=target.key)
            for upload in [entry for page in pages for entry in page.get("Uploads", ())]:
                if upload["Initiated"].timestamp() < before:
                    name = upload["Key"][len(target.key) :]
                    self.folder("").discard({"name": name, "upload": upload["UploadId"]})
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=target.key):
                for entry in page.get("Contents", ()):
                    if entry["LastModified"].timestamp() < before:
                        yield entry["Key"][len(target.key) :]
        except FAULTS as e:
            raise sink_error("The blob store", e) from e
