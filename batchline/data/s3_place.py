"""Objects of S3: listed in order of their keys, read by ranges, each read bound to one ETag.

Listing tells ETags and sizes, a plan tells ETags, answers tell sizes: HEAD is asked only where nothing else did. An
object that has another ETag by then is not read; S3 says so itself, to the first range that is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError
from urllib3.exceptions import HTTPError

from batchline.data import s3_client
from batchline.data.places import Listed
from batchline.data.read_ahead import AT_ONCE
from batchline.data.remembered import Remembered
from batchline.data.s3_client import FAULTS, source_error
from batchline.data.uris import Format, belongs, fixed_folder, glob_matcher, has_wildcards, s3_uri
from batchline.errors import SourceError, SourceUnavailableError

BODY_S = 120.0
"""The longest that one range may take, however steadily it trickles."""
_TRIES = 3
_STEP_BYTES = 1 << 20
_sizes = Remembered[int](10_000)


class S3File:
    """One version of one object; see `batchline.data.places.OpenFile`. It holds nothing open."""

    def __init__(self, uri: str, name: str, endpoint: str, version: str, size: int | None) -> None:
        self.uri = uri
        self.version = version
        self.identity: str | None = f"{endpoint} {name} {version}"
        self._name = name
        self._endpoint = endpoint
        self._size = size
        self._tail = (0, b"")

    @property
    def size(self) -> int:
        if self._size is None:
            self._size = _sizes.of(self, self._asked_size)
        return self._size

    def _asked_size(self) -> int:
        try:
            return int(_head(self._endpoint, self._name, IfMatch=self.version)["ContentLength"])
        except FAULTS as e:
            raise source_error(self.uri, e) from e

    def _learn(self, total: int) -> None:
        self._size = _sizes.of(self, lambda: total)

    def tail(self, count: int) -> None:
        if self._size is None:
            data = self._whole(f"-{count}", count)
        else:
            data = self.read_at(max(0, self._size - count), count)
        self._tail = (self.size - len(data), data)

    def read_at(self, offset: int, count: int) -> bytes:
        if self._size is not None:
            count = min(count, self._size - offset)
        if count <= 0:
            return b""
        start, held = self._tail
        if held and offset >= start:
            return held[offset - start : offset - start + count]
        data = self._whole(f"{offset}-{offset + count - 1}", count)
        if len(data) < min(count, self.size - offset):
            raise _short(self.uri)
        return data

    def _whole(self, wanted: str, count: int) -> bytes:
        """A range of `count` bytes, or as many of them as there are, however often its answer breaks off."""
        for tries in range(1, _TRIES + 1):
            body, length = self._begin(wanted)
            try:
                data = _drained(body, length)
            except (BotoCoreError, HTTPError, OSError) as e:
                if tries == _TRIES:
                    raise SourceUnavailableError(f"{self.uri} cannot be read now: S3's answers break off.") from e
            else:
                if len(data) == min(length, count):
                    return data
        raise _short(self.uri)

    def _begin(self, wanted: str) -> tuple[Any, int]:
        """The body of a range, and how many bytes it should have."""
        target = s3_uri(self._name)
        try:
            answer = s3_client.client(self._endpoint).get_object(
                Bucket=target.bucket, Key=target.key, Range=f"bytes={wanted}", IfMatch=self.version
            )
        except FAULTS as e:
            raise source_error(self.uri, e) from e
        if total := str(answer.get("ContentRange", "")).partition("/")[2]:
            self._learn(int(total))
        return answer["Body"], int(answer["ContentLength"])

    def verify(self) -> None:
        """Every read has asked for this ETag: nothing else was read."""

    def again(self) -> S3File:
        copy = S3File(self.uri, self._name, self._endpoint, self.version, self._size)
        copy._tail = self._tail
        return copy

    def close(self) -> None:
        """Nothing is held."""


def _short(uri: str) -> SourceUnavailableError:
    return SourceUnavailableError(f"{uri} cannot be read now: S3's answers are too short.")


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


def _head(endpoint: str, uri: str, **more: str) -> Any:
    target = s3_uri(uri)
    return s3_client.client(endpoint).head_object(Bucket=target.bucket, Key=target.key, **more)


class S3Place:
    """s3:// but for what begins with `hidden`."""

    at_once = AT_ONCE

    def __init__(self, endpoint: str, *, hidden: str | None) -> None:
        self._endpoint = endpoint
        self._hidden = hidden

    def list(self, uri: str, kind: Format) -> Iterator[Listed]:
        self._check(uri)
        target = s3_uri(uri)
        if has_wildcards(target.key):
            pattern = target.key
            found = self._found(target.bucket, fixed_folder(pattern), uri)
            matcher = glob_matcher(pattern)
            meant = ((key, file) for key, file in found if matcher.fullmatch(key) and not key.endswith("/"))
        elif target.key and not target.key.endswith("/") and (one := self._object(uri)):
            return iter((one,))
        else:
            folder = target.key.rstrip("/") + "/" if target.key else ""
            meant = ((key, file) for key, file in self._found(target.bucket, folder, uri) if belongs(key, kind))
        return self._some(uri, meant)

    def _some(self, uri: str, found: Iterator[tuple[str, Listed]]) -> Iterator[Listed]:
        count = 0
        for _, file in found:
            if self._hidden is None or not file.uri.startswith(self._hidden):
                count += 1
                yield file
        if not count:
            raise SourceError(f"No file matches {uri}.")

    def _found(self, bucket: str, prefix: str, uri: str) -> Iterator[tuple[str, Listed]]:
        """Keys and their files, in S3's order, which is that of their bytes."""
        try:
            pages = s3_client.client(self._endpoint).get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=bucket, Prefix=prefix):
                for entry in page.get("Contents", ()):
                    yield entry["Key"], Listed(f"s3://{bucket}/{entry['Key']}", entry.get("ETag"), entry.get("Size"))
        except FAULTS as e:
            raise source_error(uri, e) from e

    def _object(self, uri: str) -> Listed | None:
        try:
            return self._asked(uri)
        except FAULTS as e:
            if s3_client.status_of(e) == 404:
                return None
            raise source_error(uri, e) from e

    def _asked(self, uri: str) -> Listed:
        found = _head(self._endpoint, uri)
        return Listed(uri, str(found["ETag"]), int(found["ContentLength"]))

    def open(self, uri: str, version: str | None = None, size: int | None = None) -> S3File:
        self._check(uri)
        try:
            known = Listed(uri, version, size) if version else self._asked(uri)
        except FAULTS as e:
            raise source_error(uri, e) from e
        return S3File(uri, uri, self._endpoint, known.version or "", known.size)

    def _check(self, uri: str) -> None:
        if self._hidden is not None and uri.startswith(self._hidden):
            raise SourceError(f"{uri} belongs to the server's own store.")
