"""Objects of S3: listed in order of their keys, read by ranges, each read bound to the ETag that was found at first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError
from urllib3.exceptions import HTTPError

from batchline.data import s3_client
from batchline.data.s3_client import FAULTS, source_error
from batchline.data.uris import Format, belongs, fixed_folder, glob_matcher, has_wildcards, s3_uri
from batchline.errors import SourceError, SourceUnavailableError

BODY_S = 120.0
"""The longest that one range may take, however steadily it trickles."""
_TRIES = 3
_STEP_BYTES = 1 << 20


class S3File:
    """One version of one object; see `batchline.data.places.OpenFile`. It holds nothing open."""

    def __init__(self, uri: str, name: str, endpoint: str, size: int, version: str) -> None:
        self.uri = uri
        self.size = size
        self.version = version
        self._name = name
        self._endpoint = endpoint

    def read_at(self, offset: int, count: int) -> bytes:
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        for tries in range(1, _TRIES + 1):
            body = self._begin(offset, count)
            try:
                data = _drained(body, count)
            except (BotoCoreError, HTTPError, OSError) as e:
                if tries == _TRIES:
                    raise SourceUnavailableError(f"{self.uri} cannot be read now: S3's answers break off.") from e
            else:
                if len(data) == count:
                    return data
        raise SourceUnavailableError(f"{self.uri} cannot be read now: S3's answers are too short.")

    def _begin(self, offset: int, count: int) -> Any:
        target = s3_uri(self._name)
        try:
            answer = s3_client.client(self._endpoint).get_object(
                Bucket=target.bucket,
                Key=target.key,
                Range=f"bytes={offset}-{offset + count - 1}",
                IfMatch=self.version,
            )
        except FAULTS as e:
            raise source_error(self.uri, e) from e
        return answer["Body"]

    def verify(self) -> None:
        """Every read has asked for this ETag: nothing else was read."""

    def again(self) -> S3File:
        return S3File(self.uri, self._name, self._endpoint, self.size, self.version)

    def close(self) -> None:
        """Nothing is held."""


def _drained(body: Any, count: int) -> bytes:
    """The bytes of an answer; raises what botocore and urllib3 raise when it breaks off, and TimeoutError."""
    deadline = time.monotonic() + BODY_S
    pieces: list[bytes] = []
    try:
        while count and (data := body.read(min(count, _STEP_BYTES))):
            pieces.append(data)
            count -= len(data)
            if time.monotonic() > deadline:
                raise TimeoutError
    finally:
        body.close()
    return b"".join(pieces)


class S3Place:
    """s3:// but for what begins with `hidden`."""

    def __init__(self, endpoint: str, *, hidden: str | None) -> None:
        self._endpoint = endpoint
        self._hidden = hidden

    def list(self, uri: str, kind: Format) -> Iterator[str]:
        self._check(uri)
        target = s3_uri(uri)
        if has_wildcards(target.key):
            pattern = target.key
            found = self._keys(target.bucket, fixed_folder(pattern), uri)
            matcher = glob_matcher(pattern)
            keys = (key for key in found if matcher.fullmatch(key) and not key.endswith("/"))
        elif target.key and not target.key.endswith("/") and self._is_object(uri):
            return iter((uri,))
        else:
            folder = target.key.rstrip("/") + "/" if target.key else ""
            keys = (key for key in self._keys(target.bucket, folder, uri) if belongs(key, kind))
        return self._some(uri, target.bucket, keys)

    def _some(self, uri: str, bucket: str, keys: Iterator[str]) -> Iterator[str]:
        count = 0
        for key in keys:
            found = f"s3://{bucket}/{key}"
            if self._hidden is None or not found.startswith(self._hidden):
                count += 1
                yield found
        if not count:
            raise SourceError(f"No file matches {uri}.")

    def _keys(self, bucket: str, prefix: str, uri: str) -> Iterator[str]:
        """In S3's order, which is that of their bytes."""
        try:
            pages = s3_client.client(self._endpoint).get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=bucket, Prefix=prefix):
                yield from (entry["Key"] for entry in page.get("Contents", ()))
        except FAULTS as e:
            raise source_error(uri, e) from e

    def _is_object(self, uri: str) -> bool:
        try:
            self._head(uri)
        except FAULTS as e:
            if s3_client.status_of(e) == 404:
                return False
            raise source_error(uri, e) from e
        return True

    def _head(self, uri: str) -> Any:
        target = s3_uri(uri)
        return s3_client.client(self._endpoint).head_object(Bucket=target.bucket, Key=target.key)

    def open(self, uri: str) -> S3File:
        self._check(uri)
        try:
            found = self._head(uri)
        except FAULTS as e:
            raise source_error(uri, e) from e
        return S3File(uri, uri, self._endpoint, int(found["ContentLength"]), str(found["ETag"]))

    def _check(self, uri: str) -> None:
        if self._hidden is not None and uri.startswith(self._hidden):
            raise SourceError(f"{uri} belongs to the server's own store.")
